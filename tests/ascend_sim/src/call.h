// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <sstream>
#include <string>

#include "acl/acl_base_rt.h"
#include "acl/error_codes/rt_error_codes.h"

namespace ascend_sim {

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

/// Adds a line to the log of accepted copies and launches, which ../__init__.py reads.
void Log(const std::string& line);

/// Forgets the counts, the log and the faults.
void ResetCalls();

/// The text of this thread's last refusal. Reading clears it, as the real runtime does.
std::string& ErrorText();
std::string TakeErrorText();

/// Remembers why, for aclGetRecentErrMsg on this thread, and returns `code`.
template <typename... Parts>
aclError Refuse(aclError code, const Parts&... why) {
  std::ostringstream text;
  (text << ... << why);
  ErrorText() = text.str();
  return code;
}

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

}  // namespace ascend_sim

/// The first line of every simulated function that returns an aclError.
#define ACL_CALL() \
  if (const aclError injected = ascend_sim::EnterCall(__func__)) return injected
