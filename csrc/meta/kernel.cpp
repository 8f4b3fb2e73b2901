// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/IListRef.h>
#include <c10/core/SymInt.h>
#include <torch/library.h>

#include "../plan/checks.h"

namespace llm_datadist {
namespace {

// Checks the lists but not the numbers: reading a SymInt would add a guard, and each new value would recompile. The
// numbers are checked when the graph runs.
void check_meta_lists(const CallContext& call, at::ITensorListRef dst_list, at::ITensorListRef src_list,
                      int64_t batch_dim) {
  const Tensors dst = tensors_of(dst_list);
  const Tensors src = tensors_of(src_list);
  check_lists(call, dst, src);
  // Real caches reach this kernel only with a meta tensor in another argument.
  CHECK_CALL(call, dst.front().get().is_meta() || src.front().get().is_meta(),
             "expected copies on the CPU, got meta, and dst and src on ", dst.front().get().device());
  for (int64_t index = 0; index < static_cast<int64_t>(dst.size()); ++index) {
    check_batch_dim(call, {"dst", index}, dst[index], batch_dim);
    check_batch_dim(call, {"src", index}, src[index], batch_dim);
  }
  CHECK_CALL(call, dst.front().get().is_meta() && src.front().get().is_meta(),
             "expected dst and src to be both meta tensors, got ", dst.front().get().device(), " and ",
             src.front().get().device());
}

void copy_cache_meta(at::ITensorListRef dst, at::ITensorListRef src, c10::SymInt, c10::SymInt, c10::SymInt, c10::SymInt,
                     std::optional<c10::SymInt>, int64_t batch_dim) {
  check_meta_lists({"copy_cache", std::nullopt}, dst, src, batch_dim);
}

void copy_cache_batch_meta(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                           std::optional<c10::SymInt>, int64_t batch_dim) {
  const CallContext call{"copy_cache_batch", std::nullopt};
  check_meta_lists(call, dst, src, batch_dim);
  check_copies(call, copies);
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, Meta, m) {
  m.impl("copy_cache", &llm_datadist::copy_cache_meta);
  m.impl("copy_cache_batch", &llm_datadist::copy_cache_batch_meta);
}
