// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

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

/// Checks a copy for a stream. 107000 with a reason when a pointer is not what the kind says, or a row leaves its
/// allocation.
aclError CheckCopyOn(Stream& stream, const Copy& copy);

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

}  // namespace ascend_sim
