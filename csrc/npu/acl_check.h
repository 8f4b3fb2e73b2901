// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acl/acl.h>
#include <c10/util/Exception.h>

#include "../plan/call_context.h"

namespace llm_datadist {

// The runtime's message for the last error of this thread.
inline const char* acl_message() {
  const char* message = aclGetRecentErrMsg();
  return message != nullptr ? message : "no further message";
}

}  // namespace llm_datadist

// Raises RuntimeError if an ACL function did not return 0, with the function, its purpose, the code and the runtime's
// message.
#define CHECK_ACL(call, code, function, ...)                                                                          \
  do {                                                                                                                \
    const aclError acl_code = (code);                                                                                 \
    TORCH_CHECK(acl_code == ACL_SUCCESS, (call).op, ": ", function, " ", __VA_ARGS__, " failed with code ", acl_code, \
                (call).request(), ": ", ::llm_datadist::acl_message());                                               \
  } while (false)
