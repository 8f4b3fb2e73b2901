// SPDX-License-Identifier: Apache-2.0
//
// The schemas. Kernels register themselves in the folder named after their dispatch key.
//
// - dst is written: functionalization, autograd and the compiler all rely on the schema saying so. `-> *` says that it
//   may alias anything afterwards. Without that, TorchScript takes only the list for written, and drops the call.
// - Nothing is returned: an operator must not return a tensor it was given, and the caller holds dst already.
// - The tags say that compilers may rely on all of this, and that the op must be given tensors with the strides that
//   the program gave them: bytes are copied as they lie in memory.
// - Numbers are SymInt, so that a compiled graph takes a new index, offset, size or req_id without compiling again.
//   batch_dim says how the caches are laid out, which does not change from call to call: a plain int.
//
// The meaning of every argument, and what is refused, is in docs/contract.md.

#include <torch/library.h>

#include <string>

#include "compat.h"

TORCH_LIBRARY(llm_datadist, m) {
  const std::vector<at::Tag> tags = llm_datadist::compat::op_tags();
  const auto def = [&](const std::string& name, const std::string& arguments, const std::vector<at::Tag>& op_tags) {
    m.def((name + "(Tensor(a! -> *)[] dst, Tensor[] src, " + arguments).c_str(), op_tags);
  };
  const std::string one_copy =
      "SymInt dst_batch_index=0, SymInt src_batch_index=0, SymInt offset=0, SymInt size=-1, SymInt? req_id=None, *, "
      "int batch_dim=0";
  // One copy in each row of an int64 tensor: of shape [n, 4], in the order of copy_cache's numbers, or of shape
  // [n, 5], with an offset for src at the end. A tensor, because a list of ints would be part of a compiled graph.
  const std::string many_copies = "Tensor copies, SymInt? req_id=None, *, int batch_dim=0";
  def("copy_cache", one_copy + ") -> ()", tags);
  def("copy_cache_batch", many_copies + ") -> ()", tags);

  // For compiled graphs alone: copies into views of dst. See llm_datadist_torch/compile.py.
  def("_copy_cache_views", one_copy + ", SymInt[] views) -> ()", tags);
  def("_copy_cache_batch_views", many_copies + ", SymInt[] views) -> ()", tags);

  // For CacheManager alone: they return when the copy is done (True), or after timeout_ms without having finished it
  // (False), in which case the destination ranges hold anything.
  def("_copy_cache_blocking",
      "int dst_batch_index, int src_batch_index, int offset, int size, int? req_id, *, int batch_dim, int timeout_ms) "
      "-> bool",
      {});
  def("_copy_cache_batch_blocking", "Tensor copies, int? req_id, *, int batch_dim, int timeout_ms) -> bool", {});
}
