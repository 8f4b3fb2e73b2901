// SPDX-License-Identifier: Apache-2.0
#include <mutex>
#include <sstream>

#include "copy.h"

namespace ascend_sim {
namespace {

struct Log {
  std::mutex mutex;
  std::string lines;
};

}  // namespace

void LogCopy(const Copy& copy, aclrtStream stream, int device) {
  const auto number = [](const void* ptr) { return reinterpret_cast<uintptr_t>(ptr); };
  std::ostringstream line;
  line << copy.name << ' ' << copy.kind << ' ' << number(copy.dst) << ' ' << copy.dpitch << ' ' << number(copy.src)
       << ' ' << copy.spitch << ' ' << copy.width << ' ' << copy.height << ' ' << number(stream) << ' ' << device
       << '\n';
  const Locked<Log> log;
  log->lines += line.str();
}

std::string CopyLog() {
  const Locked<Log> log;
  return log->lines;
}

void ResetCopyLog() {
  const Locked<Log> log;
  log->lines.clear();
}

}  // namespace ascend_sim
