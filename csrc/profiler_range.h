// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/record_function.h>

#include "plan/call_context.h"
#include "plan/step.h"

namespace llm_datadist {

// Marks a scope in torch.profiler's traces with the op, the bytes that it writes in total, and the request. The text is
// made only while a profiler records.
class ProfilerRange {
 public:
  ProfilerRange(const CallContext& call, const CopyPlan& plan) : record_(at::RecordScope::USER_SCOPE) {
    if (record_.isActive()) {
      int64_t bytes = plan.staging.defined() ? -plan.staging.numel() : 0;  // staged bytes are moved twice
      for (const Step& step : plan.steps) {
        bytes += step.bytes;
      }
      record_.before(c10::str(call, bytes, " bytes", call.request()));
    }
  }

 private:
  at::RecordFunction record_;
};

}  // namespace llm_datadist
