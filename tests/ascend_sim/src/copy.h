// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "acl/acl_rt.h"
#include "stream.h"

namespace ascend_sim {

/// `height` rows of `width` bytes, `dpitch` and `spitch` bytes apart. A plain copy is one row.
struct Copy {
  const char* name;  // the ACL call
  aclrtMemcpyKind kind;
  void* dst;
  std::size_t dpitch;
  const void* src;
  std::size_t spitch;
  std::size_t width;
  std::size_t height;
};

/// Checks, logs and copies on the calling thread. 107000 with a reason when a pointer is not what the kind says, or a
/// row leaves its allocation.
aclError CopyNow(Copy copy, int device);

/// Checks, logs and submits copies as one task. With pageable host memory it does what the real runtime does instead:
/// synchronises the stream, and copies before it returns.
aclError SubmitCopies(Stream& stream, std::vector<Copy> copies);

/// 107000 unless `count` bytes from `ptr` lie in one live allocation and are at most `max_count`.
aclError CheckFill(void* ptr, std::size_t max_count, std::size_t count);
aclError Fill(void* ptr, int value, std::size_t count);

/// Adds a line to the log: name kind dst dpitch src spitch width height stream device.
void LogCopy(const Copy& copy, aclrtStream stream, int device);
std::string CopyLog();
void ResetCopyLog();

}  // namespace ascend_sim
