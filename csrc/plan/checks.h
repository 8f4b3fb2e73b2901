// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <functional>

#include "call_context.h"

namespace llm_datadist {

// The tensors of a list by index, for every kind of list that the dispatcher passes.
using Tensors = c10::SmallVector<std::reference_wrapper<const at::Tensor>, 8>;

inline Tensors tensors_of(at::ITensorListRef list) { return {list.begin(), list.end()}; }

// The rows of one tensor: `batch_size` rows of `row_bytes` contiguous bytes, `batch_stride` bytes from one to the next,
// row 0 at `data`. They repeat for every index of the dimensions before the batch.
struct Rows {
  const char* data;
  int64_t batch_size;
  int64_t row_bytes;
  int64_t batch_stride;
};

// The checks of this block read neither sizes nor data, so they serve real and fake tensors alike.

// Checks the two lists as a whole: their lengths, and layout, device and dtype of their tensors.
void check_lists(const CallContext& call, const Tensors& dst, const Tensors& src);

// Refuses a dst that requires grad: autograd would not see the copy.
void check_grad(const CallContext& call, const Tensors& dst);

inline void check_batch_dim(const CallContext& call, TensorName name, const at::Tensor& tensor, int64_t batch_dim) {
  CHECK_CALL(call, 0 <= batch_dim && batch_dim < tensor.dim(), "batch_dim (", batch_dim, ") out of range [0, ",
             tensor.dim(), "), the dimensions of ", name);
}

// Checks the `copies` argument of a batch, but for the number of its rows.
void check_copies(const CallContext& call, const at::Tensor& copies);

// Checks that a tensor is not empty and lies inside its storage, which may have been resized since. Returns the address
// of its first element.
const char* checked_data(const CallContext& call, TensorName name, const at::Tensor& tensor);

// Checks the same and batch_dim, and that the rows of the tensor are dense and do not overlap. Because of this check,
// later arithmetic on sizes and strides does not overflow.
Rows checked_rows(const CallContext& call, TensorName name, const at::Tensor& tensor, int64_t batch_dim);

}  // namespace llm_datadist
