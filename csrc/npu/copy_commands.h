// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acl/acl.h>

#include "../plan/copy_plan.h"

namespace llm_datadist {

// Hands a step to the runtime, in as few commands as it takes. Called on the thread that makes the ACL calls. Throws if
// the runtime refuses a command; those before it are then on the stream.
void enqueue_copies(const Call& call, const Step& step, aclrtMemcpyKind kind, int32_t device, aclrtStream stream);

}  // namespace llm_datadist
