// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acl/acl.h>

#include <memory>

#include "../plan/call.h"

namespace llm_datadist {

// A stream of our own, for copies that somebody waits for: synchronising it waits for those copies alone, and tells
// their errors and nobody else's.
struct SideStream {
  aclrtStream stream = nullptr;
  aclrtEvent ready = nullptr;  // recorded on the stream of the caller; the copies wait for it
  // What the copies on the stream still use. Where nobody waits for them any more, it lives until they are done.
  std::shared_ptr<void> in_use;
};

// Lends a side stream of the current device, on which nothing is left to run. It goes back when its last owner lets go
// of it, with work on it or without: a task that is still to put copies on it is one of its owners.
std::shared_ptr<SideStream> borrow_side_stream(const Call& call, int device);

}  // namespace llm_datadist
