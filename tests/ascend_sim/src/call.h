// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "acl/acl_base_rt.h"
#include "acl/error_codes/rt_error_codes.h"

namespace ascend_sim {

/// Where an injected fault strikes: the call itself, or the task it put on a stream.
enum class FaultPoint { kCall, kTask };

/// Counts a call. Returns the code a test asked this call to fail with, else 0.
aclError EnterCall(const char* name);

/// Counts tasks that the call put on a stream, and questions it asked the driver about pointers.
void CountWork(const char* name, std::size_t tasks, std::size_t queries);

/// Which of the tasks of a call fails, and with what; a code of 0 means none.
struct TaskFault {
  aclError code = ACL_SUCCESS;
  std::size_t index = 0;
};
/// The failure that a test asked for among the next `tasks` tasks of `name`.
TaskFault TakeTaskFault(const char* name, std::size_t tasks);

/// Remembers `why` for aclGetRecentErrMsg on this thread, and returns `code`.
aclError Refuse(aclError code, std::string why);

/// Refuses an operator and prints its name on stderr. Only torch_npu's log names the missing aclnn function.
aclError RefuseOperator(const char* op);

/// The text of this thread's last refusal. Reading clears it, as the real runtime does.
std::string TakeErrorText();

void ArmFault(FaultPoint point, const char* name, uint64_t nth, aclError code);
uint64_t ArmedFaults();
/// "name calls tasks queries\n" for every function called so far.
std::string AllWork();
void ResetCalls();

/// The one object of its type. Never destroyed: worker threads and torch_npu's exit handlers call in while the process
/// exits.
template <typename T>
T& Immortal() {
  static T& object = *new T;
  return object;
}

/// The same for as long as its mutex is held.
template <typename T>
class Locked {
 public:
  T* operator->() const { return &object_; }

 private:
  T& object_ = Immortal<T>();
  const std::lock_guard<std::mutex> lock_{object_.mutex};
};

/// "0x7f.." for error texts.
std::string Hex(const void* ptr);

}  // namespace ascend_sim

/// The first line of every simulated function that returns an aclError.
#define ACL_CALL() \
  if (const aclError injected = ascend_sim::EnterCall(__func__)) return injected
