// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>

#include "../plan/step.h"

namespace llm_datadist {

using Clock = std::chrono::steady_clock;
using Deadline = std::optional<Clock::time_point>;

// Run copies between host memory and host memory, in the calling thread and torch's intra-op threads. Return false if
// the deadline passed before all bytes were copied.
bool copy_on_host(const CopyPlan& plan, const Deadline& deadline);
bool copy_on_host(const Step& step, const Deadline& deadline);

}  // namespace llm_datadist
