// SPDX-License-Identifier: Apache-2.0
#include "plan_copy.h"

#include <algorithm>
#include <utility>

#include "overlap.h"

namespace llm_datadist {
namespace {

// The list of one span of this width. Looks at the last few lists, which are all there are in a real cache (keys and
// values of different sizes); one more list than needed does no harm.
int64_t span_list_of_width(Step& step, int64_t width) {
  const auto count = static_cast<int64_t>(step.span_lists.size());
  for (int64_t list = count - 1; list >= std::max<int64_t>(0, count - 4); --list) {
    if (step.span_lists[list].bytes == width) {
      return list;
    }
  }
  return step.add_span_list(Span{0, 0, width, 0});
}

// Drops ranges copied onto themselves, and makes one range of places without gaps.
void simplify(Step& step) {
  auto* kept = step.bases.begin();
  for (Base base : step.bases) {
    if (base.dst == base.src && (base.height == 1 || base.dst_pitch == base.src_pitch)) {
      continue;
    }
    const int64_t width = step.span_list_of(base).bytes;
    if (base.height > 1 && base.dst_pitch == width && base.src_pitch == width) {
      base.span_list = span_list_of_width(step, width * base.height);
      base.height = 1;
    }
    *kept++ = base;
  }
  step.bases.erase(kept, step.bases.end());
}

}  // namespace

CopyPlan plan_copy(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, const Slice& slice,
                   int64_t batch_dim) {
  const TensorLists lists = checked_lists(call, dst, src);
  Step step;
  step.bases.reserve(lists.dst.size());
  for (size_t index = 0; index < lists.dst.size(); ++index) {
    const TensorPair pair = checked_pair(call, lists, static_cast<int64_t>(index), batch_dim);
    const ByteCopy copy = checked_copy(call, slice, pair);
    check_places(call, pair, copy.width);
    add_places(step, pair, copy.dst, copy.src, span_list_of_width(step, copy.width));
  }
  const bool self_overlap = check_overlap(call, step, lists.dst, batch_dim);
  simplify(step);
  step.count_bytes();
  const at::Tensor& first = lists.dst.front();
  if (self_overlap && !first.is_cpu()) {
    // Only the host has memmove: ACL leaves overlapping copies undefined.
    return make_plan({}, std::move(step), first);
  }
  step.order_matters = self_overlap;
  return make_plan(std::move(step), {}, first);
}

}  // namespace llm_datadist
