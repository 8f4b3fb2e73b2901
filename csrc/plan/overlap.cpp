// SPDX-License-Identifier: Apache-2.0
#include "overlap.h"

#include <algorithm>
#include <cstdlib>

namespace llm_datadist {
namespace {

// Addresses of different allocations are compared here, which pointers do not allow and integers do.
using Address = uintptr_t;

struct Span {
  Address begin;
  Address end;
};

Span span_of(const char* first, int64_t pitch, int64_t width, int64_t height) {
  const auto begin = reinterpret_cast<Address>(first);
  return {begin, begin + (height - 1) * pitch + width};
}

bool disjoint(const Span& a, const Span& b) { return a.end <= b.begin || b.end <= a.begin; }

Span hull(const Span& a, const Span& b) { return {std::min(a.begin, b.begin), std::max(a.end, b.end)}; }

// Whether the ranges of one strided copy are clear of one another, seen from their distances alone: both sides step by
// the same pitch, and the sources lie in the gaps between the destinations (or each on its own destination).
bool clear_by_pitch(const StridedCopy& copy) {
  if (copy.dst == copy.src) {
    return copy.height == 1 || copy.dst_pitch == copy.src_pitch;
  }
  if (copy.height == 1 || copy.dst_pitch != copy.src_pitch) {
    return false;
  }
  const auto distance = reinterpret_cast<intptr_t>(copy.dst) - reinterpret_cast<intptr_t>(copy.src);
  const int64_t gap = std::abs(distance) % copy.dst_pitch;
  return gap >= copy.width && copy.dst_pitch - gap >= copy.width;
}

// Whether spans come in the order of their addresses, or in the opposite one, and none overlaps the next.
struct Order {
  bool ascends = true;
  bool descends = true;
  Span last{0, 0};

  void add(const Span& span, bool first) {
    ascends = ascends && (first || span.begin >= last.end);
    descends = descends && (first || span.end <= last.begin);
    last = span;
  }
  bool apart() const { return ascends || descends; }
};

// The quick answer, in one pass and without sorting: true for the layouts caches really have (tensors in the order of
// their addresses, rows of one stacked tensor), false where only find_conflict's sorting can tell.
bool clearly_apart(c10::ArrayRef<StridedCopy> copies) {
  Order dst_order;
  Order pair_order;
  Span all_dst{};
  Span all_src{};
  bool pairs_clear = true;
  for (const StridedCopy& copy : copies) {
    const bool first = &copy == copies.begin();
    const Span dst = span_of(copy.dst, copy.dst_pitch, copy.width, copy.height);
    const Span src = span_of(copy.src, copy.src_pitch, copy.width, copy.height);
    dst_order.add(dst, first);
    pair_order.add(hull(dst, src), first);
    pairs_clear = pairs_clear && (disjoint(dst, src) || clear_by_pitch(copy));
    all_dst = first ? dst : hull(all_dst, dst);
    all_src = first ? src : hull(all_src, src);
  }
  return (pair_order.apart() && pairs_clear) || (dst_order.apart() && disjoint(all_dst, all_src));
}

struct Range {
  Span span;
  int64_t position;
  bool is_dst;
  bool onto_itself;
};

}  // namespace

std::optional<Conflict> find_conflict(c10::ArrayRef<StridedCopy> copies, bool& shifts) {
  shifts = false;
  if (clearly_apart(copies)) {
    return std::nullopt;
  }

  c10::SmallVector<Range, 384> ranges;
  int64_t position = 0;
  for (const StridedCopy& copy : copies) {
    for (int64_t row = 0; row < copy.height; ++row, ++position) {
      const Span dst = span_of(copy.dst + row * copy.dst_pitch, 0, copy.width, 1);
      const Span src = span_of(copy.src + row * copy.src_pitch, 0, copy.width, 1);
      const bool onto_itself = dst.begin == src.begin;
      ranges.push_back({dst, position, true, onto_itself});
      ranges.push_back({src, position, false, onto_itself});
      shifts = shifts || (!onto_itself && !disjoint(dst, src));
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.span.begin < b.span.begin; });

  // One pass over the ranges by where they begin. A range conflicts with an earlier one that ends after its begin.
  // Destinations are disjoint as far as the pass has come, so only the last one can reach further; of the sources, the
  // furthest-reaching one and, where that is the range's own, the furthest-reaching other one.
  const Range* last_dst = nullptr;
  const Range* last_written = nullptr;  // the last destination that is not a range copied onto itself
  const Range* far_src = nullptr;
  const Range* far_other_src = nullptr;
  for (const Range& range : ranges) {
    const auto reaches = [&](const Range* earlier) { return earlier && earlier->span.end > range.span.begin; };
    if (range.is_dst) {
      if (reaches(last_dst)) {
        return Conflict{range.position, last_dst->position, true};
      }
      const Range* src = far_src && far_src->position == range.position ? far_other_src : far_src;
      if (!range.onto_itself && reaches(src)) {
        return Conflict{range.position, src->position, false};
      }
      last_dst = &range;
      last_written = range.onto_itself ? last_written : &range;
    } else {
      if (reaches(last_written) && last_written->position != range.position) {
        return Conflict{last_written->position, range.position, false};
      }
      if (!far_src || range.span.end >= far_src->span.end) {
        far_other_src = far_src;
        far_src = &range;
      } else if (!far_other_src || range.span.end > far_other_src->span.end) {
        far_other_src = &range;
      }
    }
  }
  return std::nullopt;
}

}  // namespace llm_datadist
