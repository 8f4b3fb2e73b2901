// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stream.h"

namespace ascend_sim {

/// Called before each task of a stream, on its worker thread: sleeps for the delay, and blocks while a test stalls the
/// stream.
void Throttle(Stream& stream);

/// Keeps tasks from starting once `after` more have started; SIZE_MAX for never.
void StallStream(aclrtStream handle, std::size_t after);
void StallDevice(int device, std::size_t after);
/// Each task waits for `delay`, and for a random time of at most `jitter` more.
void SetTaskDelay(std::chrono::microseconds delay, std::chrono::microseconds jitter);
void ResetThrottle();

}  // namespace ascend_sim
