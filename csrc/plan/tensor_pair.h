// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "checks.h"
#include "step.h"

namespace llm_datadist {

// The tensors of dst and src at one index of their lists, checked.
struct TensorPair {
  struct Side {
    const at::Tensor* tensor;
    TensorName name;
    Rows rows;
  };
  Side dst;
  Side src;
  int64_t batch_dim;
};

struct TensorLists {
  Tensors dst;
  Tensors src;
};

// Checks two lists as a whole. Gives lazily cloned (copy-on-write) destinations memory of their own, which changes
// their addresses.
TensorLists checked_lists(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src);

// Checks the tensors at `index` of two lists that have passed checked_lists.
TensorPair checked_pair(const CallContext& call, const TensorLists& lists, int64_t index, int64_t batch_dim);

// Refuses a pair that has more places (one for every index of the dimensions before the batch) than `bytes` written in
// each, none twice, fit into memory. With leading strides of 0, a tensor can have more places than could ever be
// listed.
void check_places(const CallContext& call, const TensorPair& pair, int64_t bytes);

// Adds the places of a pair to a step, `dst_offset` and `src_offset` bytes after row 0, for spans of list `span_list`.
void add_places(Step& step, const TensorPair& pair, int64_t dst_offset, int64_t src_offset, int64_t span_list);

}  // namespace llm_datadist
