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

/// Checks copies, logs them, and puts them on the stream: a single one as its tasks, several as one task, which is what
/// a batch is where UB connects host and device.
///
/// Note [Tasks of a copy]
/// The device copies one row of a strided copy in a task, and up to 4 GiB of a plain one. Between host and device a
/// task takes 32,768 rows, or 64 MiB (256 MiB by UB).
///
/// Note [Pageable memory]
/// From CANN 8.5 on, the runtime synchronises the stream and copies before the call returns. Older versions have tasks
/// that read and write the caller's memory when they run.
aclError SubmitCopies(Stream& stream, std::vector<Copy> copies);

/// Checks a copy for a stream, as SubmitCopies does, and does nothing else.
aclError CheckCopyOn(Stream& stream, Copy* copy);

/// 107000 unless `count` bytes from `ptr` lie in one live allocation and are at most `max_count`.
aclError CheckFill(void* ptr, std::size_t max_count, std::size_t count);
aclError Fill(void* ptr, int value, std::size_t count);

/// Adds a line to the log: name kind dst dpitch src spitch width height stream device.
void LogCopy(const Copy& copy, aclrtStream stream, int device);
std::string CopyLog();
void ResetCopyLog();

}  // namespace ascend_sim
