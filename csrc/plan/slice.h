// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "byte_copy.h"
#include "tensor_pair.h"

namespace llm_datadist {

// The four numbers of a copy, in the order in which copy_cache takes them. offset and size are bytes.
struct Slice {
  int64_t dst_batch_index;
  int64_t src_batch_index;
  int64_t offset;
  int64_t size;
};

// Checks that a slice lies in the rows of a pair. Returns the copy, its positions counted from row 0 of either side.
ByteCopy checked_copy(const CallContext& call, const Slice& slice, const TensorPair& pair);

// Checks and reads the `copies` argument of a batch. It is read once, so that what is checked is what is used even if
// another thread writes to it.
std::vector<Slice> read_slices(const CallContext& call, const at::Tensor& copies);

}  // namespace llm_datadist
