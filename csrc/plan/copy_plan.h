// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include "call.h"

namespace llm_datadist {

// `height` ranges of `width` bytes; the next range begins `dst_pitch` bytes further on one side and `src_pitch` on the
// other. With more than one range, no pitch is smaller than the width.
struct StridedCopy {
  char* dst;
  int64_t dst_pitch;
  const char* src;
  int64_t src_pitch;
  int64_t width;
  int64_t height;
  int64_t tensor;  // where the first range belongs, for messages: dst[tensor] and src[tensor]
};

// What a kernel has to do, in any order and on any number of threads: every argument is checked, every address lies
// inside its tensor, and no range that is written is read or written by another range of the plan.
struct CopyPlan {
  // Room for a cache of 160 separate tensors, so that planning an ordinary call takes nothing from the heap.
  c10::SmallVector<StridedCopy, 192> copies;
  int64_t bytes = 0;
  // Some range overlaps its own source without being equal to it (a shift by less than its width): such ranges want
  // memmove or a staging buffer, one range at a time.
  bool shifts = false;
};

// The four numbers of a copy, in the order in which copy_cache takes them. offset and size are bytes.
struct Slice {
  int64_t dst_batch_index;
  int64_t src_batch_index;
  int64_t offset;
  int64_t size;
};

// Checks a call and turns it into a plan. Throws ValueError, naming what was wrong, with nothing written.
CopyPlan plan_copy(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, const Slice& slice,
                   int64_t batch_dim);

}  // namespace llm_datadist
