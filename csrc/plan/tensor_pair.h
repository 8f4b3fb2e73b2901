// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "copy_plan.h"
#include "row_layout.h"

namespace llm_datadist {

// A tensor of dst and the one of src that it is copied from, at the same index of their lists.
struct TensorPair {
  const at::Tensor* dst;
  const at::Tensor* src;
  int64_t index;
  int64_t batch_dim;
  RowLayout dst_rows;
  RowLayout src_rows;
  Memory dst_memory;
  Memory src_memory;

  Item dst_item() const { return {"dst", index}; }
  Item src_item() const { return {"src", index}; }

  // Row 0 of each.
  char* to() const { return const_cast<char*>(dst_memory.first); }
  const char* from() const { return src_memory.first; }

  // How many places the dimensions before the batch make.
  int64_t places() const { return c10::multiply_integers(dst->sizes().slice(0, batch_dim)); }
};

// Gives lazily cloned destinations bytes of their own, which moves them: before any address is taken.
void materialize(const Tensors& dst);

// Checks the tensors at `index` of two lists that have passed check_lists.
TensorPair checked_pair(const Call& call, const Tensors& dst, const Tensors& src, int64_t index, int64_t batch_dim);

// Moves a checked pair on to the next index, if the tensors there have the same sizes and strides. Mostly they do, and
// then all there is to check is where they lie.
bool advance_if_alike(const Call& call, const Tensors& dst, const Tensors& src, TensorPair& pair);

// Refuses a pair with so many places that `bytes` written in each, none twice, are more than there is memory for. Seen
// beforehand, because a tensor whose leading strides are 0 can have more places than could ever be listed.
void check_room(const Call& call, const TensorPair& pair, int64_t bytes);

// Adds a base for every index of the dimensions before the batch, as few as their strides allow, `dst_offset` and
// `src_offset` bytes into the pair. `width` is that of the widest span to be copied there.
void append_places(Step& step, const TensorPair& pair, int64_t dst_offset, int64_t src_offset, int64_t width,
                   int64_t spans);

}  // namespace llm_datadist
