// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

#include "acl/acl_rt.h"

namespace ascend_sim {

/// What the environment chose, read once.
struct Machine {
  std::string soc;           // ASCEND_SIM_SOC
  int devices;               // ASCEND_SIM_DEVICES
  std::size_t memory_bytes;  // ASCEND_SIM_MEMORY, per device
};
const Machine& GetMachine();

/// A2, A3 and 950: the chips that have strided device to device copies and batches.
bool IsA2OrLater();

/// Sets `device` to the calling thread's device; 107002 when the thread has none.
aclError CurrentDevice(int* device);

/// Whether `device` may reach the memory of `peer`.
bool CanReach(int device, int peer);

}  // namespace ascend_sim
