// SPDX-License-Identifier: Apache-2.0
//
// Note [Bases and spans]
// A step copies every span at every base. Example: two copies within a cache stacked as [3 tensors, 4 rows, 16 bytes],
// row 0 to row 2 and bytes [4, 12) of row 1 to row 3. The step has one base of height 3 and two spans:
//
//   base:  dst = src = address of the cache, dst_pitch = src_pitch = 64 bytes, height = 3
//   spans: {dst_offset 32, src_offset  0, width 16, bytes_before  0}
//          {dst_offset 52, src_offset 20, width  8, bytes_before 16}
//
//               +0      +16     +32     +48      +64
//   place 0     | row 0 | row 1 | row 2 | row 3 |        span 0: row 0 -> row 2
//   place 1     | row 0 | row 1 | row 2 | row 3 |        span 1: part of row 1 -> the same part of row 3
//   place 2     | row 0 | row 1 | row 2 | row 3 |
//
// Each repetition of a base is a place; here the places are the three tensors. The product of places and spans (here 6
// copies, 72 bytes) is never written out: 1,000 copies within 160 tensors are one base and 1,000 spans.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace llm_datadist {

// A copy of `width` bytes, relative to a base. `bytes_before` sums the widths of the earlier spans of its list.
struct Span {
  int64_t dst_offset;
  int64_t src_offset;
  int64_t width;
  int64_t bytes_before;
};

// Spans [begin, end) of a step, the sum of their widths, and the largest width.
struct SpanList {
  int64_t begin;
  int64_t end;
  int64_t bytes;
  int64_t widest;
};

// `height` places, the first at dst and src, each further one a pitch after the last. If height is above 1, no span of
// its list is wider than either pitch.
struct Base {
  char* dst;
  int64_t dst_pitch;
  const char* src;
  int64_t src_pitch;
  int64_t height;
  int64_t span_list;  // index of the step's span list that is copied at every place
  int64_t tensor;     // index of the dst tensor, for messages
};

struct Step {
  c10::SmallVector<Base, 4> bases;
  c10::SmallVector<SpanList, 4> span_lists;
  c10::SmallVector<Span, 4> spans;
  int64_t bytes = 0;
  // Places never depend on one another. If order_matters is false, the spans of a place do not either: they may run in
  // any order, in pieces and in parallel. If it is true, the spans of a place must be copied in the order of their
  // list, each whole, as by memmove: a span may overlap its own source.
  bool order_matters = false;

  const SpanList& span_list_of(const Base& base) const { return span_lists[base.span_list]; }
  c10::ArrayRef<Span> spans_of(const SpanList& list) const {
    return {spans.data() + list.begin, spans.data() + list.end};
  }
  c10::ArrayRef<Span> spans_of(const Base& base) const { return spans_of(span_list_of(base)); }

  // Appends a list of spans and returns its index.
  int64_t add_span_list(c10::ArrayRef<Span> list);

  // Appends a base, merged into the last one where it continues it.
  void add_base(const Base& base);

  // Sets `bytes` from the bases and their spans.
  void count_bytes();
};

// The work of one call: steps to run one after the other. All arguments have been checked, and every address lies
// inside its tensor or inside `staging`.
struct CopyPlan {
  c10::SmallVector<Step, 1> steps;
  at::Tensor staging;  // on the device of dst; defined only if copies are staged
};

// Calls `use(base, dst, src)` for every place of a step.
template <typename Use>
void for_each_place(const Step& step, const Use& use) {
  for (const Base& base : step.bases) {
    for (int64_t place = 0; place < base.height; ++place) {
      use(base, base.dst + place * base.dst_pitch, base.src + place * base.src_pitch);
    }
  }
}

// Splits a step in two at a buffer of `step.bytes` bytes: returns the step that gathers the sources in the buffer, and
// changes `step` into the one that copies from the buffer to the destinations.
Step stage_through(Step& step, const at::Tensor& buffer);

// The plan that reads the sources of `staged` into a new buffer, then runs `direct`, then writes `staged`. Either may
// be empty. `like` is a tensor of dst.
CopyPlan make_plan(Step&& direct, Step&& staged, const at::Tensor& like);

}  // namespace llm_datadist
