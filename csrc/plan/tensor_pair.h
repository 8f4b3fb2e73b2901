// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "copy_plan.h"
#include "row_layout.h"

namespace llm_datadist {

// A tensor of dst and the one of src that it is copied from.
struct TensorPair {
  const at::Tensor& dst;
  const at::Tensor& src;
  Item dst_item;
  Item src_item;
  RowLayout dst_rows;
  RowLayout src_rows;
  int64_t batch_dim;
  char* to;          // row 0 of dst
  const char* from;  // row 0 of src

  // The longer row of the two.
  int64_t row_bytes() const { return std::max(dst_rows.row_bytes, src_rows.row_bytes); }

  // How many places the dimensions before the batch make.
  int64_t places() const { return c10::multiply_integers(dst.sizes().slice(0, batch_dim)); }
};

// Checks the tensors at `index` of two lists that have passed check_lists.
TensorPair checked_pair(const Call& call, const Tensors& dst, const Tensors& src, int64_t index, int64_t batch_dim);

// Refuses a pair with so many places that `bytes` written in each, none twice, are more than there is memory for. Seen
// beforehand, because a tensor whose leading strides are 0 can have more places than could ever be listed.
void check_room(const Call& call, const TensorPair& pair, int64_t bytes);

// Adds a base for every index of the dimensions before the batch, as few as their strides allow, `dst_offset` and
// `src_offset` bytes into the pair. `width` is that of the widest span to be copied there.
void append_places(Step& step, const TensorPair& pair, int64_t dst_offset, int64_t src_offset, int64_t width,
                   int64_t spans);

}  // namespace llm_datadist
