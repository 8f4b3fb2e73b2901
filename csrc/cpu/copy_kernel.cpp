// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/IListRef.h>
#include <torch/library.h>

#include "../host/host_copy.h"
#include "../plan/plan_batch.h"
#include "../plan/plan_copy.h"
#include "../profiler_range.h"

namespace llm_datadist {
namespace {

bool run(const CallContext& call, const CopyPlan& plan, const Deadline& deadline) {
  const ProfilerRange range(call, plan);
  return copy_on_host(plan, deadline);
}

void copy_cache_cpu(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index, int64_t src_batch_index,
                    int64_t offset, int64_t size, std::optional<int64_t> req_id, int64_t batch_dim) {
  const CallContext call{"copy_cache", req_id};
  const Slice slice{dst_batch_index, src_batch_index, offset, size};
  run(call, plan_copy(call, dst, src, slice, batch_dim), std::nullopt);
}

bool copy_cache_blocking_cpu(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index,
                             int64_t src_batch_index, int64_t offset, int64_t size, std::optional<int64_t> req_id,
                             int64_t batch_dim, int64_t timeout_ms) {
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  const CallContext call{"copy_cache", req_id};
  const Slice slice{dst_batch_index, src_batch_index, offset, size};
  return run(call, plan_copy(call, dst, src, slice, batch_dim), deadline);
}

void copy_cache_batch_cpu(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                          std::optional<int64_t> req_id, int64_t batch_dim) {
  const CallContext call{"copy_cache_batch", req_id};
  run(call, plan_batch(call, dst, src, copies, batch_dim), std::nullopt);
}

bool copy_cache_batch_blocking_cpu(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                                   std::optional<int64_t> req_id, int64_t batch_dim, int64_t timeout_ms) {
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  const CallContext call{"copy_cache_batch", req_id};
  return run(call, plan_batch(call, dst, src, copies, batch_dim), deadline);
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CPU, m) {
  m.impl("copy_cache", &llm_datadist::copy_cache_cpu);
  m.impl("copy_cache_batch", &llm_datadist::copy_cache_batch_cpu);
  m.impl("_copy_cache_blocking", &llm_datadist::copy_cache_blocking_cpu);
  m.impl("_copy_cache_batch_blocking", &llm_datadist::copy_cache_batch_blocking_cpu);
}
