// SPDX-License-Identifier: Apache-2.0
#include "step.h"

#include <ATen/ops/empty.h>

#include <utility>

#include "address_range.h"

namespace llm_datadist {

int64_t Step::add_span_list(c10::ArrayRef<Span> list) {
  const auto begin = static_cast<int64_t>(spans.size());
  spans.append(list.begin(), list.end());
  SpanList added{begin, static_cast<int64_t>(spans.size()), 0, 0};
  for (const Span& span : list) {
    added.bytes += span.width;
    added.widest = std::max(added.widest, span.width);
  }
  span_lists.push_back(added);
  return static_cast<int64_t>(span_lists.size()) - 1;
}

void Step::add_base(const Base& base) {
  // With a pitch below the width, places would overlap (or, on the source side, be a broadcast): no strided copy.
  const int64_t width = span_list_of(base).widest;
  if (base.height > 1 && (base.dst_pitch < width || base.src_pitch < width)) {
    for (int64_t place = 0; place < base.height; ++place) {
      add_base(
          {base.dst + place * base.dst_pitch, 0, base.src + place * base.src_pitch, 0, 1, base.span_list, base.tensor});
    }
    return;
  }
  if (!bases.empty()) {
    Base& last = bases.back();
    const int64_t dst_pitch = last.height == 1 ? distance(last.dst, base.dst) : last.dst_pitch;
    const int64_t src_pitch = last.height == 1 ? distance(last.src, base.src) : last.src_pitch;
    if (base.span_list == last.span_list && dst_pitch >= width && src_pitch >= width &&
        distance(last.dst, base.dst) == dst_pitch * last.height &&
        distance(last.src, base.src) == src_pitch * last.height &&
        (base.height == 1 || (base.dst_pitch == dst_pitch && base.src_pitch == src_pitch))) {
      last.dst_pitch = dst_pitch;
      last.src_pitch = src_pitch;
      last.height += base.height;
      return;
    }
  }
  bases.push_back(base);
}

void Step::count_bytes() {
  bytes = 0;
  for (const Base& base : bases) {
    bytes += span_list_of(base).bytes * base.height;
  }
}

Step stage_through(Step& step, const at::Tensor& buffer) {
  Step gather = step;
  gather.order_matters = false;
  step.order_matters = false;
  for (size_t i = 0; i < step.spans.size(); ++i) {
    gather.spans[i].dst_offset = step.spans[i].bytes_before;
    step.spans[i].src_offset = step.spans[i].bytes_before;
  }
  auto* position = static_cast<char*>(buffer.mutable_data_ptr());
  for (size_t i = 0; i < step.bases.size(); ++i) {
    Base& base = step.bases[i];
    const int64_t pitch = step.span_list_of(base).bytes;
    gather.bases[i].dst = position;
    gather.bases[i].dst_pitch = pitch;
    base.src = position;
    base.src_pitch = pitch;
    position += pitch * base.height;
  }
  return gather;
}

CopyPlan make_plan(Step&& direct, Step&& staged, const at::Tensor& like) {
  CopyPlan plan;
  if (staged.bytes > 0) {
    plan.staging = at::empty({staged.bytes}, like.options().dtype(at::kByte));
    plan.steps.push_back(stage_through(staged, plan.staging));
  }
  if (direct.bytes > 0) {
    plan.steps.push_back(std::move(direct));
  }
  if (staged.bytes > 0) {
    plan.steps.push_back(std::move(staged));
  }
  return plan;
}

}  // namespace llm_datadist
