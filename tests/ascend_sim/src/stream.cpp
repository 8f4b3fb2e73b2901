// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <atomic>
#include <map>
#include <thread>
#include <utility>

#include "call.h"
#include "capture.h"
#include "device.h"
#include "throttle.h"

namespace ascend_sim {
namespace {

struct Streams {
  std::mutex mutex;
  std::map<aclrtStream, std::shared_ptr<Stream>> by_handle;
  std::map<int, std::shared_ptr<Stream>> defaults;  // by device
};

Streams& GetStreams() {
  static Streams& streams = *new Streams;
  return streams;
}

}  // namespace

void Marker::Complete() {
  std::lock_guard lock(mutex_);
  done_ = true;
  when_ = std::chrono::steady_clock::now();
  done_changed_.notify_all();
}

void Marker::Wait() {
  std::unique_lock lock(mutex_);
  done_changed_.wait(lock, [this] { return done_; });
}

bool Marker::Done() {
  std::lock_guard lock(mutex_);
  return done_;
}

std::chrono::steady_clock::time_point Marker::when() {
  std::lock_guard lock(mutex_);
  return when_;
}

aclError RunTask(const Task& task) {
  if (task.fault) return Refuse(task.fault, std::string(task.name) + ": task failure injected by a test");
  return task.run ? task.run() : ACL_SUCCESS;
}

std::shared_ptr<Stream> Stream::Start(int device) {
  static std::atomic<int> started = 0;
  std::shared_ptr<Stream> stream(new Stream(device, started++));
  std::thread([stream] { stream->Work(); }).detach();
  return stream;
}

std::shared_ptr<Stream> Stream::Create(int device) {
  Streams& streams = GetStreams();
  std::lock_guard lock(streams.mutex);
  const auto stream = Start(device);
  return streams.by_handle[stream->handle()] = stream;
}

std::shared_ptr<Stream> Stream::Find(aclrtStream handle, aclError* error) {
  *error = ACL_SUCCESS;
  Streams& streams = GetStreams();
  if (handle) {
    std::lock_guard lock(streams.mutex);
    const auto found = streams.by_handle.find(handle);
    if (found != streams.by_handle.end()) return found->second;
    *error = Refuse(ACL_ERROR_RT_PARAM_INVALID, Hex(handle) + " is not a live stream");
    return nullptr;
  }
  int device;
  if ((*error = CurrentDevice(&device))) return nullptr;
  std::lock_guard lock(streams.mutex);
  std::shared_ptr<Stream>& stream = streams.defaults[device];
  if (!stream) {
    stream = Start(device);
    streams.by_handle[stream->handle()] = stream;
  }
  return stream;
}

std::vector<std::shared_ptr<Stream>> Stream::AllOf(int device) {
  Streams& streams = GetStreams();
  std::lock_guard lock(streams.mutex);
  std::vector<std::shared_ptr<Stream>> found;
  for (const auto& [handle, stream] : streams.by_handle) {
    if (stream->device() == device) found.push_back(stream);
  }
  return found;
}

aclError Stream::Submit(Task task) {
  task.fault = TakeTaskFault(task.name);
  if (const auto capturing = graph()) {
    capturing->Append(this, std::move(task));
    return ACL_SUCCESS;
  }
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(task));
  changed_.notify_all();
  return ACL_SUCCESS;
}

aclError Stream::Synchronize(int timeout_ms) {
  std::unique_lock lock(mutex_);
  if (graph_) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a stream cannot be synchronised while it is captured");
  const auto idle = [this] { return queue_.empty(); };
  if (timeout_ms < 0) {
    changed_.wait(lock, idle);
  } else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), idle)) {
    return Refuse(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT,
                  "tasks are still queued on the stream after " + std::to_string(timeout_ms) + " ms");
  }
  const aclError error = std::exchange(error_, ACL_SUCCESS);
  return error ? Refuse(error, "an earlier task of the stream failed: " + error_text_) : ACL_SUCCESS;
}

bool Stream::Idle() {
  std::lock_guard lock(mutex_);
  return queue_.empty();
}

std::shared_ptr<Graph> Stream::graph() {
  std::lock_guard lock(mutex_);
  return graph_;
}

void Stream::set_graph(std::shared_ptr<Graph> graph) {
  std::lock_guard lock(mutex_);
  graph_ = std::move(graph);
}

void Stream::Retire(bool drop_queued_tasks) {
  {
    std::lock_guard lock(mutex_);
    retired_ = true;
    // The front task is running; its worker takes it off itself.
    if (drop_queued_tasks && queue_.size() > 1) queue_.erase(queue_.begin() + 1, queue_.end());
    changed_.notify_all();
  }
  Streams& streams = GetStreams();
  std::lock_guard lock(streams.mutex);
  streams.by_handle.erase(handle());
}

void Stream::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return retired_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Task task = queue_.front();
    lock.unlock();
    Throttle(*this);
    if (task.waits_for) task.waits_for->Wait();
    const aclError error = RunTask(task);
    if (task.completes) task.completes->Complete();
    lock.lock();
    if (error && !error_) {
      error_ = error;
      error_text_ = TakeErrorText();
    }
    queue_.pop_front();
    changed_.notify_all();
  }
}

}  // namespace ascend_sim
