// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <type_traits>

#include "host/host_copy.h"
#include "plan/plan.h"

namespace llm_datadist {

// Marks a scope in torch.profiler's traces with the op, the bytes that it writes in all tensors, and the request. The
// text is made only while a profiler records.
class ProfilerRange {
 public:
  ProfilerRange(const CallContext& call, const Plan& plan) : record_(at::RecordScope::USER_SCOPE) {
    if (record_.isActive()) {
      int64_t bytes = plan.staging.defined() ? -plan.staging.numel() : 0;  // staged bytes are copied twice
      for (const Phase& phase : plan.phases) {
        bytes += phase.bytes;
      }
      record_.before(c10::str(call, bytes, " bytes", call.request()));
    }
  }

 private:
  at::RecordFunction record_;
};

// The kernels of one device. `run` runs a plan: with a deadline it waits for the copies, and returns whether they were
// done in time. `run_table(call, dst, src, copies, batch_dim)` runs a batch whose `copies` are not on the CPU.
template <bool (*run)(const CallContext&, at::ITensorListRef dst, at::ITensorListRef src, Plan, const Deadline&),
          auto run_table = nullptr>
struct Kernels {
  static bool plan_and_run(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src,
                           const Copies& copies, int64_t batch_dim, const Deadline& deadline) {
    Plan plan = make_plan(call, dst, src, copies, batch_dim);
    const ProfilerRange range(call, plan);
    return run(call, dst, src, std::move(plan), deadline);
  }

  static void copy_cache(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index,
                         int64_t src_batch_index, int64_t offset, int64_t size, std::optional<int64_t> req_id,
                         int64_t batch_dim) {
    const Copies copies = one_copy(dst_batch_index, src_batch_index, offset, size);
    plan_and_run({"copy_cache", req_id}, dst, src, copies, batch_dim, std::nullopt);
  }

  static void copy_cache_batch(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                               std::optional<int64_t> req_id, int64_t batch_dim) {
    const CallContext call{"copy_cache_batch", req_id};
    if constexpr (!std::is_null_pointer_v<decltype(run_table)>) {
      if (copies.defined() && !copies.is_cpu() && !copies.is_meta()) {
        check_copies(call, copies);
        run_table(call, dst, src, copies, batch_dim);
        return;
      }
    }
    plan_and_run(call, dst, src, read_copies(call, copies), batch_dim, std::nullopt);
  }

  static bool copy_cache_blocking(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index,
                                  int64_t src_batch_index, int64_t offset, int64_t size, std::optional<int64_t> req_id,
                                  int64_t batch_dim, int64_t timeout_ms) {
    const Deadline deadline = deadline_after(timeout_ms);
    const Copies copies = one_copy(dst_batch_index, src_batch_index, offset, size);
    return plan_and_run({"copy_cache", req_id}, dst, src, copies, batch_dim, deadline);
  }

  static bool copy_cache_batch_blocking(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                                        std::optional<int64_t> req_id, int64_t batch_dim, int64_t timeout_ms) {
    const Deadline deadline = deadline_after(timeout_ms);
    const CallContext call{"copy_cache_batch", req_id};
    return plan_and_run(call, dst, src, read_copies(call, copies), batch_dim, deadline);
  }

  static void add_to(torch::Library& m) {
    m.impl("copy_cache", &copy_cache);
    m.impl("copy_cache_batch", &copy_cache_batch);
    m.impl("_copy_cache_blocking", &copy_cache_blocking);
    m.impl("_copy_cache_batch_blocking", &copy_cache_batch_blocking);
  }
};

}  // namespace llm_datadist
