// SPDX-License-Identifier: Apache-2.0
#include "side_stream.h"

#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "acl_check.h"

namespace llm_datadist {
namespace {

struct Pool {
  std::mutex mutex;
  std::map<int, std::vector<std::unique_ptr<SideStream>>> by_device;
};

// Never destroyed: at exit the runtime is gone before static objects are.
Pool& pool() {
  static auto* const instance = new Pool;
  return *instance;
}

bool idle(const SideStream& side) {
  aclrtStreamStatus status = ACL_STREAM_STATUS_RESERVED;
  return aclrtStreamQuery(side.stream, &status) == ACL_SUCCESS && status == ACL_STREAM_STATUS_COMPLETE;
}

std::unique_ptr<SideStream> idle_or_new(const Call& call, std::vector<std::unique_ptr<SideStream>>& sides) {
  // One that timed out is busy until its device recovers; one that failed never becomes idle and is left where it is.
  for (auto& side : sides) {
    if (idle(*side)) {
      std::swap(side, sides.back());
      auto found = std::move(sides.back());
      sides.pop_back();
      found->in_use = nullptr;
      return found;
    }
  }
  auto side = std::make_unique<SideStream>();
  CHECK_ACL(call, aclrtCreateStream(&side->stream), "aclrtCreateStream", "for a blocking copy");
  CHECK_ACL(call, aclrtCreateEventExWithFlag(&side->ready, ACL_EVENT_SYNC), "aclrtCreateEventExWithFlag",
            "for a blocking copy");
  return side;
}

}  // namespace

std::shared_ptr<SideStream> borrow_side_stream(const Call& call, int device) {
  const std::lock_guard lock(pool().mutex);
  auto side = idle_or_new(call, pool().by_device[device]);
  const auto give_back = [device](SideStream* lent) {
    const std::lock_guard lock(pool().mutex);
    pool().by_device[device].emplace_back(lent);
  };
  return {side.release(), give_back};
}

}  // namespace llm_datadist
