// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include <cstdio>
#include <list>
#include <map>
#include <mutex>

namespace ascend_sim {
namespace {

struct Fault {
  FaultPoint point;
  std::string name;
  uint64_t remaining;  // strikes when it reaches 0
  aclError code;
};

struct Book {
  std::mutex mutex;
  std::map<std::string, uint64_t> counts;
  std::list<Fault> faults;
};

// Never destroyed: worker threads and torch_npu's own exit handlers still call in while the process exits.
Book& GetBook() {
  static Book& book = *new Book;
  return book;
}

thread_local std::string error_text;

// Counts down every fault of the name, so that several can be armed at once.
aclError TakeFault(Book& book, FaultPoint point, const std::string& name) {
  aclError code = ACL_SUCCESS;
  for (auto fault = book.faults.begin(); fault != book.faults.end();) {
    const bool strikes = fault->point == point && fault->name == name && --fault->remaining == 0;
    if (strikes) code = fault->code;
    fault = strikes ? book.faults.erase(fault) : std::next(fault);
  }
  return code;
}

}  // namespace

aclError EnterCall(const char* name) {
  Book& book = GetBook();
  std::lock_guard lock(book.mutex);
  ++book.counts[name];
  const aclError code = TakeFault(book, FaultPoint::kCall, name);
  return code ? Refuse(code, std::string(name) + ": failure injected by a test") : ACL_SUCCESS;
}

aclError TakeTaskFault(const char* name) {
  Book& book = GetBook();
  std::lock_guard lock(book.mutex);
  return TakeFault(book, FaultPoint::kTask, name);
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
  Book& book = GetBook();
  std::lock_guard lock(book.mutex);
  book.faults.push_back({point, name, nth, code});
}

uint64_t ArmedFaults() {
  Book& book = GetBook();
  std::lock_guard lock(book.mutex);
  return book.faults.size();
}

std::string AllCallCounts() {
  Book& book = GetBook();
  std::lock_guard lock(book.mutex);
  std::string text;
  for (const auto& [name, count] : book.counts) text += name + " " + std::to_string(count) + "\n";
  return text;
}

void ResetCalls() {
  Book& book = GetBook();
  std::lock_guard lock(book.mutex);
  book.counts.clear();
  book.faults.clear();
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
