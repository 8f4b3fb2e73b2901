// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acl/acl.h>
#include <c10/util/Exception.h>

#include "../plan/call.h"

namespace llm_datadist {

// The runtime's own words about the last error of this thread.
inline const char* acl_message() {
  const char* message = aclGetRecentErrMsg();
  return message != nullptr ? message : "no further message";
}

}  // namespace llm_datadist

// Throws a RuntimeError if an ACL function did not return 0: which function, what for, the code, the runtime's text.
#define CHECK_ACL(call, code, function, ...)                                                                          \
  do {                                                                                                                \
    const aclError acl_code = (code);                                                                                 \
    TORCH_CHECK(acl_code == ACL_SUCCESS, (call).op, ": ", function, " ", __VA_ARGS__, " failed with code ", acl_code, \
                (call).request(), ": ", ::llm_datadist::acl_message());                                               \
  } while (false)
