// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "acl/acl_rt.h"

namespace ascend_sim {

constexpr int kDevices = 2;

/// What the environment chose, read once, and what follows from it.
struct Machine {
  std::string soc;           // ASCEND_SIM_SOC
  int cann;                  // ASCEND_SIM_CANN: 805 for 8.5
  bool a2_or_later;          // A2, A3 or 950: the chips that have strided device to device copies and batches
  bool unified_bus;          // ASCEND_SIM_LINK: a 950 that UB connects to its host
  std::size_t streams;       // of the hardware, per device
  std::size_t stream_depth;  // tasks that one stream holds
};
const Machine& GetMachine();

/// Sets `device` to the calling thread's device; 107002 when the thread has none.
aclError CurrentDevice(int* device);

/// What the streams of a device share: the end that a failed task makes of them, and limited resources.
///
/// Note [A lost context]
/// torch_npu sets ACL_STOP_ON_FAILURE on its streams, which switches the whole context. A task that fails then stops
/// all streams: what is queued does not run, and every later submit and synchronise returns the error of that task.
/// Without the mode, a stream goes on after a failed task, and its next synchronise returns the error once.
class Context {
 public:
  static Context& Of(int device);

  void StopOnFailure() { stops_on_failure_ = true; }
  bool stops_on_failure() const { return stops_on_failure_; }

  /// Stops all streams. The first error stays.
  void Lose(aclError error, const std::string& why);
  /// The error that the context was lost with, else 0.
  aclError Check();
  bool lost() const { return lost_; }
  /// How often it was lost, so that a wait notices a loss that a test has repaired since.
  uint64_t losses() const { return losses_; }
  /// Waits until the streams have dropped their tasks, and makes them usable again. No real runtime can do that.
  void Revive();

  /// Takes streams of the hardware, or returns 207005 when there are too few.
  aclError TakeStreams(std::size_t count);
  void ReturnStreams(std::size_t count);

  /// Waits until one of the events of the hardware is free, and takes it. Returns the error of a lost context.
  aclError TakeEvent();
  void ReturnEvent();

 private:
  explicit Context(int device) : device_(device) {}

  const int device_;
  std::mutex mutex_;
  std::condition_variable event_returned_;
  std::atomic<bool> stops_on_failure_ = false;
  std::atomic<bool> lost_ = false;
  std::atomic<uint64_t> losses_ = 0;
  aclError error_ = ACL_SUCCESS;
  std::string why_;
  std::size_t streams_ = 0;  // in use
  std::size_t events_ = 0;   // in use
};

/// Counts threads while they wait for room: on a full stream, or for an event.
struct BlockedSubmitter {
  BlockedSubmitter() { ++count; }
  ~BlockedSubmitter() { --count; }
  static inline std::atomic<int> count = 0;
};

}  // namespace ascend_sim
