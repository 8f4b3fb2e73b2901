// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include <list>
#include <map>
#include <utility>

using namespace ascend_sim;

namespace {

struct Fault {
  bool in_task;  // else in the call
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
  std::string log;
};

// Counts down every fault of the name, so that several can be armed at once.
TaskFault TakeFault(const Locked<Book>& book, bool in_task, const std::string& name, std::size_t count) {
  TaskFault taken;
  for (auto fault = book->faults.begin(); fault != book->faults.end();) {
    const bool met = fault->in_task == in_task && fault->name == name;
    const bool strikes = met && fault->remaining <= count;
    if (strikes) taken = {fault->code, fault->remaining - 1};
    if (met) fault->remaining -= strikes ? 0 : count;
    fault = strikes ? book->faults.erase(fault) : std::next(fault);
  }
  return taken;
}

// The text stays valid until this thread's next call.
const char* Keep(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

namespace ascend_sim {

aclError EnterCall(const char* name) {
  const Locked<Book> book;
  ++book->work[name].calls;
  const aclError code = TakeFault(book, false, name, 1).code;
  return code ? Refuse(code, name, ": failure injected by a test") : ACL_SUCCESS;
}

void CountWork(const char* name, std::size_t tasks, std::size_t queries) {
  const Locked<Book> book;
  book->work[name].tasks += tasks;
  book->work[name].queries += queries;
}

TaskFault TakeTaskFault(const char* name, std::size_t tasks) {
  const Locked<Book> book;
  return TakeFault(book, true, name, tasks);
}

void Log(const std::string& line) {
  const Locked<Book> book;
  book->log += line + '\n';
}

void ResetCalls() {
  const Locked<Book> book;
  book->work.clear();
  book->faults.clear();
  book->log.clear();
}

std::string& ErrorText() {
  thread_local std::string text;
  return text;
}

std::string TakeErrorText() { return std::exchange(ErrorText(), {}); }

}  // namespace ascend_sim

extern "C" {

const char* aclGetRecentErrMsg() {
  const std::string text = TakeErrorText();
  return Keep(text.empty() ? text : "ascend_sim: " + text);
}

// For tests, through ../__init__.py. "name calls tasks queries" for every function called so far.
const char* ascend_sim_work() {
  const Locked<Book> book;
  std::ostringstream text;
  for (const auto& [name, work] : book->work)
    text << name << ' ' << work.calls << ' ' << work.tasks << ' ' << work.queries << '\n';
  return Keep(text.str());
}

const char* ascend_sim_log() {
  const Locked<Book> book;
  return Keep(book->log);
}

void ascend_sim_arm_fault(bool in_task, const char* name, uint64_t nth, int code) {
  const Locked<Book> book;
  book->faults.push_back({in_task, name, nth, code});
}

uint64_t ascend_sim_armed_faults() {
  const Locked<Book> book;
  return book->faults.size();
}

}  // extern "C"
