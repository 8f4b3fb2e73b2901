// SPDX-License-Identifier: Apache-2.0
#include "tensor_pair.h"

namespace llm_datadist {
namespace {

// Makes `base` a continuation of the last one, if it is one. A pitch below the width would not be a strided copy but an
// overlap (or, on the source side, a broadcast): those stay separate bases.
bool extend_last(Step& step, const Base& base, int64_t width) {
  if (step.bases.empty()) {
    return false;
  }
  Base& last = step.bases.back();
  const int64_t dst_pitch = last.height == 1 ? base.dst - last.dst : last.dst_pitch;
  const int64_t src_pitch = last.height == 1 ? base.src - last.src : last.src_pitch;
  const bool continues = base.spans == last.spans && dst_pitch >= width && src_pitch >= width &&
                         base.dst - last.dst == dst_pitch * last.height &&
                         base.src - last.src == src_pitch * last.height &&
                         (base.height == 1 || (base.dst_pitch == dst_pitch && base.src_pitch == src_pitch));
  if (continues) {
    last.dst_pitch = dst_pitch;
    last.src_pitch = src_pitch;
    last.height += base.height;
  }
  return continues;
}

void append(Step& step, const Base& base, int64_t width) {
  if (base.height > 1 && (base.dst_pitch < width || base.src_pitch < width)) {
    Base single = base;
    single.height = 1;
    for (int64_t place = 0; place < base.height; ++place) {
      append(step, single, width);
      single.dst += base.dst_pitch;
      single.src += base.src_pitch;
    }
  } else if (!extend_last(step, base, width)) {
    step.bases.push_back(base);
  }
}

// Appends `first` once for every index of the `dims` outermost dimensions: the innermost of them as a pitch, the ones
// outside it one by one.
void append_leading(Step& step, Base first, const TensorPair& pair, int64_t dims, int64_t width) {
  if (dims == 0) {
    append(step, first, width);
    return;
  }
  const int64_t outer = dims - 1;
  if (pair.dst->size(outer) == 1) {  // its stride is never walked and may be anything
    append_leading(step, first, pair, outer, width);
    return;
  }
  const int64_t dst_pitch = pair.dst->stride(outer) * pair.dst->itemsize();
  const int64_t src_pitch = pair.src->stride(outer) * pair.src->itemsize();
  if (first.height == 1) {
    first.height = pair.dst->size(outer);
    first.dst_pitch = dst_pitch;
    first.src_pitch = src_pitch;
    append_leading(step, first, pair, outer, width);
    return;
  }
  for (int64_t index = 0; index < pair.dst->size(outer); ++index) {
    append_leading(step, first, pair, outer, width);
    first.dst += dst_pitch;
    first.src += src_pitch;
  }
}

bool same(at::IntArrayRef a, at::IntArrayRef b) {
  // Written out: for a few numbers, what a library would call is slower.
  bool equal = a.size() == b.size();
  for (size_t i = 0; equal && i < a.size(); ++i) {
    equal = a[i] == b[i];
  }
  return equal;
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  return same(a.sizes(), b.sizes()) && same(a.strides(), b.strides());
}

}  // namespace

void materialize(const Tensors& dst) {
  for (const at::Tensor& tensor : dst) {
    tensor.storage().mutable_data();
  }
}

TensorPair checked_pair(const Call& call, const Tensors& dst, const Tensors& src, int64_t index, int64_t batch_dim) {
  TensorPair pair{&dst[index].get(), &src[index].get(), index, batch_dim, {}, {}, {}, {}};
  check_batch_dim(call, pair.dst_item(), *pair.dst, batch_dim);
  check_batch_dim(call, pair.src_item(), *pair.src, batch_dim);
  pair.dst_memory = checked_memory(call, pair.dst_item(), *pair.dst);
  pair.src_memory = checked_memory(call, pair.src_item(), *pair.src);
  pair.dst_rows = row_layout(call, pair.dst_item(), *pair.dst, batch_dim);
  pair.src_rows = row_layout(call, pair.src_item(), *pair.src, batch_dim);
  CHECK_CALL(call, pair.dst->sizes().slice(0, batch_dim) == pair.src->sizes().slice(0, batch_dim),
             "expected the sizes before batch_dim (", batch_dim, ") to be the same, got ", pair.dst->sizes(), " for ",
             pair.dst_item(), " and ", pair.src->sizes(), " for ", pair.src_item());
  return pair;
}

bool advance_if_alike(const Call& call, const Tensors& dst, const Tensors& src, TensorPair& pair) {
  const at::Tensor& next_dst = dst[pair.index + 1];
  const at::Tensor& next_src = src[pair.index + 1];
  if (!same_layout(next_dst, *pair.dst) || !same_layout(next_src, *pair.src)) {
    return false;
  }
  pair.dst = &next_dst;
  pair.src = &next_src;
  ++pair.index;
  pair.dst_memory = checked_memory(call, pair.dst_item(), next_dst, pair.dst_memory.bytes);
  pair.src_memory = checked_memory(call, pair.src_item(), next_src, pair.src_memory.bytes);
  return true;
}

void check_room(const Call& call, const TensorPair& pair, int64_t bytes) {
  const int64_t places = pair.places();
  CHECK_CALL(call, places == 1 || places <= static_cast<int64_t>(pair.dst->storage().nbytes()) / bytes, "ranges of ",
             pair.dst_item(), " overlap one another: got shape ", pair.dst->sizes(), ", strides ", pair.dst->strides());
}

void append_places(Step& step, const TensorPair& pair, int64_t dst_offset, int64_t src_offset, int64_t width,
                   int64_t spans) {
  append_leading(step, {pair.to() + dst_offset, 0, pair.from() + src_offset, 0, 1, spans, pair.dst_item()}, pair,
                 pair.batch_dim, width);
}

}  // namespace llm_datadist
