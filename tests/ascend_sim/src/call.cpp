// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include <cstdio>
#include <list>
#include <map>
#include <mutex>
#include <sstream>

namespace ascend_sim {
namespace {

struct Fault {
  FaultPoint point;
  std::string name;
  uint64_t remaining;  // strikes at that call or task from now on
  aclError code;
};

struct Work {
  uint64_t calls = 0;
  uint64_t tasks = 0;
  uint64_t queries = 0;
};

struct Book {
  std::mutex mutex;
  std::map<std::string, Work> work;
  std::list<Fault> faults;
};

thread_local std::string error_text;

// Counts down every fault of the name, so that several can be armed at once.
TaskFault TakeFault(const Locked<Book>& book, FaultPoint point, const std::string& name, std::size_t count) {
  TaskFault taken;
  for (auto fault = book->faults.begin(); fault != book->faults.end();) {
    const bool met = fault->point == point && fault->name == name;
    const bool strikes = met && fault->remaining <= count;
    if (strikes) taken = {fault->code, fault->remaining - 1};
    if (met) fault->remaining -= strikes ? 0 : count;
    fault = strikes ? book->faults.erase(fault) : std::next(fault);
  }
  return taken;
}

}  // namespace

aclError EnterCall(const char* name) {
  const Locked<Book> book;
  ++book->work[name].calls;
  const aclError code = TakeFault(book, FaultPoint::kCall, name, 1).code;
  return code ? Refuse(code, std::string(name) + ": failure injected by a test") : ACL_SUCCESS;
}

void CountWork(const char* name, std::size_t tasks, std::size_t queries) {
  const Locked<Book> book;
  book->work[name].tasks += tasks;
  book->work[name].queries += queries;
}

TaskFault TakeTaskFault(const char* name, std::size_t tasks) {
  const Locked<Book> book;
  return TakeFault(book, FaultPoint::kTask, name, tasks);
}

aclError Refuse(aclError code, std::string why) {
  error_text = std::move(why);
  return code;
}

aclError RefuseOperator(const char* op) {
  const std::string why = std::string("the compute operator ") + op +
                          " is not simulated; run with ASCEND_GLOBAL_LOG_LEVEL=2 to see the aclnn function it wants";
  std::fprintf(stderr, "ascend_sim: %s\n", why.c_str());
  return Refuse(ACL_ERROR_FEATURE_UNSUPPORTED, why);
}

std::string TakeErrorText() {
  std::string text;
  text.swap(error_text);
  return text;
}

void ArmFault(FaultPoint point, const char* name, uint64_t nth, aclError code) {
  const Locked<Book> book;
  book->faults.push_back({point, name, nth, code});
}

uint64_t ArmedFaults() {
  const Locked<Book> book;
  return book->faults.size();
}

std::string AllWork() {
  const Locked<Book> book;
  std::ostringstream text;
  for (const auto& [name, work] : book->work)
    text << name << ' ' << work.calls << ' ' << work.tasks << ' ' << work.queries << '\n';
  return text.str();
}

void ResetCalls() {
  const Locked<Book> book;
  book->work.clear();
  book->faults.clear();
}

std::string Hex(const void* ptr) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", ptr);
  return text;
}

}  // namespace ascend_sim

extern "C" const char* aclGetRecentErrMsg() {
  thread_local std::string shown;
  shown = ascend_sim::TakeErrorText();
  if (!shown.empty()) shown = "ascend_sim: " + shown;
  return shown.c_str();
}
