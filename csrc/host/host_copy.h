// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>

#include "../plan/plan.h"

namespace llm_datadist {

using Clock = std::chrono::steady_clock;
using Deadline = std::optional<Clock::time_point>;

// The point of time `timeout_ms` milliseconds from now. CacheManager's timeouts are int32; a longer one is cut to that.
Clock::time_point deadline_after(int64_t timeout_ms);

// Runs copies between host memory and host memory, in the calling thread and torch's intra-op threads. Returns false if
// the deadline passed before all bytes were copied.
bool copy_on_host(const Phase& phase, const Deadline& deadline);

}  // namespace llm_datadist
