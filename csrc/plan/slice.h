// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "row_layout.h"

namespace llm_datadist {

// The four numbers of a copy, in the order in which copy_cache takes them. offset and size are bytes.
struct Slice {
  int64_t dst_batch_index;
  int64_t src_batch_index;
  int64_t offset;
  int64_t size;
};

// Checks that the slice lies in the rows of one tensor of dst and one of src. Returns the bytes to copy from each row.
int64_t checked_width(const Call& call, const Slice& slice, Item dst_item, const RowLayout& dst, Item src_item,
                      const RowLayout& src);

// Checks what the copies argument of a batch is, without looking at how many copies there are: for real and fake
// tensors alike.
void check_copies(const Call& call, const at::Tensor& copies);

// Reads the copies argument of a batch, once: what is checked is what is used, whoever writes to it meanwhile.
std::vector<Slice> read_slices(const Call& call, const at::Tensor& copies);

}  // namespace llm_datadist
