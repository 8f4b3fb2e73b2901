// SPDX-License-Identifier: Apache-2.0
#include "side_stream.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "../compat.h"
#include "acl_check.h"

namespace llm_datadist {
namespace {

struct Device {
  std::timed_mutex waiting;  // held to wait for unfinished copies and remove them
  std::mutex mutex;          // guards the members below
  std::vector<std::shared_ptr<SideStream>> idle;
  std::deque<UnfinishedCopy> unfinished;
};

// Never destroyed: at exit, the runtime is gone before static objects are destroyed.
Device& state_of(int device) {
  static auto* const mutex = new std::mutex;
  static auto* const devices = new std::map<int, Device>;
  const std::lock_guard lock(*mutex);
  return (*devices)[device];
}

// Waits for the unfinished copies of a device. Returns false if the deadline passed first.
bool wait_for_unfinished(int index, Clock::time_point deadline) {
  Device& device = state_of(index);
  // Destroyed after all locks are released: releasing a tensor may run Python code.
  std::vector<UnfinishedCopy> finished;
  const std::unique_lock waiting(device.waiting, deadline);
  if (!waiting) {
    return false;
  }
  while (true) {
    const UnfinishedCopy* copy = nullptr;  // other threads only append behind it
    {
      const std::lock_guard lock(device.mutex);
      if (device.unfinished.empty()) {
        return true;
      }
      copy = &device.unfinished.front();
    }
    if (copy->issued.wait_until(deadline) != std::future_status::ready) {
      return false;
    }
    const aclError code = synchronize_until(copy->side->stream, deadline);
    if (code == compat::kStreamSyncTimeout) {
      return false;
    }
    if (code == ACL_SUCCESS) {
      release_side_stream(index, copy->side);
    }
    const std::lock_guard lock(device.mutex);
    finished.push_back(std::move(device.unfinished.front()));
    device.unfinished.pop_front();
  }
}

}  // namespace

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

std::shared_ptr<SideStream> acquire_side_stream(const CallContext& call, int device, Clock::time_point deadline) {
  if (!wait_for_unfinished(device, deadline)) {
    return nullptr;
  }
  {
    Device& state = state_of(device);
    const std::lock_guard lock(state.mutex);
    if (!state.idle.empty()) {
      auto side = std::move(state.idle.back());
      state.idle.pop_back();
      return side;
    }
  }
  auto side = std::make_shared<SideStream>();
  CHECK_ACL(call, aclrtCreateStream(&side->stream), "aclrtCreateStream", "for a blocking copy");
  for (aclrtEvent* event : {&side->before, &side->after}) {
    CHECK_ACL(call, aclrtCreateEventExWithFlag(event, ACL_EVENT_SYNC), "aclrtCreateEventExWithFlag",
              "for a blocking copy");
  }
  return side;
}

void release_side_stream(int device, std::shared_ptr<SideStream> side) {
  Device& state = state_of(device);
  const std::lock_guard lock(state.mutex);
  state.idle.push_back(std::move(side));
}

void park(int device, UnfinishedCopy copy) {
  Device& state = state_of(device);
  const std::lock_guard lock(state.mutex);
  state.unfinished.push_back(std::move(copy));
}

aclError synchronize_until(aclrtStream stream, Clock::time_point deadline) {
  // At least one millisecond: versions of the runtime differ in whether they poll or refuse a timeout of 0.
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return aclrtSynchronizeStreamWithTimeout(stream, static_cast<int32_t>(std::max<int64_t>(1, left)));
}

}  // namespace llm_datadist
