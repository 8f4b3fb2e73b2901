// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/IListRef.h>
#include <torch/library.h>

#include <algorithm>

#include "../host/host_copy.h"
#include "../plan/plan.h"
#include "../profiler_range.h"

namespace llm_datadist {
namespace {

bool run(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, const Copies& copies,
         int64_t batch_dim, const Deadline& deadline) {
  const Plan plan = make_plan(call, dst, src, copies, batch_dim);
  const ProfilerRange range(call, plan);
  return std::all_of(plan.phases.begin(), plan.phases.end(),
                     [&](const Phase& phase) { return copy_on_host(phase, deadline); });
}

void copy_cache_cpu(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index, int64_t src_batch_index,
                    int64_t offset, int64_t size, std::optional<int64_t> req_id, int64_t batch_dim) {
  const CallContext call{"copy_cache", req_id};
  run(call, dst, src, one_copy(dst_batch_index, src_batch_index, offset, size), batch_dim, std::nullopt);
}

bool copy_cache_blocking_cpu(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index,
                             int64_t src_batch_index, int64_t offset, int64_t size, std::optional<int64_t> req_id,
                             int64_t batch_dim, int64_t timeout_ms) {
  const Deadline deadline = deadline_after(timeout_ms);
  const CallContext call{"copy_cache", req_id};
  return run(call, dst, src, one_copy(dst_batch_index, src_batch_index, offset, size), batch_dim, deadline);
}

void copy_cache_batch_cpu(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                          std::optional<int64_t> req_id, int64_t batch_dim) {
  const CallContext call{"copy_cache_batch", req_id};
  run(call, dst, src, read_copies(call, copies), batch_dim, std::nullopt);
}

bool copy_cache_batch_blocking_cpu(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                                   std::optional<int64_t> req_id, int64_t batch_dim, int64_t timeout_ms) {
  const Deadline deadline = deadline_after(timeout_ms);
  const CallContext call{"copy_cache_batch", req_id};
  return run(call, dst, src, read_copies(call, copies), batch_dim, deadline);
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CPU, m) {
  m.impl("copy_cache", &llm_datadist::copy_cache_cpu);
  m.impl("copy_cache_batch", &llm_datadist::copy_cache_batch_cpu);
  m.impl("_copy_cache_blocking", &llm_datadist::copy_cache_blocking_cpu);
  m.impl("_copy_cache_batch_blocking", &llm_datadist::copy_cache_batch_blocking_cpu);
}
