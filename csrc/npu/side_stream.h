// SPDX-License-Identifier: Apache-2.0
//
// Note [Unfinished copies]
// After a timeout, a blocking copy is still queued or running. Until it ends:
// - the memory that it reads and writes is kept alive;
// - later work on the stream of the call runs after it, because that stream waits for it;
// - no other blocking copy starts on its device. So copies stay in order, its error is not reported to another call,
//   and there are never more side streams than threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <acl/acl.h>

#include <future>
#include <memory>
#include <vector>

#include "../host/host_copy.h"
#include "../plan/call_context.h"

namespace llm_datadist {

// A stream for blocking copies. Synchronising it waits for these copies alone and returns only their errors. Its events
// order it with the caller's stream, before and after the copies.
struct SideStream {
  aclrtStream stream = nullptr;
  aclrtEvent before = nullptr;
  aclrtEvent after = nullptr;

  SideStream() = default;
  SideStream(const SideStream&) = delete;
  ~SideStream();
};

// A blocking copy that timed out or failed, and is not known to have ended.
struct UnfinishedCopy {
  std::shared_future<void> issued;  // ready when it is on the stream
  std::shared_ptr<SideStream> side;
  std::vector<at::Tensor> in_use;
};

// Waits for the unfinished copies of the current device, then returns an idle side stream. Returns nothing if the
// deadline passed first.
std::shared_ptr<SideStream> acquire_side_stream(const CallContext& call, int device, Clock::time_point deadline);

// Returns an idle stream to the pool. A stream that failed is not returned, which destroys it.
void release_side_stream(int device, std::shared_ptr<SideStream> side);

// Keeps an unfinished copy until acquire_side_stream sees it end.
void park(int device, UnfinishedCopy copy);

// Waits for a stream. Returns compat::kStreamSyncTimeout if it still has work at the deadline.
aclError synchronize_until(aclrtStream stream, Clock::time_point deadline);

}  // namespace llm_datadist
