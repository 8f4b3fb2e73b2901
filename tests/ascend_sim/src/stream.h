// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "acl/acl_rt.h"

namespace ascend_sim {

class Graph;
class Stream;

/// What one aclrtRecordEvent left on a stream: done once everything before it is.
class Marker {
 public:
  void Complete();
  void Wait();
  bool Done();
  std::chrono::steady_clock::time_point when();  // of completion

  /// The graph that recorded it, when it was recorded during a capture. Written before the marker is shared.
  std::weak_ptr<Graph> graph;
  bool captured = false;

 private:
  std::mutex mutex_;
  std::condition_variable done_changed_;
  bool done_ = false;
  std::chrono::steady_clock::time_point when_;
};

/// One command of a stream: wait, then run, then complete; each part is optional.
struct Task {
  const char* name;  // the ACL call that submitted it
  std::function<aclError()> run = nullptr;
  std::shared_ptr<Marker> waits_for = nullptr;
  std::shared_ptr<Marker> completes = nullptr;
  aclError fault = ACL_SUCCESS;  // injected by a test, instead of running
};

/// Runs a task's own work (not its markers): the injected fault, or `run`.
aclError RunTask(const Task& task);

/// A first-in-first-out queue with one worker thread.
///
/// A failed task does not stop the queue (the default failure mode of ACL); its error is kept for the next synchronise.
/// Workers are detached: the exit of the process ends them at any point, so that it cannot hang.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static std::shared_ptr<Stream> Create(int device);
  /// The stream behind a handle; null means the default stream of the current device. Sets `error` when there is none.
  static std::shared_ptr<Stream> Find(aclrtStream handle, aclError* error);
  static std::vector<std::shared_ptr<Stream>> AllOf(int device);

  int id() const { return id_; }
  int device() const { return device_; }
  aclrtStream handle() { return this; }

  /// Queues the task, or records it while the stream is captured.
  aclError Submit(Task task);
  /// Waits until the queue is empty (for ever when `timeout_ms` is -1), then returns and clears the stored error.
  aclError Synchronize(int timeout_ms);
  bool Idle();
  std::shared_ptr<Graph> graph();
  void set_graph(std::shared_ptr<Graph> graph);

  /// Lets the worker end once the queue is empty, and forgets the handle.
  void Retire(bool drop_queued_tasks);

 private:
  Stream(int device, int id) : device_(device), id_(id) {}
  static std::shared_ptr<Stream> Start(int device);
  void Work();

  const int device_;
  const int id_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> queue_;  // the front task is the one that runs
  bool retired_ = false;
  aclError error_ = ACL_SUCCESS;
  std::string error_text_;
  std::shared_ptr<Graph> graph_;  // not null while captured
};

}  // namespace ascend_sim
