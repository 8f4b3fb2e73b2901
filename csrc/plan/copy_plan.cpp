// SPDX-License-Identifier: Apache-2.0
#include "copy_plan.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "overlap.h"
#include "staging.h"
#include "tensor_pair.h"

namespace llm_datadist {
namespace {

// The list that holds one span of this width. Of the widths in use the last few are looked at, which finds all there
// are in a real cache (keys and values of different sizes): a list too many is no harm.
int64_t spans_of_width(Step& step, int64_t width) {
  const auto count = static_cast<int64_t>(step.lists.size());
  for (int64_t list = count - 1; list >= std::max<int64_t>(0, count - 4); --list) {
    if (step.lists[list].bytes == width) {
      return list;
    }
  }
  const auto begin = static_cast<int64_t>(step.spans.size());
  step.spans.push_back({0, 0, width, 0});
  step.lists.push_back({begin, begin + 1, width, width});
  return count;
}

// The tensor that the range at `position` of the plan belongs to: ranges lie there in the order of their tensors.
Item item_at(const char* argument, const Tensors& tensors, int64_t position, int64_t batch_dim) {
  int64_t index = 0;
  while (true) {
    const int64_t places = c10::multiply_integers(tensors[index].get().sizes().slice(0, batch_dim));
    if (position < places) {
      return {argument, index};
    }
    position -= places;
    ++index;
  }
}

// What remains to be moved: ranges already in place are dropped, ranges without gaps become one.
void simplify(Step& step) {
  auto kept = step.bases.begin();
  for (Base base : step.bases) {
    if (base.dst == base.src && (base.height == 1 || base.dst_pitch == base.src_pitch)) {
      continue;
    }
    const int64_t width = step.lists[base.spans].bytes;
    if (base.height > 1 && base.dst_pitch == width && base.src_pitch == width) {
      base.spans = spans_of_width(step, width * base.height);
      base.height = 1;
    }
    step.bytes += step.lists[base.spans].bytes * base.height;
    *kept++ = base;
  }
  step.bases.erase(kept, step.bases.end());
}

}  // namespace

CopyPlan plan_copy(const Call& call, at::ITensorListRef dst_list, at::ITensorListRef src_list, const Slice& slice,
                   int64_t batch_dim) {
  const Tensors dst = tensors_of(dst_list);
  const Tensors src = tensors_of(src_list);
  check_lists(call, dst, src);
  materialize(dst);
  CopyPlan plan;
  Step& step = plan.steps.emplace_back();
  TensorPair pair{};
  int64_t width = 0;
  int64_t spans = 0;
  for (int64_t index = 0; index < static_cast<int64_t>(dst.size()); ++index) {
    if (index == 0 || !advance_if_alike(call, dst, src, pair)) {
      pair = checked_pair(call, dst, src, index, batch_dim);
      width = checked_width(call, slice, pair.dst_item(), pair.dst_rows, pair.src_item(), pair.src_rows);
      spans = spans_of_width(step, width);
    }
    check_room(call, pair, width);
    append_places(step, pair, slice.dst_batch_index * pair.dst_rows.batch_stride + slice.offset,
                  slice.src_batch_index * pair.src_rows.batch_stride + slice.offset, width, spans);
  }
  bool shifts = false;
  if (const std::optional<Conflict> conflict = find_conflict(step, shifts)) {
    const Item written = item_at("dst", dst, conflict->dst, batch_dim);
    const Item other = conflict->other_is_dst ? item_at("dst", dst, conflict->other, batch_dim)
                                              : item_at("src", src, conflict->other, batch_dim);
    CHECK_CALL(call, false, "the range to write in ", written, " overlaps the range to ",
               conflict->other_is_dst ? "write" : "read", " in ", other,
               ": the result would depend on the order of the copies");
  }
  simplify(step);
  if (step.bases.empty()) {
    plan.steps.clear();
  } else if (shifts && dst.front().get().is_cpu()) {
    step.in_order = true;
  } else if (shifts) {
    // Only the host has a memmove. No runtime says what becomes of a copy onto memory that it still has to read.
    plan.staging = at::empty({step.bytes}, dst.front().get().options().dtype(at::kByte));
    plan.steps.push_back(through_buffer(step, plan.staging));
    std::swap(plan.steps[0], plan.steps[1]);
  }
  return plan;
}

}  // namespace llm_datadist
