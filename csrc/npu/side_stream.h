// SPDX-License-Identifier: Apache-2.0
//
// Note [Late copies]
// A blocking copy that nobody waits for any more is still to come, or runs. Three things hold until it is done:
// - what it reads and writes is kept alive;
// - later work of the stream it was called on comes after it, because that stream waits for it;
// - no other blocking copy begins on its device. So copies come one after the other also when one is late, its error is
//   nobody else's, and there are never more side streams than threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <acl/acl.h>

#include <future>
#include <memory>
#include <vector>

#include "../plan/call.h"
#include "../plan/host_copy.h"

namespace llm_datadist {

// A stream of our own, for copies that somebody waits for: synchronising it waits for those copies alone, and tells
// their errors and nobody else's. Its events order it with the caller's stream, before the copies and after.
struct SideStream {
  aclrtStream stream = nullptr;
  aclrtEvent before = nullptr;
  aclrtEvent after = nullptr;

  SideStream() = default;
  SideStream(const SideStream&) = delete;
  ~SideStream();
};

// A copy that has not been seen to end.
struct LateCopy {
  std::shared_future<void> enqueued;  // whether its commands are on the stream
  std::shared_ptr<SideStream> side;
  std::vector<at::Tensor> in_use;
};

// Lends a side stream of the current device, with nothing on it, when no late copy is left there. Returns nothing if
// that takes longer than the deadline.
std::shared_ptr<SideStream> borrow_side_stream(const Call& call, int device, Clock::time_point deadline);

// Gives back a stream with nothing left on it. One that failed is let go of instead.
void give_back(int device, std::shared_ptr<SideStream> side);

void leave(int device, LateCopy copy);

// Waits for a stream. Returns ACL_ERROR_RT_STREAM_SYNC_TIMEOUT if it has work left at the deadline.
aclError synchronize_until(aclrtStream stream, Clock::time_point deadline);

}  // namespace llm_datadist
