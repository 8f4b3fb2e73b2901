// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "acl/acl_base_rt.h"
#include "acl/error_codes/rt_error_codes.h"

namespace ascend_sim {

/// Where an injected fault strikes: the call itself, or the task it put on a stream.
enum class FaultPoint { kCall, kTask };

/// Counts a call. Returns the code a test asked this call to fail with, else 0.
aclError EnterCall(const char* name);

/// Returns the code a test asked the task submitted by `name` to fail with, else 0.
aclError TakeTaskFault(const char* name);

/// Remembers `why` for aclGetRecentErrMsg on this thread, and returns `code`.
aclError Refuse(aclError code, std::string why);

/// Refuses an operator and prints its name on stderr. Only torch_npu's log names the missing aclnn function.
aclError RefuseOperator(const char* op);

/// The text of this thread's last refusal. Reading clears it, as the real runtime does.
std::string TakeErrorText();

void ArmFault(FaultPoint point, const char* name, uint64_t nth, aclError code);
uint64_t ArmedFaults();
/// "name count\n" for every call made so far.
std::string AllCallCounts();
void ResetCalls();

/// "0x7f.." for error texts.
std::string Hex(const void* ptr);

}  // namespace ascend_sim

/// The first line of every simulated function that returns an aclError.
#define ACL_CALL() \
  if (const aclError injected = ascend_sim::EnterCall(__func__)) return injected
