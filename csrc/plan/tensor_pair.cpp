// SPDX-License-Identifier: Apache-2.0
#include "tensor_pair.h"

namespace llm_datadist {
namespace {

// Adds `first` for every index of the `dims` outermost dimensions. The innermost of them becomes the pitch; the ones
// outside it are written out.
void add_leading(Step& step, const Base& first, const TensorPair& pair, int64_t dims) {
  if (dims == 0) {
    step.add_base(first);
    return;
  }
  Base base = first;
  const int64_t dim = dims - 1;
  const int64_t size = pair.dst.tensor->size(dim);
  if (size == 1) {  // Its stride can be any number, whose bytes may not fit into 64 bits.
    add_leading(step, first, pair, dim);
    return;
  }
  const auto itemsize = static_cast<int64_t>(pair.dst.tensor->itemsize());
  const int64_t dst_pitch = pair.dst.tensor->stride(dim) * itemsize;
  const int64_t src_pitch = pair.src.tensor->stride(dim) * itemsize;
  if (base.height == 1) {
    base.height = size;
    base.dst_pitch = dst_pitch;
    base.src_pitch = src_pitch;
    add_leading(step, base, pair, dim);
    return;
  }
  for (int64_t index = 0; index < size; ++index) {
    add_leading(step, base, pair, dim);
    base.dst += dst_pitch;
    base.src += src_pitch;
  }
}

}  // namespace

TensorLists checked_lists(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src) {
  TensorLists lists{tensors_of(dst), tensors_of(src)};
  check_lists(call, lists.dst, lists.src);
  for (const at::Tensor& tensor : lists.dst) {
    tensor.storage().mutable_data();
  }
  return lists;
}

TensorPair checked_pair(const CallContext& call, const TensorLists& lists, int64_t index, int64_t batch_dim) {
  const TensorName dst_name{"dst", index};
  const TensorName src_name{"src", index};
  const at::Tensor& dst = lists.dst[index];
  const at::Tensor& src = lists.src[index];
  const TensorPair pair{{&dst, dst_name, checked_rows(call, dst_name, dst, batch_dim)},
                        {&src, src_name, checked_rows(call, src_name, src, batch_dim)},
                        batch_dim};
  CHECK_CALL(call, batch_dim == 0 || dst.sizes().slice(0, batch_dim) == src.sizes().slice(0, batch_dim),
             "expected the sizes before batch_dim (", batch_dim, ") to be the same, got ", dst.sizes(), " for ",
             dst_name, " and ", src.sizes(), " for ", src_name);
  return pair;
}

void check_places(const CallContext& call, const TensorPair& pair, int64_t bytes) {
  if (pair.batch_dim == 0) {
    return;
  }
  const at::Tensor& dst = *pair.dst.tensor;
  const int64_t places = c10::multiply_integers(dst.sizes().slice(0, pair.batch_dim));
  CHECK_CALL(call, places == 1 || places <= static_cast<int64_t>(dst.storage().nbytes()) / bytes, "ranges of ",
             pair.dst.name, " overlap one another: got shape ", dst.sizes(), ", strides ", dst.strides());
}

void add_places(Step& step, const TensorPair& pair, int64_t dst_offset, int64_t src_offset, int64_t span_list) {
  add_leading(step,
              {const_cast<char*>(pair.dst.rows.data) + dst_offset, 0, pair.src.rows.data + src_offset, 0, 1, span_list,
               pair.dst.name.index},
              pair, pair.batch_dim);
}

}  // namespace llm_datadist
