// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

namespace llm_datadist {
namespace {

void check_list(const CallContext& call, const char* list, const Tensors& tensors, const at::Tensor& dst_0) {
  const at::Tensor& first = tensors.front();
  const at::ScalarType dtype = dst_0.scalar_type();
  for (size_t index = 0; index < tensors.size(); ++index) {
    const TensorName name{list, static_cast<int64_t>(index)};
    const at::Tensor& tensor = tensors[index];
    CHECK_CALL(call, tensor.defined(), "expected ", name, " to be a tensor, got an undefined one");
    CHECK_CALL(call, tensor.layout() == at::kStrided, "expected ", name, " to have the strided layout, got ",
               tensor.layout());
    CHECK_CALL(call, tensor.device() == first.device(), "expected ", name, " to be on the device of ",
               (TensorName{list, 0}), ", ", first.device(), ", got ", tensor.device());
    CHECK_CALL(call, tensor.scalar_type() == dtype, "expected ", name, " to have the dtype of dst[0], ", dtype,
               ", got ", tensor.scalar_type());
  }
}

// What the checks of one tensor read of it, read once.
struct Geometry {
  at::IntArrayRef sizes;
  at::IntArrayRef strides;
  int64_t itemsize;
  int64_t storage_offset;

  explicit Geometry(const at::Tensor& tensor)
      : sizes(tensor.sizes()),
        strides(tensor.strides()),
        itemsize(static_cast<int64_t>(tensor.itemsize())),
        storage_offset(tensor.storage_offset()) {}
};

// The bytes of storage that a tensor needs, up to the end of its last element. Returns false on overflow.
bool storage_bytes(const Geometry& tensor, uint64_t& bytes) {
  auto elements = static_cast<uint64_t>(tensor.storage_offset) + 1;
  for (size_t dim = 0; dim < tensor.sizes.size(); ++dim) {
    uint64_t reach = 0;
    if (__builtin_mul_overflow(static_cast<uint64_t>(tensor.sizes[dim] - 1), static_cast<uint64_t>(tensor.strides[dim]),
                               &reach) ||
        __builtin_add_overflow(elements, reach, &elements)) {
      return false;
    }
  }
  return !__builtin_mul_overflow(elements, static_cast<uint64_t>(tensor.itemsize), &bytes);
}

// Inlined because checked_rows makes most of the cost of a list of tensors.
C10_ALWAYS_INLINE const char* checked_data(const CallContext& call, TensorName name, const at::Tensor& tensor,
                                           const Geometry& geometry) {
  CHECK_CALL(call, tensor.numel() > 0, "expected ", name, " not to be empty, got shape ", tensor.sizes());
  const at::Storage& storage = tensor.storage();
  uint64_t bytes = 0;
  CHECK_CALL(call, storage_bytes(geometry, bytes) && bytes <= storage.nbytes(), "expected ", name,
             " to lie inside its storage of ", storage.nbytes(), " bytes, got shape ", tensor.sizes(), ", strides ",
             tensor.strides(), ", storage offset ", tensor.storage_offset());
  const auto* const data = static_cast<const char*>(storage.data());
  CHECK_CALL(call, data != nullptr, "expected ", name, " to have memory, got a storage of ", storage.nbytes(),
             " bytes at address 0, as tensor subclasses that wrap others have");
  return data + geometry.storage_offset * geometry.itemsize;
}

// Whether the dimensions after `batch_dim` fill one contiguous range, in any order of their strides.
bool has_dense_rows(const Geometry& tensor, int64_t batch_dim) {
  c10::SmallVector<std::pair<int64_t, int64_t>, 8> dims;  // stride, size
  for (size_t dim = batch_dim + 1; dim < tensor.sizes.size(); ++dim) {
    if (tensor.sizes[dim] > 1) {
      dims.emplace_back(tensor.strides[dim], tensor.sizes[dim]);
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

}  // namespace

void check_lists(const CallContext& call, const Tensors& dst, const Tensors& src) {
  CHECK_CALL(call, dst.size() == src.size(), "expected dst and src to hold the same number of tensors, got ",
             dst.size(), " and ", src.size());
  CHECK_CALL(call, !dst.empty(), "expected dst and src to hold at least one tensor, got empty lists");
  check_list(call, "dst", dst, dst.front());
  check_list(call, "src", src, dst.front());
}

void check_grad(const CallContext& call, const Tensors& dst) {
  if (!at::GradMode::is_enabled()) {
    return;
  }
  for (size_t index = 0; index < dst.size(); ++index) {
    CHECK_CALL(
        call, !dst[index].get().requires_grad(), (TensorName{"dst", static_cast<int64_t>(index)}),
        " requires grad, and a copy into it would be lost to autograd: detach it, or call under torch.no_grad()");
  }
}

void check_copies(const CallContext& call, const at::Tensor& copies) {
  CHECK_CALL(call, copies.defined(), "expected copies to be a tensor, got an undefined one");
  CHECK_CALL(call, copies.layout() == at::kStrided, "expected copies to have the strided layout, got ",
             copies.layout());
  CHECK_CALL(call, copies.is_cpu() || copies.is_meta(), "expected copies on the CPU, got ", copies.device());
  CHECK_CALL(call, copies.scalar_type() == at::kLong, "expected copies of dtype Long (int64), got ",
             copies.scalar_type());
  CHECK_CALL(call, copies.dim() == 2 && copies.sym_size(1) == 4, "expected copies of shape [n, 4], got ",
             copies.sym_sizes());
}

const char* checked_data(const CallContext& call, TensorName name, const at::Tensor& tensor) {
  return checked_data(call, name, tensor, Geometry(tensor));
}

Rows checked_rows(const CallContext& call, TensorName name, const at::Tensor& tensor, int64_t batch_dim) {
  check_batch_dim(call, name, tensor, batch_dim);
  const Geometry geometry(tensor);
  const char* const data = checked_data(call, name, tensor, geometry);
  CHECK_CALL(call, tensor.is_contiguous() || has_dense_rows(geometry, batch_dim), "expected the rows of ", name,
             " to be dense (each one contiguous range of bytes), got shape ", tensor.sizes(), ", strides ",
             tensor.strides(), ", batch_dim ", batch_dim);
  int64_t row_bytes = geometry.itemsize;
  for (size_t dim = batch_dim + 1; dim < geometry.sizes.size(); ++dim) {
    row_bytes *= geometry.sizes[dim];
  }
  const int64_t batch_size = geometry.sizes[batch_dim];
  // The stride of a dimension of size 1 is never used and may have any value.
  const int64_t batch_stride = batch_size == 1 ? row_bytes : geometry.strides[batch_dim] * geometry.itemsize;
  CHECK_CALL(call, batch_stride >= row_bytes, "expected the rows of ", name, " to be at least ", row_bytes,
             " bytes (one row) apart, got ", batch_stride);
  return {data, batch_size, row_bytes, batch_stride};
}

}  // namespace llm_datadist
