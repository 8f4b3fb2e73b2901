// SPDX-License-Identifier: Apache-2.0
// Functions for tests, called through the Python handle in ../__init__.py. No simulated function depends on this file.
#include <cstdint>
#include <string>

#include "call.h"
#include "context.h"
#include "copy.h"
#include "device.h"
#include "kernel.h"
#include "memory.h"
#include "throttle.h"

using namespace ascend_sim;

namespace {

// The text stays valid until this thread's next call.
const char* Keep(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

extern "C" {

const char* ascend_sim_work() { return Keep(AllWork()); }
const char* ascend_sim_copy_log() { return Keep(CopyLog()); }
const char* ascend_sim_launch_log() { return Keep(LaunchLog()); }

void ascend_sim_fail_call(const char* name, uint64_t nth, int code) { ArmFault(FaultPoint::kCall, name, nth, code); }
void ascend_sim_fail_task(const char* name, uint64_t nth, int code) { ArmFault(FaultPoint::kTask, name, nth, code); }
uint64_t ascend_sim_armed_faults() { return ArmedFaults(); }

void ascend_sim_stall_stream(aclrtStream stream, uint64_t after) { StallStream(stream, after); }
void ascend_sim_stall_device(int device, uint64_t after) { StallDevice(device, after); }
void ascend_sim_delay_tasks(int milliseconds) { SetTaskDelay(std::chrono::milliseconds(milliseconds), {}); }
void ascend_sim_jitter_tasks(int microseconds) { SetTaskDelay({}, std::chrono::microseconds(microseconds)); }

void ascend_sim_unbounded_synchronize(bool unbounded) { SetUnboundedSynchronize(unbounded); }

int ascend_sim_blocked_submitters() { return BlockedSubmitter::count; }
uint64_t ascend_sim_pinned_allocations() { return PinnedUsage().allocations; }

void ascend_sim_reset() {
  ResetCalls();
  ResetCopyLog();
  ResetLaunchLog();
  ResetThrottle();
  SetUnboundedSynchronize(false);
  for (int device = 0; device < GetMachine().devices; ++device) Context::Of(device).Revive();
}

}  // extern "C"
