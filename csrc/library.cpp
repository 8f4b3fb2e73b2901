// SPDX-License-Identifier: Apache-2.0
//
// The schemas. Kernels register themselves in the folder named after their dispatch key.
//
// - dst is `Tensor(a!)[]`: the copy writes into the caller's tensors, and functionalization, autograd and the compiler
//   all rely on the schema saying so.
// - Nothing is returned: an operator must not return a tensor it was given, and the caller holds dst already.
// - The tags say that compilers may rely on all of this, and that the op must be given tensors with the strides that
//   the program gave them: bytes are copied as they lie in memory.
// - Numbers are SymInt, so that a compiled graph takes a new index, offset, size or req_id without compiling again.
//   batch_dim says how the caches are laid out, which does not change from call to call: a plain int.
//
// The meaning of every argument, and what is refused, is in docs/contract.md.

#include <torch/library.h>

#include "compat.h"

TORCH_LIBRARY(llm_datadist, m) {
  const std::vector<at::Tag> tags = llm_datadist::compat::op_tags();
  m.def(
      "copy_cache(Tensor(a!)[] dst, Tensor[] src, SymInt dst_batch_index=0, SymInt src_batch_index=0, "
      "SymInt offset=0, SymInt size=-1, SymInt? req_id=None, *, int batch_dim=0) -> ()",
      tags);

  // Many copies, one in each row of an int64 CPU tensor: of shape [n, 4], in the order of copy_cache's numbers, or of
  // shape [n, 5], with an offset for src at the end. A tensor, because a list of ints would be part of a compiled
  // graph.
  m.def(
      "copy_cache_batch(Tensor(a!)[] dst, Tensor[] src, Tensor copies, SymInt? req_id=None, *, int batch_dim=0) -> ()",
      tags);

  // For CacheManager alone: they return when the copy is done (True), or after timeout_ms without having finished it
  // (False), in which case the destination ranges hold anything.
  m.def(
      "_copy_cache_blocking(Tensor(a!)[] dst, Tensor[] src, int dst_batch_index, int src_batch_index, int offset, "
      "int size, int? req_id, *, int batch_dim, int timeout_ms) -> bool");
  m.def(
      "_copy_cache_batch_blocking(Tensor(a!)[] dst, Tensor[] src, Tensor copies, int? req_id, *, int batch_dim, "
      "int timeout_ms) -> bool");
}
