// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/record_function.h>

#include "copy_plan.h"

namespace llm_datadist {

// A range in the traces of torch.profiler, until the end of the block: the op, the bytes that it writes in all, and the
// request. The text is made only where somebody profiles.
class ProfilerRange {
 public:
  ProfilerRange(const Call& call, const CopyPlan& plan) : record_(at::RecordScope::USER_SCOPE) {
    if (record_.isActive()) {
      int64_t bytes = plan.staging.defined() ? -plan.staging.numel() : 0;  // what is staged is moved twice
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
