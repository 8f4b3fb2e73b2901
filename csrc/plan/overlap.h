// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "copy_plan.h"

namespace llm_datadist {

// Two ranges of a step that may not both be there, by their position in the step. One is always a destination.
struct Conflict {
  int64_t dst;
  int64_t other;
  bool other_is_dst;
};

// Of a step whose lists have one span each, looks for a destination range that overlaps another destination, or a
// source other than its own. Sets `shifts` if a destination partly overlaps its own source. A range copied onto itself
// reads and writes nothing new, so it conflicts only with another destination.
std::optional<Conflict> find_conflict(const Step& step, bool& shifts);

}  // namespace llm_datadist
