// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>

#include "copy_plan.h"

namespace llm_datadist {

using Clock = std::chrono::steady_clock;
using Deadline = std::optional<Clock::time_point>;

// Run copies whose both sides are host memory, in the calling thread and torch's intra-op threads. Return false if the
// deadline passed with bytes still to copy.
bool copy_on_host(const CopyPlan& plan, const Deadline& deadline);
bool copy_on_host(const Step& step, const Deadline& deadline);

}  // namespace llm_datadist
