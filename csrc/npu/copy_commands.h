// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acl/acl.h>

#include "../plan/call_context.h"
#include "../plan/step.h"

namespace llm_datadist {

// Issues the copies of a step on a stream, in as few commands as possible. Call on the thread that makes the ACL calls.
// Raises if the runtime refuses a command; the earlier ones are then on the stream.
void issue_commands(const CallContext& call, const Step& step, aclrtMemcpyKind kind, int32_t device,
                    aclrtStream stream);

}  // namespace llm_datadist
