// SPDX-License-Identifier: Apache-2.0
#include "overlap.h"

#include <algorithm>
#include <cstdlib>

#include "extent.h"

namespace llm_datadist {
namespace {

// Whether the ranges of one base are clear of one another, seen from their distances alone: both sides step by
// the same pitch, and the sources lie in the gaps between the destinations (or each on its own destination).
bool clear_by_pitch(const Base& base, int64_t width) {
  if (base.dst == base.src) {
    return base.height == 1 || base.dst_pitch == base.src_pitch;
  }
  if (base.height == 1 || base.dst_pitch != base.src_pitch) {
    return false;
  }
  const int64_t gap = std::abs(distance(base.src, base.dst)) % base.dst_pitch;
  return gap >= width && base.dst_pitch - gap >= width;
}

// Whether extents come in the order of their addresses, or in the opposite one, and none overlaps the next.
struct Order {
  bool ascends = true;
  bool descends = true;
  Extent last{0, 0};

  void add(const Extent& extent, bool first) {
    ascends = ascends && (first || extent.begin >= last.end);
    descends = descends && (first || extent.end <= last.begin);
    last = extent;
  }
  bool apart() const { return ascends || descends; }
};

// The quick answer, in one pass and without sorting: true for the layouts caches really have (tensors in the order of
// their addresses, rows of one stacked tensor), false where only find_conflict's sorting can tell.
bool clearly_apart(const Step& step) {
  Order dst_order;
  Order pair_order;
  Extent all_dst{};
  Extent all_src{};
  bool pairs_clear = true;
  for (const Base& base : step.bases) {
    const bool first = &base == step.bases.begin();
    const int64_t width = step.lists[base.spans].bytes;
    const Extent dst = extent_of(base.dst, (base.height - 1) * base.dst_pitch + width);
    const Extent src = extent_of(base.src, (base.height - 1) * base.src_pitch + width);
    dst_order.add(dst, first);
    pair_order.add(hull(dst, src), first);
    pairs_clear = pairs_clear && (disjoint(dst, src) || clear_by_pitch(base, width));
    all_dst = first ? dst : hull(all_dst, dst);
    all_src = first ? src : hull(all_src, src);
  }
  return (pair_order.apart() && pairs_clear) || (dst_order.apart() && disjoint(all_dst, all_src));
}

struct Range {
  Extent extent;
  int64_t position;
  bool is_dst;
  bool onto_itself;
};

}  // namespace

std::optional<Conflict> find_conflict(const Step& step, bool& shifts) {
  shifts = false;
  if (clearly_apart(step)) {
    return std::nullopt;
  }

  c10::SmallVector<Range, 384> ranges;
  int64_t position = 0;
  for (const Base& base : step.bases) {
    const int64_t width = step.lists[base.spans].bytes;
    for (int64_t place = 0; place < base.height; ++place, ++position) {
      const Extent dst = extent_of(base.dst + place * base.dst_pitch, width);
      const Extent src = extent_of(base.src + place * base.src_pitch, width);
      const bool onto_itself = dst.begin == src.begin;
      ranges.push_back({dst, position, true, onto_itself});
      ranges.push_back({src, position, false, onto_itself});
      shifts = shifts || (!onto_itself && !disjoint(dst, src));
    }
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.extent.begin < b.extent.begin; });

  // One pass over the ranges by where they begin. A range conflicts with an earlier one that ends after its begin.
  // Destinations are disjoint as far as the pass has come, so only the last one can reach further; of the sources, the
  // furthest-reaching one and, where that is the range's own, the furthest-reaching other one.
  const Range* last_dst = nullptr;
  const Range* last_written = nullptr;  // the last destination that is not a range copied onto itself
  const Range* far_src = nullptr;
  const Range* far_other_src = nullptr;
  for (const Range& range : ranges) {
    const auto reaches = [&](const Range* earlier) { return earlier && earlier->extent.end > range.extent.begin; };
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
      if (!far_src || range.extent.end >= far_src->extent.end) {
        far_other_src = far_src;
        far_src = &range;
      } else if (!far_other_src || range.extent.end > far_other_src->extent.end) {
        far_other_src = &range;
      }
    }
  }
  return std::nullopt;
}

}  // namespace llm_datadist
