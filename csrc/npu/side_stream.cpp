// SPDX-License-Identifier: Apache-2.0
#include "side_stream.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "acl_check.h"

namespace llm_datadist {
namespace {

struct Device {
  std::timed_mutex finishing;  // held by who waits for late copies: they alone take them off
  std::mutex mutex;            // of what follows
  std::vector<std::shared_ptr<SideStream>> idle;
  std::deque<LateCopy> late;
};

// Never destroyed: at exit the runtime is gone before static objects are.
Device& state_of(int device) {
  static auto* const mutex = new std::mutex;
  static auto* const devices = new std::map<int, Device>;
  const std::lock_guard lock(*mutex);
  return (*devices)[device];
}

// Waits for the late copies of a device. Returns false if one is not done at the deadline.
bool finish_late(int index, Clock::time_point deadline) {
  Device& device = state_of(index);
  // Let go of when no lock is held any more: what it owns may be Python's, and have Python code run.
  std::vector<LateCopy> finished;
  const std::unique_lock finishing(device.finishing, deadline);
  if (!finishing) {
    return false;
  }
  while (true) {
    const LateCopy* copy = nullptr;  // others only add copies behind it
    {
      const std::lock_guard lock(device.mutex);
      if (device.late.empty()) {
        return true;
      }
      copy = &device.late.front();
    }
    if (copy->enqueued.wait_until(deadline) != std::future_status::ready) {
      return false;
    }
    const aclError code = synchronize_until(copy->side->stream, deadline);
    if (code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {
      return false;
    }
    if (code == ACL_SUCCESS) {
      give_back(index, copy->side);
    }
    const std::lock_guard lock(device.mutex);
    finished.push_back(std::move(device.late.front()));
    device.late.pop_front();
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

std::shared_ptr<SideStream> borrow_side_stream(const Call& call, int device, Clock::time_point deadline) {
  if (!finish_late(device, deadline)) {
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

void give_back(int device, std::shared_ptr<SideStream> side) {
  Device& state = state_of(device);
  const std::lock_guard lock(state.mutex);
  state.idle.push_back(std::move(side));
}

void leave(int device, LateCopy copy) {
  Device& state = state_of(device);
  const std::lock_guard lock(state.mutex);
  state.late.push_back(std::move(copy));
}

aclError synchronize_until(aclrtStream stream, Clock::time_point deadline) {
  // At least one millisecond: for 0, versions of the runtime differ between "look once" and refusing it.
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return aclrtSynchronizeStreamWithTimeout(stream, static_cast<int32_t>(std::max<int64_t>(1, left)));
}

}  // namespace llm_datadist
