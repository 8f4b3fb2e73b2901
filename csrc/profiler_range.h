// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/record_function.h>

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

}  // namespace llm_datadist
