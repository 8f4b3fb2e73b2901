// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "acl/acl_rt.h"
#include "call.h"
#include "device.h"

namespace ascend_sim {

class Graph;

/// What one aclrtRecordEvent left on a stream: done once everything before it is, lost if that was dropped.
class Marker {
 public:
  enum class State { kPending, kDone, kLost };

  /// Holds one of the events of `context` until it is no longer pending; none for null.
  explicit Marker(Context* context) : context_(context) {}

  void Settle(State state);
  /// Waits while it is pending: for at most `limit`, or for ever when that is 0.
  State Wait(std::chrono::seconds limit);
  State state();
  std::chrono::steady_clock::time_point when();  // of completion
  Context* context() const { return context_; }

  /// The graph that recorded it, when it was recorded during a capture. Written before the marker is shared.
  std::weak_ptr<Graph> graph;
  bool captured = false;

 private:
  Context* const context_;
  std::mutex mutex_;
  std::condition_variable settled_;
  State state_ = State::kPending;
  std::chrono::steady_clock::time_point when_;
};

/// What one call puts on a stream: tasks that run one after another.
struct Command {
  const char* name;                                    // the ACL call
  std::function<aclError(std::size_t)> run = nullptr;  // runs one of the tasks, by its index
  std::size_t tasks = 1;
  std::shared_ptr<Marker> waits_for = nullptr;  // before the first task
  std::chrono::seconds wait_limit{0};           // 0: none
  std::shared_ptr<Marker> completes = nullptr;  // after the last task
  std::size_t work_elements = 0;                // what it takes of a graph's, see Graph::Append
  TaskFault fault = {};                         // injected by a test, instead of running a task
};

/// Runs one task, not the wait before it: the injected fault, or `run`.
aclError RunTask(const Command& command, std::size_t index);

/// A first-in-first-out queue of limited depth with one worker thread. See Note [A lost context].
///
/// Workers are detached: the exit of the process ends them at any point, so that it cannot hang.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static aclError Create(aclrtStream* handle);
  /// The stream behind a handle; null means the default stream of the current device. Sets `error` when there is none.
  static std::shared_ptr<Stream> Find(aclrtStream handle, aclError* error);
  static std::vector<std::shared_ptr<Stream>> AllOf(int device);

  int id() const { return id_; }
  int device() const { return device_; }
  aclrtStream handle() { return this; }

  /// Queues the tasks, or records them while the stream is captured. Waits while the queue is full.
  aclError Submit(Command command);
  /// Waits until the queue is empty (for ever when `timeout_ms` is -1), then returns and clears the stored error.
  aclError Synchronize(int timeout_ms);
  void WaitUntilIdle();
  bool Idle();
  std::shared_ptr<Graph> graph();
  void set_graph(std::shared_ptr<Graph> graph);

  /// Lets the worker end once the queue is empty, and forgets the handle. 107003 from another device.
  aclError Retire();
  /// Ends all waits for what is queued. Called when the context is lost.
  void Abandon();

 private:
  struct Queued {
    Command command;
    uint64_t losses;            // of the context, when it was submitted: a loss since then drops it
    std::size_t submitted = 0;  // tasks that had room in the queue so far
    std::size_t done = 0;
  };

  Stream(int device, int id) : device_(device), id_(id) {}
  static aclError Start(int device, std::shared_ptr<Stream>* stream);
  void Work();
  void SettleQueued();  // with the lock

  const int device_;
  const int id_;
  Context& context_ = Context::Of(device_);
  std::mutex submitting_;  // held by the thread whose command is not yet all in the queue
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Queued> queue_;     // the front is the one that runs
  std::size_t outstanding_ = 0;  // tasks: submitted and not done
  bool retired_ = false;
  aclError error_ = ACL_SUCCESS;
  std::string error_text_;
  std::shared_ptr<Graph> graph_;  // not null while captured
};

/// The first line of every simulated function that works on a stream.
#define ACL_CALL_ON(stream, handle)                                                            \
  ACL_CALL();                                                                                  \
  aclError error;                                                                              \
  const std::shared_ptr<ascend_sim::Stream> stream = ascend_sim::Stream::Find(handle, &error); \
  if (!stream) return error

/// Called before each task of a stream, on its worker thread: sleeps for the delay, and blocks while a test stalls the
/// stream.
void Throttle(Stream& stream);
void ResetThrottle();

}  // namespace ascend_sim
