// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "slice.h"

namespace llm_datadist {

// Checks a call of copy_cache and turns it into a plan. Raises ValueError, with nothing written.
CopyPlan plan_copy(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, const Slice& slice,
                   int64_t batch_dim);

}  // namespace llm_datadist
