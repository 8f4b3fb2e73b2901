// SPDX-License-Identifier: Apache-2.0
//
// Every check of an argument, but for those of csrc/npu that only the NPU can make.

#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <functional>

#include "call_context.h"
#include "order.h"

namespace llm_datadist {

// The tensors of a list by index, for every kind of list that the dispatcher passes.
using Tensors = c10::SmallVector<std::reference_wrapper<const at::Tensor>, 8>;

inline Tensors tensors_of(at::ITensorListRef list) { return {list.begin(), list.end()}; }

// An integer, because C++ defines neither the order nor the distance of pointers into different allocations.
using Address = uintptr_t;

// The rows of one tensor: `batch_size` rows of `bytes` contiguous bytes, `stride` bytes from one to the next. They
// repeat for every index of the dimensions before the batch.
struct Rows {
  Address row_0;
  int64_t batch_size;
  int64_t bytes;
  int64_t stride;
};

// The tensors of dst and src at one index of their lists, checked.
struct TensorPair {
  struct Side {
    const at::Tensor* tensor;
    Rows rows;
  };
  Side dst;
  Side src;
  int64_t index;
  int64_t batch_dim;

  TensorName dst_name() const { return {"dst", index}; }
  TensorName src_name() const { return {"src", index}; }
};

// The numbers of one copy. Offsets and size are in bytes; size -1 means the rest of the source row.
struct Copy {
  int64_t dst_batch_index;
  int64_t src_batch_index;
  int64_t dst_offset;
  int64_t size;
  int64_t src_offset;
};

struct Copies {
  c10::SmallVector<Copy, 1> list;
  bool named = false;        // whether messages name the copy: it is a row of the `copies` argument
  bool two_offsets = false;  // whether each side has an offset of its own
};

inline Copies one_copy(int64_t dst_batch_index, int64_t src_batch_index, int64_t offset, int64_t size) {
  return {{{dst_batch_index, src_batch_index, offset, size, offset}}};
}

// The next five read neither sizes nor data, so they serve real and fake tensors alike.

// Checks the lists as a whole: their lengths, and the layout, device and dtype of their tensors.
void check_lists(const CallContext& call, const Tensors& dst, const Tensors& src);

// Refuses tensors of the list dst or src whose derivatives the copy would lose: dst if it requires grad; src only if
// torch.func differentiates by it, because caches are often filled from what a model with parameters computes; both if
// they have a tangent of forward-mode AD.
void check_derivatives(const CallContext& call, const char* list, const Tensors& tensors, bool written);

// Refuses inference tensors. For calls outside of inference mode, as torch's own ops do.
void check_inference(const CallContext& call, const Tensors& dst);

inline void check_batch_dim(const CallContext& call, TensorName name, const at::Tensor& tensor, int64_t batch_dim) {
  CHECK_CALL(call, 0 <= batch_dim && batch_dim < tensor.dim(), "batch_dim (", batch_dim, ") out of range [0, ",
             tensor.dim(), "), the dimensions of ", name);
}

// Checks the `copies` argument of a batch, but for the number of its rows.
void check_copies(const CallContext& call, const at::Tensor& copies);

// Checks and reads the `copies` argument. It is read once, so that what is checked is what is used even if another
// thread writes to it.
Copies read_copies(const CallContext& call, const at::Tensor& copies);

// Checks two tensors at one index: each lies inside its storage, its rows are dense and do not overlap, and both have
// the same sizes before batch_dim. After this check, arithmetic on sizes and strides does not overflow.
TensorPair checked_pair(const CallContext& call, const at::Tensor& dst, const at::Tensor& src, int64_t index,
                        int64_t batch_dim);

// Checks that a copy lies in the rows of a pair, and returns it as bytes relative to row 0 of either side.
Move checked_move(CallContext call, const Copies& copies, int64_t index, const TensorPair& pair);

// Refuses leading dimensions whose ranges in dst overlap one another: each of `moves` is written once for each index of
// these dimensions.
void check_leading_dims(const CallContext& call, const TensorPair& pair, c10::ArrayRef<Move> moves);

}  // namespace llm_datadist
