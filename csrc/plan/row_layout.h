// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <functional>

#include "call.h"

namespace llm_datadist {

// The tensors of a list by index, whatever kind of list the dispatcher handed over. There is room for a cache of 160
// separate tensors without taking anything from the heap.
using Tensors = c10::SmallVector<std::reference_wrapper<const at::Tensor>, 192>;

inline Tensors tensors_of(at::ITensorListRef list) { return {list.begin(), list.end()}; }

// Where the rows of one tensor lie: `batch_size` rows of `row_bytes` bytes each, their first bytes `batch_stride`
// bytes apart, once for every index of the dimensions before the batch.
struct RowLayout {
  int64_t batch_size;
  int64_t row_bytes;
  int64_t batch_stride;

  bool operator==(const RowLayout&) const = default;
};

// Checks the two lists as wholes: their lengths, and what their tensors must have in common. Reads neither sizes nor
// data, so that it serves real and fake tensors alike.
void check_lists(const Call& call, const Tensors& dst, const Tensors& src);

// Checks that autograd loses nothing by a copy into dst.
void check_grad(const Call& call, const Tensors& dst);

void check_batch_dim(const Call& call, Item item, const at::Tensor& tensor, int64_t batch_dim);

// What a tensor takes: the bytes from its first to its last one.
struct Memory {
  const char* first;
  uint64_t bytes;
};

// Checks that a tensor is not empty and lies inside its storage, which may have been shrunk under it. Every later sum
// of its sizes and strides relies on this check.
Memory checked_memory(const Call& call, Item item, const at::Tensor& tensor);

// The same for a tensor that has the sizes and strides of one that takes so many bytes.
Memory checked_memory(const Call& call, Item item, const at::Tensor& tensor, uint64_t bytes);

// Checks that the rows of a tensor, whose batch_dim and memory have been checked, are dense and do not overlap.
RowLayout row_layout(const Call& call, Item item, const at::Tensor& tensor, int64_t batch_dim);

}  // namespace llm_datadist
