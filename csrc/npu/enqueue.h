// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acl/acl.h>

#include "../plan/plan.h"

namespace llm_datadist {

// Enqueues the copies of a phase on a stream, in few calls of the runtime. Call it on the thread that makes the ACL
// calls. Raises RuntimeError if the runtime refuses a call; the copies of earlier calls are then on the stream.
void enqueue(const CallContext& call, const Phase& phase, aclrtMemcpyKind kind, int32_t device, aclrtStream stream);

}  // namespace llm_datadist
