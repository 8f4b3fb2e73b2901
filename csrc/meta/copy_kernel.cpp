// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/IListRef.h>
#include <c10/core/SymInt.h>
#include <torch/library.h>

#include "../plan/row_layout.h"
#include "../plan/slice.h"

namespace llm_datadist {
namespace {

// Tracing sees the lists, not the numbers: looking at a SymInt would put a guard on it and compile again for the next
// value. The numbers are checked when the graph runs.
void check_meta_lists(const Call& call, at::ITensorListRef dst, at::ITensorListRef src) {
  check_lists(call, tensors_of(dst), tensors_of(src));
  CHECK_CALL(call, dst.front().is_meta() && src.front().is_meta(), "expected dst and src to be both meta tensors, got ",
             dst.front().device(), " and ", src.front().device());
}

void copy_cache_meta(at::ITensorListRef dst, at::ITensorListRef src, c10::SymInt, c10::SymInt, c10::SymInt, c10::SymInt,
                     std::optional<c10::SymInt>, int64_t) {
  check_meta_lists({"copy_cache", std::nullopt}, dst, src);
}

void copy_cache_batch_meta(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                           std::optional<c10::SymInt>, int64_t) {
  const Call call{"copy_cache_batch", std::nullopt};
  check_meta_lists(call, dst, src);
  check_copies(call, copies);
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, Meta, m) {
  m.impl("copy_cache", &llm_datadist::copy_cache_meta);
  m.impl("copy_cache_batch", &llm_datadist::copy_cache_batch_meta);
}
