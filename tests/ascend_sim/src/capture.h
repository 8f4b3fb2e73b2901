// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "stream.h"

namespace ascend_sim {

/// The tasks of one capture (an aclmdlRI).
///
/// Note [Replay order]
/// Each captured stream is a lane. A replay keeps the order within a lane and the event waits between lanes, and
/// otherwise runs the lane that joined last first: an order the device may choose too, and one that exposes a wait that
/// was forgotten.
class Graph : public std::enable_shared_from_this<Graph> {
 public:
  Graph(Stream* origin, aclmdlRICaptureMode mode) : origin_(origin), mode_(mode) {}
  ~Graph();

  bool active();
  aclmdlRICaptureMode mode() const { return mode_; }
  std::thread::id owner() const { return owner_; }
  Stream* origin() const { return origin_; }

  /// Adds a command of a captured stream. 207005 when the device has no streams left to hold its tasks, which also
  /// invalidates the capture; 207008 when the graph has no work elements left, which copies by UB take.
  aclError Append(Stream* stream, Command command);
  /// Makes `stream` record into this graph from now on.
  aclError Join(Stream& stream);
  /// Ends the capture; 507903 when it is invalid, 107025 when a joined stream was not waited for at its end.
  aclError End();
  /// Runs every task on `stream`. The first error wins, and is the last task where streams stop on a failure.
  aclError Run(Stream& stream);

 private:
  struct Lane {
    std::shared_ptr<Stream> stream;
    std::vector<Command> commands;
    std::size_t tasks = 0;
    std::size_t streams = 1;  // of the hardware: as many as it takes to hold the tasks
  };
  bool WaitedFor(const Marker* marker) const;

  Stream* const origin_;
  const aclmdlRICaptureMode mode_;
  const std::thread::id owner_ = std::this_thread::get_id();
  std::mutex mutex_;
  bool active_ = true;
  bool valid_ = true;
  std::size_t work_elements_ = 0;
  std::vector<Lane> lanes_;
};

/// 107030 when a capture forbids this thread calls that wait or copy outside the graph.
aclError CheckUnsafeCallAllowed(const char* name);

}  // namespace ascend_sim
