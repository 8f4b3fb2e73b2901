// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "call_context.h"
#include "step.h"

namespace llm_datadist {

// Checks the ranges of a step of copy_cache, whose span lists have one span each. Refuses a destination that overlaps
// another destination, or a source other than its own. Returns whether a destination partly overlaps its own source. A
// range copied onto itself changes nothing: only another destination may not overlap it.
bool check_overlap(const CallContext& call, const Step& step);

}  // namespace llm_datadist
