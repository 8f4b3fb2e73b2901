// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "copy_plan.h"

namespace llm_datadist {

// Sends the copies of a step by way of a buffer of `step.bytes` bytes: returns the step that gathers their sources
// there, and turns `step` into the one that goes on from there.
Step through_buffer(Step& step, const at::Tensor& buffer);

}  // namespace llm_datadist
