// SPDX-License-Identifier: Apache-2.0
#include "side_stream.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "acl_check.h"
#include "python_signals.h"

namespace llm_datadist {
namespace {

// How long a wait goes on before it looks at the device and at Python's signals.
constexpr auto kSlice = std::chrono::milliseconds(10);

struct Device {
  std::mutex mutex;
  std::vector<std::shared_ptr<SideStream>> idle;
  std::deque<BlockingCopy> unfinished;
};

// Never destroyed: at exit, the runtime is gone before static objects are destroyed.
Device& state_of(int device) {
  static auto* const mutex = new std::mutex;
  static auto* const devices = new std::map<int, Device>;
  const std::lock_guard lock(*mutex);
  return (*devices)[device];
}

bool is_ready(const std::shared_future<Ended>& ended) {
  return ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

}  // namespace

std::shared_ptr<SideStream> SideStream::create(const CallContext& call, int device) {
  const std::shared_ptr<SideStream> side(new SideStream(device));
  CHECK_ACL(call, aclrtGetCurrentContext(&side->context_), "aclrtGetCurrentContext", "for a blocking copy");
  CHECK_ACL(call, aclrtCreateStream(&side->stream), "aclrtCreateStream", "for a blocking copy");
  for (aclrtEvent* event : {&side->before, &side->after}) {
    CHECK_ACL(call, aclrtCreateEventExWithFlag(event, ACL_EVENT_SYNC), "aclrtCreateEventExWithFlag",
              "for a blocking copy");
  }
  std::thread([side] { side->work(); }).detach();
  return side;
}

SideStream::~SideStream() {
  for (aclrtEvent event : {before, after}) {
    if (event != nullptr) {
      aclrtDestroyEvent(event);
    }
  }
  if (stream != nullptr) {
    aclrtDestroyStream(stream);
  }
}

void SideStream::tell_end(std::shared_ptr<std::promise<Ended>> promise, std::exception_ptr not_issued) {
  const std::lock_guard lock(mutex_);
  promise_ = std::move(promise);
  not_issued_ = std::move(not_issued);
  told_.notify_one();
}

void SideStream::work() {
  aclrtSetCurrentContext(context_);
  while (true) {
    std::unique_lock lock(mutex_);
    // Not wait: its symbol is newer than the oldest libstdc++ that is served.
    if (!told_.wait_for(lock, std::chrono::hours(1), [this] { return promise_ != nullptr; })) {
      continue;
    }
    const auto promise = std::exchange(promise_, nullptr);
    Ended ended{std::exchange(not_issued_, nullptr)};
    lock.unlock();
    ended.code = aclrtSynchronizeStream(stream);
    if (ended.code != ACL_SUCCESS) {
      ended.message = acl_message();
    }
    release_side_stream(shared_from_this());
    promise->set_value(std::move(ended));
  }
}

bool BlockingCopy::wait(const CallContext& call, const Deadline& deadline) const {
  while (true) {
    const auto slice_end = Clock::now() + kSlice;
    if (ended.wait_until(deadline ? std::min(*deadline, slice_end) : slice_end) == std::future_status::ready) {
      return true;
    }
    aclrtStreamStatus status;
    const aclError code = aclrtStreamQuery(side->stream, &status);
    check_device(call, side->device, "aclrtStreamQuery", code, code == ACL_SUCCESS ? "" : acl_message());
    if (deadline && (Clock::now() >= *deadline || python_signal_raised())) {
      return false;
    }
  }
}

std::shared_ptr<SideStream> acquire_side_stream(const CallContext& call, int device, const Deadline& deadline) {
  Device& state = state_of(device);
  while (true) {
    std::vector<BlockingCopy> ended;  // destroyed after the lock is released: releasing a tensor may run Python code
    std::optional<BlockingCopy> unfinished;
    {
      const std::lock_guard lock(state.mutex);
      while (!state.unfinished.empty() && is_ready(state.unfinished.front().ended)) {
        ended.push_back(std::move(state.unfinished.front()));
        state.unfinished.pop_front();
      }
      if (!state.unfinished.empty()) {
        unfinished = state.unfinished.front();
      } else if (!state.idle.empty()) {
        auto side = std::move(state.idle.back());
        state.idle.pop_back();
        return side;
      }
    }
    if (!unfinished) {
      return SideStream::create(call, device);
    }
    if (!unfinished->wait(call, deadline)) {
      return nullptr;
    }
  }
}

void release_side_stream(std::shared_ptr<SideStream> side) {
  Device& state = state_of(side->device);
  const std::lock_guard lock(state.mutex);
  state.idle.push_back(std::move(side));
}

void park(BlockingCopy copy) {
  Device& state = state_of(copy.side->device);
  const std::lock_guard lock(state.mutex);
  state.unfinished.push_back(std::move(copy));
}

void check_device(const CallContext& call, int device, const char* function, aclError code,
                  const std::string& message) {
  TORCH_CHECK(code == ACL_SUCCESS, call.op, ": ", function, " of a blocking copy failed with code ", code,
              call.request(), ": ", message, "; npu:", device,
              " is lost to this process: no work of it runs there any more, on any stream. Restart the process");
}

}  // namespace llm_datadist
