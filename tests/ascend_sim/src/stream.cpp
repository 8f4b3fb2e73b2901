// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "capture.h"

namespace ascend_sim {
namespace {

struct Streams {
  std::mutex mutex;
  std::map<aclrtStream, std::shared_ptr<Stream>> by_handle;
  std::map<int, std::shared_ptr<Stream>> defaults;  // by device
};

// What a test asked of the tasks. Of each stream and device, how many may still start; the default is not used up in a
// lifetime.
struct Allowance {
  std::size_t tasks = SIZE_MAX;
};
struct Settings {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<aclrtStream, Allowance> of_streams;
  std::map<int, Allowance> of_devices;
  std::chrono::microseconds delay{0};
  std::chrono::microseconds jitter{0};
};

// A synchronise of a lost context waits, without a limit, until no task of the device runs any more.
std::atomic<bool> unbounded_synchronize = false;

aclError WaitForEvent(const Command& command) {
  if (!command.waits_for || command.waits_for->Wait(command.wait_limit) != Marker::State::kPending) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_TASK_TIMEOUT, "the event was not recorded within the ", command.wait_limit.count(),
                " s that aclrtSetOpWaitTimeout allows");
}

aclError CheckTimeout(int timeout_ms) {
  if (timeout_ms == -1 || timeout_ms > 0) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, "a timeout of ", timeout_ms, " ms");
}

// Waits for every stream, also after one of them failed, and returns the first error.
aclError SynchronizeDevice(int timeout_ms) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  const auto streams = Stream::AllOf(device);
  for (const auto& stream : streams) {
    if (stream->graph()) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a stream of the device is captured");
  }
  if (const aclError error = Context::Of(device).Check()) return error;
  aclError first = ACL_SUCCESS;
  std::string text;
  for (const auto& stream : streams) {
    const aclError error = stream->Synchronize(timeout_ms);
    if (error && !first) {
      first = error;
      text = TakeErrorText();
    }
  }
  return first ? Refuse(first, text) : ACL_SUCCESS;
}

}  // namespace

void Marker::Settle(State state) {
  {
    std::lock_guard lock(mutex_);
    if (state_ != State::kPending) return;
    state_ = state;
    when_ = std::chrono::steady_clock::now();
    settled_.notify_all();
  }
  if (context_) context_->ReturnEvent();
}

Marker::State Marker::Wait(std::chrono::seconds limit) {
  std::unique_lock lock(mutex_);
  const auto settled = [this] { return state_ != State::kPending; };
  if (limit.count() == 0) {
    settled_.wait(lock, settled);
  } else {
    settled_.wait_for(lock, limit, settled);
  }
  return state_;
}

Marker::State Marker::state() {
  std::lock_guard lock(mutex_);
  return state_;
}

std::chrono::steady_clock::time_point Marker::when() {
  std::lock_guard lock(mutex_);
  return when_;
}

aclError RunTask(const Command& command, std::size_t index) {
  if (command.fault.code && command.fault.index == index)
    return Refuse(command.fault.code, command.name, ": task failure injected by a test");
  return command.run ? command.run(index) : ACL_SUCCESS;
}

aclError Stream::Start(int device, std::shared_ptr<Stream>* stream) {
  static std::atomic<int> started = 0;
  if (const aclError error = Context::Of(device).TakeStreams(1)) return error;
  stream->reset(new Stream(device, started++));
  std::thread([stream = *stream] { stream->Work(); }).detach();
  return ACL_SUCCESS;
}

aclError Stream::Create(aclrtStream* handle) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  const Locked<Streams> streams;
  std::shared_ptr<Stream> stream;
  if (const aclError error = Start(device, &stream)) return error;
  *handle = stream->handle();
  streams->by_handle[*handle] = stream;
  return ACL_SUCCESS;
}

std::shared_ptr<Stream> Stream::Find(aclrtStream handle, aclError* error) {
  int device = -1;
  *error = handle ? ACL_SUCCESS : CurrentDevice(&device);
  if (*error) return nullptr;
  const Locked<Streams> streams;
  if (!handle) {
    std::shared_ptr<Stream>& stream = streams->defaults[device];
    if (!stream && !(*error = Start(device, &stream))) streams->by_handle[stream->handle()] = stream;
    return stream;
  }
  const auto found = streams->by_handle.find(handle);
  if (found != streams->by_handle.end()) return found->second;
  *error = Refuse(ACL_ERROR_RT_PARAM_INVALID, handle, " is not a live stream");
  return nullptr;
}

std::vector<std::shared_ptr<Stream>> Stream::AllOf(int device) {
  const Locked<Streams> streams;
  std::vector<std::shared_ptr<Stream>> found;
  for (const auto& [handle, stream] : streams->by_handle) {
    if (stream->device() == device) found.push_back(stream);
  }
  return found;
}

aclError Stream::Submit(Command command) {
  const uint64_t losses = context_.losses();  // before the check: a loss in between ends the command too
  if (const aclError error = context_.Check()) return error;
  command.fault = TakeTaskFault(command.name, command.tasks);
  CountWork(command.name, command.tasks, 0);
  if (const auto capturing = graph()) return capturing->Append(this, std::move(command));

  std::size_t left = command.tasks;
  std::lock_guard turn(submitting_);
  std::unique_lock lock(mutex_);
  queue_.push_back({std::move(command), losses});
  while (left > 0) {
    const std::size_t depth = GetMachine().stream_depth;
    const auto ended = [&] { return retired_ || context_.losses() != losses; };
    if (outstanding_ == depth) {
      const BlockedSubmitter blocked;
      changed_.wait(lock, [&] { return outstanding_ < depth || ended(); });
    }
    if (ended()) return context_.Check();
    const std::size_t part = std::min(left, depth - outstanding_);
    queue_.back().submitted += part;
    outstanding_ += part;
    left -= part;
    changed_.notify_all();
  }
  return ACL_SUCCESS;
}

aclError Stream::Synchronize(int timeout_ms) {
  {
    std::unique_lock lock(mutex_);
    if (graph_) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a stream cannot be synchronised while it is captured");
    const auto ended = [this] { return queue_.empty() || context_.lost(); };
    if (timeout_ms < 0) {
      changed_.wait(lock, ended);
    } else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), ended)) {
      return Refuse(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "tasks are still queued on the stream after ", timeout_ms, " ms");
    }
    if (!context_.lost()) {
      const aclError error = std::exchange(error_, ACL_SUCCESS);
      return error ? Refuse(error, "an earlier task of the stream failed: ", error_text_) : ACL_SUCCESS;
    }
  }
  if (unbounded_synchronize) {
    for (const auto& stream : AllOf(device_)) stream->WaitUntilIdle();
  }
  return context_.Check();
}

void Stream::WaitUntilIdle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return queue_.empty(); });
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

aclError Stream::Retire() {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (device_ != device)
    return Refuse(ACL_ERROR_RT_STREAM_CONTEXT, "a stream is destroyed while another device than its own is current");
  {
    const Locked<Streams> streams;
    streams->by_handle.erase(handle());
  }
  context_.ReturnStreams(1);
  {
    std::lock_guard lock(mutex_);
    retired_ = true;
    changed_.notify_all();
  }
  return ACL_SUCCESS;
}

void Stream::Abandon() {
  std::lock_guard lock(mutex_);
  SettleQueued();
  changed_.notify_all();
}

void Stream::SettleQueued() {
  for (const Queued& queued : queue_) {
    if (queued.command.completes) queued.command.completes->Settle(Marker::State::kLost);
  }
}

void Stream::Work() {
  const auto has_work = [this] {
    if (queue_.empty()) return retired_;
    const Queued& front = queue_.front();
    return context_.losses() != front.losses || front.done < front.submitted;
  };
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, has_work);
    if (queue_.empty()) return;
    Queued& front = queue_.front();  // stays valid: only this thread removes it
    const Command& command = front.command;
    lock.unlock();
    Throttle(*this);
    const bool dropped = context_.losses() != front.losses;  // a stalled stream drops its tasks after the stall
    aclError error = dropped ? ACL_SUCCESS : WaitForEvent(command);
    if (!error && !dropped) error = RunTask(command, front.done);
    if (error && context_.stops_on_failure()) context_.Lose(error, TakeErrorText());
    const bool last = front.done + 1 == command.tasks;
    if (last && !dropped && command.completes) command.completes->Settle(Marker::State::kDone);
    lock.lock();
    if (dropped) {
      SettleQueued();  // Abandon may not have come to this stream yet
      queue_.clear();
      outstanding_ = 0;
      changed_.notify_all();
      continue;
    }
    if (error && !error_ && !context_.stops_on_failure()) {
      error_ = error;
      error_text_ = TakeErrorText();
    }
    ++front.done;
    --outstanding_;
    if (last) queue_.pop_front();
    changed_.notify_all();
  }
}

void Throttle(Stream& stream) {
  thread_local std::minstd_rand random(stream.id());
  Settings& settings = Immortal<Settings>();
  std::unique_lock lock(settings.mutex);
  std::chrono::microseconds pause = settings.delay;
  if (settings.jitter.count() > 0) pause += settings.jitter * (random() % 1000) / 1000;
  if (pause.count() > 0) {
    lock.unlock();
    std::this_thread::sleep_for(pause);
    lock.lock();
  }
  Allowance& of_stream = settings.of_streams[stream.handle()];
  Allowance& of_device = settings.of_devices[stream.device()];
  settings.changed.wait(lock, [&] { return of_stream.tasks > 0 && of_device.tasks > 0; });
  --of_stream.tasks;
  --of_device.tasks;
}

void ResetThrottle() {
  const Locked<Settings> settings;
  for (auto& [handle, allowance] : settings->of_streams) allowance = {};
  for (auto& [device, allowance] : settings->of_devices) allowance = {};
  settings->delay = settings->jitter = {};
  settings->changed.notify_all();
  unbounded_synchronize = false;
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtCreateStream(aclrtStream* handle) {
  ACL_CALL();
  return Stream::Create(handle);
}

aclError aclrtCreateStreamWithConfig(aclrtStream* handle, uint32_t, uint32_t) {
  ACL_CALL();
  return Stream::Create(handle);
}

aclError aclrtDestroyStream(aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  if ((error = stream->Retire())) return error;
  stream->Synchronize(-1);
  return ACL_SUCCESS;
}

// The real one drops what is queued. torch_npu calls it at the end of the process.
aclError aclrtDestroyStreamForce(aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  return stream->Retire();
}

aclError aclrtSynchronizeStream(aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  return stream->Synchronize(-1);
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms) {
  ACL_CALL_ON(stream, handle);
  return (error = CheckTimeout(timeout_ms)) ? error : stream->Synchronize(timeout_ms);
}

aclError aclrtSynchronizeDevice() {
  ACL_CALL();
  return SynchronizeDevice(-1);
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) {
  ACL_CALL();
  if (const aclError error = CheckTimeout(timeout_ms)) return error;
  return SynchronizeDevice(timeout_ms);
}

aclError aclrtSetStreamFailureMode(aclrtStream handle, uint64_t mode) {
  ACL_CALL_ON(stream, handle);
  Context& context = Context::Of(stream->device());
  if (mode == ACL_STOP_ON_FAILURE) {
    context.StopOnFailure();
  } else if (context.stops_on_failure()) {
    return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a stream that stops on a failure cannot be made to go on");
  }
  return ACL_SUCCESS;
}

aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status) {
  ACL_CALL_ON(stream, handle);
  if (stream->graph()) return Refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a stream cannot be queried while it is captured");
  if ((error = Context::Of(stream->device()).Check())) return error;
  *status = stream->Idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

// For tests, through ../__init__.py. Tasks do not start once `after` more have started; SIZE_MAX for never.
void ascend_sim_stall_stream(aclrtStream stream, uint64_t after) {
  const Locked<Settings> settings;
  settings->of_streams[stream].tasks = after;
  settings->changed.notify_all();
}

void ascend_sim_stall_device(int device, uint64_t after) {
  const Locked<Settings> settings;
  settings->of_devices[device].tasks = after;
  settings->changed.notify_all();
}

// Each task waits for `delay` microseconds, and for a random time of at most `jitter` more.
void ascend_sim_slow_tasks(int delay, int jitter) {
  const Locked<Settings> settings;
  settings->delay = std::chrono::microseconds(delay);
  settings->jitter = std::chrono::microseconds(jitter);
}

void ascend_sim_unbounded_synchronize(bool unbounded) { unbounded_synchronize = unbounded; }

}  // extern "C"
