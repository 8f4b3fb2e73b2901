// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include "call.h"
#include "slice.h"

namespace llm_datadist {

// Bytes to copy, `width` of them, by their distance from a place in dst and from one in src. Of the spans that belong
// together, this one begins after `before` bytes of others.
struct Span {
  int64_t dst;
  int64_t src;
  int64_t width;
  int64_t before;
};

// Spans [begin, end) of a step, their bytes together, and those of the widest one.
struct SpanList {
  int64_t begin;
  int64_t end;
  int64_t bytes;
  int64_t widest;
};

// Where spans are copied: from a place in a tensor of src to one in a tensor of dst, `height` times, each time a pitch
// further on. With a height above 1, no span is wider than a pitch.
struct Base {
  char* dst;
  int64_t dst_pitch;
  const char* src;
  int64_t src_pitch;
  int64_t height;
  int64_t spans;  // which of the step's lists of spans
  Item item;      // the tensor of dst that the place is in, for messages
};

// Copies every span of a list at every base of the list. That product is never written out: it can be a thousand
// times longer than its factors.
struct Step {
  // Room for a cache of 160 separate tensors, so that planning an ordinary call takes nothing from the heap.
  c10::SmallVector<Base, 192> bases;
  c10::SmallVector<SpanList, 4> lists;
  c10::SmallVector<Span, 8> spans;
  int64_t bytes = 0;
  // The spans of each place must be copied one after the other, each in one piece, and may overlap their own source
  // (as memmove allows). Places are independent of one another in any step. If this is false, so are spans.
  bool in_order = false;

  // Written out: the one that C++ would make is preceded by filling all of that room with zeros.
  Step() {}

  c10::ArrayRef<Span> spans_of(const Base& base) const { return spans_of(base.spans); }
  c10::ArrayRef<Span> spans_of(size_t index) const {
    const SpanList& list = lists[index];
    return c10::ArrayRef<Span>(spans.data() + list.begin, spans.data() + list.end);
  }
};

// What a kernel has to do: steps to run one after the other. Every argument is checked, and every address lies inside
// its tensor or inside `staging`.
struct CopyPlan {
  c10::SmallVector<Step, 1> steps;
  at::Tensor staging;  // defined only if something has to be staged; on the device of dst
};

// Both check a call and turn it into a plan. They throw ValueError, naming what was wrong, with nothing written.
CopyPlan plan_copy(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, const Slice& slice,
                   int64_t batch_dim);
CopyPlan plan_batch(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                    int64_t batch_dim);

}  // namespace llm_datadist
