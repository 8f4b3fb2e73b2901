// SPDX-License-Identifier: Apache-2.0
#include "context.h"

#include <map>

#include "call.h"
#include "device.h"
#include "stream.h"

namespace ascend_sim {
namespace {

constexpr std::size_t kEvents = 65536;

struct Contexts {
  std::mutex mutex;
  std::map<int, Context*> by_device;
};

}  // namespace

Context& Context::Of(int device) {
  const Locked<Contexts> contexts;
  Context*& context = contexts->by_device[device];
  if (!context) context = new Context(device);
  return *context;
}

void Context::Lose(aclError error, const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (lost_) return;
    error_ = error;
    why_ = why;
    lost_ = true;
    ++losses_;
    event_returned_.notify_all();
  }
  for (const auto& stream : Stream::AllOf(device_)) stream->Abandon();
}

aclError Context::Check() {
  std::lock_guard lock(mutex_);
  return lost_ ? Refuse(error_,
                        "the context of device " + std::to_string(device_) + " is lost since a task failed: " + why_)
               : ACL_SUCCESS;
}

void Context::Revive() {
  if (!lost_) return;
  for (const auto& stream : Stream::AllOf(device_)) stream->WaitUntilIdle();
  std::lock_guard lock(mutex_);
  lost_ = false;
}

aclError Context::TakeStreams(std::size_t count) {
  const std::size_t limit = GetMachine().streams;
  std::lock_guard lock(mutex_);
  if (count > limit - streams_) {
    return Refuse(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, std::to_string(streams_) + " of the " + std::to_string(limit) +
                                                        " streams of the device are in use, " + std::to_string(count) +
                                                        " more are needed");
  }
  streams_ += count;
  return ACL_SUCCESS;
}

void Context::ReturnStreams(std::size_t count) {
  std::lock_guard lock(mutex_);
  streams_ -= count;
}

aclError Context::TakeEvent() {
  {
    std::unique_lock lock(mutex_);
    if (events_ == kEvents) {
      const BlockedSubmitter blocked;
      event_returned_.wait(lock, [this] { return events_ < kEvents || lost_; });
    }
    if (!lost_) {
      ++events_;
      return ACL_SUCCESS;
    }
  }
  return Check();
}

void Context::ReturnEvent() {
  std::lock_guard lock(mutex_);
  --events_;
  event_returned_.notify_all();
}

}  // namespace ascend_sim
