// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

#include "acl/acl_rt.h"

namespace ascend_sim {

/// What the environment chose, read once, and what follows from it.
struct Machine {
  std::string soc;           // ASCEND_SIM_SOC
  int cann;                  // ASCEND_SIM_CANN: 805 for 8.5
  int devices;               // ASCEND_SIM_DEVICES
  std::size_t memory_bytes;  // ASCEND_SIM_MEMORY, per device

  bool a2_or_later;          // A2, A3 or 950: the chips that have strided device to device copies and batches
  bool unified_bus;          // ASCEND_SIM_LINK: a 950 that UB connects to its host
  std::size_t streams;       // of the hardware, per device
  std::size_t stream_depth;  // tasks that one stream holds
};
const Machine& GetMachine();

/// Sets `device` to the calling thread's device; 107002 when the thread has none.
aclError CurrentDevice(int* device);

/// Whether `device` may reach the memory of `peer`.
bool CanReach(int device, int peer);

}  // namespace ascend_sim
