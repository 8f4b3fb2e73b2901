// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "stream.h"

namespace ascend_sim {

/// Called before each task of a stream, on its worker thread: sleeps for the delay, and blocks while a test stalls the
/// stream.
void Throttle(Stream& stream);

void StallStream(aclrtStream handle, bool stalled);
void StallDevice(int device, bool stalled);
/// Each task waits for `delay`, and for a random time of at most `jitter` more.
void SetTaskDelay(std::chrono::microseconds delay, std::chrono::microseconds jitter);
void ResetThrottle();

}  // namespace ascend_sim
