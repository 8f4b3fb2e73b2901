// SPDX-License-Identifier: Apache-2.0
#include "row_layout.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <utility>

namespace llm_datadist {
namespace {

void check_list(const Call& call, const char* list, const Tensors& tensors, const Tensors& dst) {
  for (size_t index = 0; index < tensors.size(); ++index) {
    const Item item{list, static_cast<int64_t>(index)};
    const at::Tensor& tensor = tensors[index];
    CHECK_CALL(call, tensor.defined(), "expected ", item, " to be a tensor, got an undefined one");
    CHECK_CALL(call, tensor.layout() == at::kStrided, "expected ", item, " to have the strided layout, got ",
               tensor.layout());
    const at::Tensor& first = tensors.front();
    CHECK_CALL(call, tensor.device() == first.device(), "expected ", item, " to be on the device of ", (Item{list, 0}),
               ", ", first.device(), ", got ", tensor.device());
    const at::Tensor& like = dst.front();
    CHECK_CALL(call, tensor.scalar_type() == like.scalar_type(), "expected ", item, " to have the dtype of dst[0], ",
               like.scalar_type(), ", got ", tensor.scalar_type());
  }
}

// The bytes from the first to the last one of the tensor, both counted; nothing if the number does not fit.
std::optional<uint64_t> extent_bytes(const at::Tensor& tensor) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  uint64_t elements = 1;
  uint64_t bytes = 0;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    uint64_t span = 0;
    if (c10::mul_overflows<uint64_t>(sizes[dim] - 1, strides[dim], &span) ||
        c10::add_overflows<uint64_t>(elements, span, &elements)) {
      return std::nullopt;
    }
  }
  return c10::mul_overflows<uint64_t>(elements, tensor.itemsize(), &bytes) ? std::nullopt : std::optional(bytes);
}

// Whether the dimensions after `batch_dim` fill one contiguous range, in whatever order.
bool has_dense_rows(const at::Tensor& tensor, int64_t batch_dim) {
  if (tensor.is_contiguous()) {
    return true;
  }
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  c10::SmallVector<std::pair<int64_t, int64_t>, 8> dims;  // stride, size
  for (size_t dim = batch_dim + 1; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1) {
      dims.emplace_back(strides[dim], sizes[dim]);
    }
  }
  std::sort(dims.begin(), dims.end());
  int64_t elements = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != elements) {
      return false;
    }
    elements *= size;
  }
  return true;
}

Memory memory_in_storage(const Call& call, Item item, const at::Tensor& tensor, std::optional<uint64_t> bytes) {
  const at::Storage& storage = tensor.storage();
  const size_t room = storage.nbytes();
  uint64_t first = 0;
  const bool inside = bytes && !c10::mul_overflows<uint64_t>(tensor.storage_offset(), tensor.itemsize(), &first) &&
                      first <= room && *bytes <= room - first;
  CHECK_CALL(call, inside, "expected ", item, " to lie inside its storage of ", room, " bytes, got shape ",
             tensor.sizes(), ", strides ", tensor.strides(), ", storage offset ", tensor.storage_offset());
  const auto* const data = static_cast<const char*>(storage.data());
  CHECK_CALL(call, data != nullptr, "expected ", item, " to have memory, got a storage of ", room,
             " bytes at address 0, as tensor subclasses that wrap others have");
  return {data + first, *bytes};
}

}  // namespace

void check_lists(const Call& call, const Tensors& dst, const Tensors& src) {
  CHECK_CALL(call, dst.size() == src.size(), "expected dst and src to hold the same number of tensors, got ",
             dst.size(), " and ", src.size());
  CHECK_CALL(call, !dst.empty(), "expected dst and src to hold at least one tensor, got empty lists");
  check_list(call, "dst", dst, dst);
  check_list(call, "src", src, dst);
}

void check_grad(const Call& call, const Tensors& dst) {
  for (size_t index = 0; at::GradMode::is_enabled() && index < dst.size(); ++index) {
    CHECK_CALL(
        call, !dst[index].get().requires_grad(), (Item{"dst", static_cast<int64_t>(index)}),
        " requires grad, and a copy into it would be lost to autograd: detach it, or call under torch.no_grad()");
  }
}

void check_batch_dim(const Call& call, Item item, const at::Tensor& tensor, int64_t batch_dim) {
  CHECK_CALL(call, 0 <= batch_dim && batch_dim < tensor.dim(), "batch_dim (", batch_dim, ") out of range [0, ",
             tensor.dim(), "), the dimensions of ", item);
}

Memory checked_memory(const Call& call, Item item, const at::Tensor& tensor) {
  CHECK_CALL(call, tensor.numel() > 0, "expected ", item, " not to be empty, got shape ", tensor.sizes());
  return memory_in_storage(call, item, tensor, extent_bytes(tensor));
}

Memory checked_memory(const Call& call, Item item, const at::Tensor& tensor, uint64_t bytes) {
  return memory_in_storage(call, item, tensor, bytes);
}

RowLayout row_layout(const Call& call, Item item, const at::Tensor& tensor, int64_t batch_dim) {
  CHECK_CALL(call, has_dense_rows(tensor, batch_dim), "expected the rows of ", item,
             " to be dense (each one contiguous range of bytes), got shape ", tensor.sizes(), ", strides ",
             tensor.strides(), ", batch_dim ", batch_dim);
  const at::IntArrayRef sizes = tensor.sizes();
  const int64_t row_bytes = c10::multiply_integers(sizes.slice(batch_dim + 1)) * tensor.itemsize();
  const int64_t batch_size = sizes[batch_dim];
  // The stride of a dimension of one is never walked and may be anything.
  const int64_t batch_stride = batch_size == 1 ? row_bytes : tensor.strides()[batch_dim] * tensor.itemsize();
  CHECK_CALL(call, batch_stride >= row_bytes, "expected the rows of ", item, " to be at least ", row_bytes,
             " bytes (one row) apart, got ", batch_stride);
  return {batch_size, row_bytes, batch_stride};
}

}  // namespace llm_datadist
