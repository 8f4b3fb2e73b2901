// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "checks.h"
#include "step.h"

namespace llm_datadist {

// Checks the ranges of a step of copy_cache: the places of every tensor in the order of the lists, one span each.
// Refuses a destination that overlaps another destination, or a source other than its own. Returns whether a
// destination partly overlaps its own source. A range copied onto itself changes nothing: only another destination may
// not overlap it.
bool check_overlap(const CallContext& call, const Step& step, const Tensors& dst, int64_t batch_dim);

}  // namespace llm_datadist
