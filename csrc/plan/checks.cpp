// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/AutogradState.h>

#include <algorithm>
#include <utility>

namespace llm_datadist {
namespace {

void check_list(const CallContext& call, const char* list, const Tensors& tensors) {
  const at::Tensor& first = tensors.front();
  for (size_t index = 0; index < tensors.size(); ++index) {
    const TensorName name{list, static_cast<int64_t>(index)};
    const at::Tensor& tensor = tensors[index];
    CHECK_CALL(call, tensor.defined(), "expected ", name, " to be a tensor, got an undefined one");
    CHECK_CALL(call, tensor.layout() == at::kStrided, "expected ", name, " to have the strided layout, got ",
               tensor.layout());
    CHECK_CALL(call, tensor.device() == first.device(), "expected ", name, " to be on the device of ",
               (TensorName{list, 0}), ", ", first.device(), ", got ", tensor.device());
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

// Checks that a tensor is not empty and lies inside its storage, which may have been resized since. Returns the address
// of its first element. Inlined, because it makes most of the cost of a list of tensors.
C10_ALWAYS_INLINE Address checked_address(const CallContext& call, TensorName name, const at::Tensor& tensor,
                                          const Geometry& geometry) {
  CHECK_CALL(call, tensor.numel() > 0, "expected ", name, " not to be empty, got shape ", tensor.sizes());
  const at::Storage& storage = tensor.storage();
  uint64_t bytes = 0;
  CHECK_CALL(call, storage_bytes(geometry, bytes) && bytes <= storage.nbytes(), "expected ", name,
             " to lie inside its storage of ", storage.nbytes(), " bytes, got shape ", tensor.sizes(), ", strides ",
             tensor.strides(), ", storage offset ", tensor.storage_offset());
  CHECK_CALL(call, storage.data() != nullptr, "expected ", name, " to have memory, got a storage of ", storage.nbytes(),
             " bytes at address 0, as tensor subclasses that wrap others have");
  return reinterpret_cast<Address>(storage.data()) + geometry.storage_offset * geometry.itemsize;
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

// torch makes an expanded tensor of a ZeroTensor before the kernel sees it.
constexpr const char* kExpanded = ": it is expanded, or a ZeroTensor (zeros of autograd without memory); clone it";

bool is_expanded(const Geometry& tensor) {
  return std::find(tensor.strides.begin(), tensor.strides.end(), 0) != tensor.strides.end();
}

Rows checked_rows(const CallContext& call, TensorName name, const at::Tensor& tensor, int64_t batch_dim) {
  check_batch_dim(call, name, tensor, batch_dim);
  const Geometry geometry(tensor);
  const Address address = checked_address(call, name, tensor, geometry);
  CHECK_CALL(call, tensor.is_contiguous() || has_dense_rows(geometry, batch_dim), "expected the rows of ", name,
             " to be dense (each one contiguous range of bytes), got shape ", tensor.sizes(), ", strides ",
             tensor.strides(), ", batch_dim ", batch_dim, is_expanded(geometry) ? kExpanded : "");
  int64_t bytes = geometry.itemsize;
  for (size_t dim = batch_dim + 1; dim < geometry.sizes.size(); ++dim) {
    bytes *= geometry.sizes[dim];
  }
  const int64_t batch_size = geometry.sizes[batch_dim];
  // A dimension of size 1 may have any stride: nothing uses it.
  const int64_t stride = batch_size == 1 ? bytes : geometry.strides[batch_dim] * geometry.itemsize;
  CHECK_CALL(call, stride >= bytes, "expected the rows of ", name, " to be at least ", bytes,
             " bytes (one row) apart, got ", stride);
  return {address, batch_size, bytes, stride};
}

void check_batch_index(const CallContext& call, const char* name, int64_t index, const Rows& rows, TensorName tensor) {
  CHECK_CALL(call, 0 <= index && index < rows.batch_size, name, " (", index, ") out of range [0, ", rows.batch_size,
             "), the batch of ", tensor);
}

void check_offset(const CallContext& call, const char* name, int64_t offset, const Rows& rows, TensorName tensor) {
  CHECK_CALL(call, 0 <= offset && offset < rows.bytes, name, " (", offset, ") out of range [0, ", rows.bytes,
             "), the bytes of a row of ", tensor);
}

// Compares with the rest of the row, because offset + size may not fit in 64 bits.
void check_size(const CallContext& call, int64_t size, const char* name, int64_t offset, const Rows& rows,
                TensorName tensor) {
  CHECK_CALL(call, size <= rows.bytes - offset, name, " (", offset, ") plus size (", size, ") runs past the row of ",
             tensor, ", ", rows.bytes, " bytes");
}

}  // namespace

void check_lists(const CallContext& call, const Tensors& dst, const Tensors& src) {
  CHECK_CALL(call, dst.size() == src.size(), "expected dst and src to hold the same number of tensors, got ",
             dst.size(), " and ", src.size());
  CHECK_CALL(call, !dst.empty(), "expected dst and src to hold at least one tensor, got empty lists");
  check_list(call, "dst", dst);
  check_list(call, "src", src);
  for (size_t index = 0; index < dst.size(); ++index) {
    const at::ScalarType expected = dst[index].get().scalar_type();
    const at::ScalarType got = src[index].get().scalar_type();
    const auto at = static_cast<int64_t>(index);
    CHECK_CALL(call, got == expected, "expected ", (TensorName{"src", at}), " to have the dtype of ",
               (TensorName{"dst", at}), ", ", expected, ", got ", got);
  }
}

void check_derivatives(const CallContext& call, const char* list, const Tensors& tensors, bool written) {
  const bool grad_mode = at::GradMode::is_enabled();
  const bool tangents = c10::AutogradState::get_tls_state().get_fw_grad_mode();
  int64_t index = 0;
  for (const at::Tensor& tensor : tensors) {
    const TensorName name{list, index++};
    const bool tracked = written || tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper);
    CHECK_CALL(call, !(grad_mode && tracked && tensor.requires_grad()), name,
               " requires grad, and its gradient would be lost: detach it, or call under torch.no_grad()");
    CHECK_CALL(call, !(tangents && tensor._fw_grad(/*level=*/0).defined()), name,
               " is a dual tensor, and the copy would lose its tangent: pass the primal of "
               "torch.autograd.forward_ad.unpack_dual");
  }
}

void check_inference(const CallContext& call, const Tensors& dst) {
  int64_t index = 0;
  for (const at::Tensor& tensor : dst) {
    CHECK_CALL(call, !tensor.is_inference(), (TensorName{"dst", index}),
               " is an inference tensor, which can be written under torch.inference_mode() only");
    ++index;
  }
}

void check_copies(const CallContext& call, const at::Tensor& copies) {
  CHECK_CALL(call, copies.defined(), "expected copies to be a tensor, got an undefined one");
  CHECK_CALL(call, copies.layout() == at::kStrided, "expected copies to have the strided layout, got ",
             copies.layout());
  CHECK_CALL(call, copies.scalar_type() == at::kLong, "expected copies of dtype Long (int64), got ",
             copies.scalar_type());
  CHECK_CALL(call, copies.dim() == 2 && (copies.sym_size(1) == 4 || copies.sym_size(1) == 5),
             "expected copies of shape [n, 4] or [n, 5], got ", copies.sym_sizes());
}

Copies read_copies(const CallContext& call, const at::Tensor& copies) {
  check_copies(call, copies);
  CHECK_CALL(call, copies.is_cpu(), "expected copies on the CPU, got ", copies.device());
  Copies result{{}, true, copies.size(1) == 5};
  if (copies.size(0) == 0) {
    return result;
  }
  checked_address(call, TensorName{"copies"}, copies, Geometry(copies));
  const auto* row = copies.const_data_ptr<int64_t>();
  const int64_t column = copies.stride(1);
  const int64_t src_offset = result.two_offsets ? 4 : 2;
  // A row repeated by a stride of 0 writes the same bytes again, and may repeat any number of times: the first
  // repetition is enough to refuse it.
  const int64_t count = copies.stride(0) == 0 ? std::min<int64_t>(copies.size(0), 2) : copies.size(0);
  result.list.reserve(count);
  for (int64_t index = 0; index < count; ++index, row += copies.stride(0)) {
    result.list.push_back({row[0], row[column], row[2 * column], row[3 * column], row[src_offset * column]});
  }
  return result;
}

TensorPair checked_pair(const CallContext& call, const at::Tensor& dst, const at::Tensor& src, int64_t index,
                        int64_t batch_dim) {
  const TensorPair pair{{&dst, checked_rows(call, {"dst", index}, dst, batch_dim)},
                        {&src, checked_rows(call, {"src", index}, src, batch_dim)},
                        index,
                        batch_dim};
  CHECK_CALL(call, batch_dim == 0 || dst.sizes().slice(0, batch_dim) == src.sizes().slice(0, batch_dim),
             "expected the sizes before batch_dim (", batch_dim, ") to be the same, got ", dst.sizes(), " for ",
             pair.dst_name(), " and ", src.sizes(), " for ", pair.src_name());
  return pair;
}

Move checked_move(CallContext call, const Copies& copies, int64_t index, const TensorPair& pair) {
  call.copy = copies.named ? index : -1;
  const Copy& copy = copies.list[index];
  const char* const dst_offset = copies.two_offsets ? "dst_offset" : "offset";
  const char* const src_offset = copies.two_offsets ? "src_offset" : "offset";
  const Rows& dst = pair.dst.rows;
  const Rows& src = pair.src.rows;
  check_batch_index(call, "dst_batch_index", copy.dst_batch_index, dst, pair.dst_name());
  check_batch_index(call, "src_batch_index", copy.src_batch_index, src, pair.src_name());
  check_offset(call, dst_offset, copy.dst_offset, dst, pair.dst_name());
  check_offset(call, src_offset, copy.src_offset, src, pair.src_name());
  CHECK_CALL(call, copy.size > 0 || copy.size == -1, "size (", copy.size,
             ") must be greater than 0, or -1 for the rest of the row");
  int64_t bytes = copy.size;
  if (copy.size == -1) {
    bytes = src.bytes - copy.src_offset;
    CHECK_CALL(call, bytes <= dst.bytes - copy.dst_offset, "size (-1) means the ", bytes, " bytes of the row of ",
               pair.src_name(), " from ", src_offset, " (", copy.src_offset, "), which runs past the row of ",
               pair.dst_name(), ", ", dst.bytes, " bytes");
  } else {
    check_size(call, copy.size, dst_offset, copy.dst_offset, dst, pair.dst_name());
    check_size(call, copy.size, src_offset, copy.src_offset, src, pair.src_name());
  }
  return {copy.dst_batch_index * dst.stride + copy.dst_offset, copy.src_batch_index * src.stride + copy.src_offset,
          bytes, call.copy};
}

void check_leading_dims(const CallContext& call, const TensorPair& pair, c10::ArrayRef<Move> moves) {
  const at::Tensor& dst = *pair.dst.tensor;
  const auto itemsize = static_cast<int64_t>(dst.itemsize());
  int64_t widest = 0;
  int64_t bytes = 0;
  for (const Move& move : moves) {
    widest = std::max(widest, move.bytes);
    bytes += move.bytes;
  }
  bool apart = true;
  int64_t places = 1;
  int64_t reach = (pair.dst.rows.batch_size - 1) * pair.dst.rows.stride + pair.dst.rows.bytes;
  for (int64_t dim = 0; dim < pair.batch_dim; ++dim) {
    if (dst.size(dim) > 1) {
      const int64_t pitch = dst.stride(dim) * itemsize;
      apart = apart && pitch >= widest;
      places *= dst.size(dim);
      reach += (dst.size(dim) - 1) * pitch;
    }
  }
  // More ranges than there are bytes for cannot all be apart. They may also be too many to list.
  CHECK_CALL(call, places == 1 || (apart && places <= reach / bytes), "the ranges of ", pair.dst_name(),
             " overlap one another: got shape ", dst.sizes(), ", strides ", dst.strides());
}

}  // namespace llm_datadist
