// SPDX-License-Identifier: Apache-2.0
//
// Makes the memory and the tensors of a case.
#pragma once

#include <ATen/ATen.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "byte_model.h"

namespace fuzz {

// Memory between two inaccessible pages.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    auto* const all = mmap(nullptr, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = static_cast<uint8_t*>(all) + page;
    if (all == MAP_FAILED || mprotect(data_, bytes, PROT_READ | PROT_WRITE) != 0) {
      std::perror("fuzz: no memory");
      std::exit(2);
    }
  }

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  int64_t bytes_;
};

// The memory blocks of a case, allocated once for each size.
inline const std::vector<Memory>& memories(const Case& c) {
  static std::map<int64_t, std::vector<Memory>> by_size;
  std::vector<Memory>& found = by_size[c.memory_bytes];
  while (static_cast<int>(found.size()) < c.memories) {
    found.emplace_back(c.memory_bytes);
  }
  return found;
}

// Makes a tensor without the checks of torch's functions: a caller may have changed it in any way.
inline at::Tensor make_tensor(const c10::Storage& storage, c10::ScalarType dtype, const Numbers& sizes,
                              const Numbers& strides, int64_t offset) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKey::CPU,
                                                         c10::scalarTypeToTypeMeta(dtype));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return tensor;
}

inline c10::Storage make_storage(void* data, int64_t nbytes) {
  return {c10::Storage::use_byte_size_t(), c10::SymInt(nbytes), at::DataPtr(data, at::kCPU), nullptr, false};
}

inline std::vector<at::Tensor> make_tensors(const std::vector<View>& views, const std::vector<c10::Storage>& storages) {
  std::vector<at::Tensor> tensors;
  for (const View& view : views) {
    tensors.push_back(view.undefined
                          ? at::Tensor()
                          : make_tensor(storages[view.storage], view.dtype, view.sizes, view.strides, view.offset));
    if (view.requires_grad) {
      tensors.back().set_requires_grad(true);
    }
  }
  return tensors;
}

// The copies tensor. Its last byte is next to an inaccessible page.
inline at::Tensor make_copies(const Case& c) {
  static const Memory memory(1 << 16);
  const auto count = static_cast<int64_t>(c.copies.size());
  Numbers numbers;
  for (const Copy& copy : c.copies) {
    numbers.insert(numbers.end(), {copy.dst_batch_index, copy.src_batch_index, copy.offset, copy.size});
  }
  Numbers sizes{count, 4};
  Numbers strides{4, 1};
  auto dtype = at::kLong;
  switch (c.form) {
    case Copies::kContiguous:
      break;
    case Copies::kTransposed:
      strides = {1, count};
      break;
    case Copies::kInterleaved:  // as columns of a wider tensor
      strides = {12, 3};
      break;
    case Copies::kRepeated:
      sizes = {int64_t{1} << 40, 4};
      strides = {0, 1};
      break;
    case Copies::kInt32:
      dtype = at::kInt;
      break;
    case Copies::kThreeColumns:
      sizes = {count, 3};
      break;
    case Copies::kOneDimension:
      sizes = {count * 4};
      strides = {1};
      break;
    case Copies::kOutsideStorage:
      break;
    case Copies::kUndefined:
      return {};
  }
  Wide extent = 1;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    extent += Wide{sizes[dim] - 1} * strides[dim];
  }
  int64_t nbytes = numbers.empty() ? 0 : static_cast<int64_t>(extent) * c10::elementSize(dtype);
  TORCH_CHECK(nbytes <= memory.bytes(), "fuzz: more copies than there is memory for");
  nbytes -= c.form == Copies::kOutsideStorage ? 8 : 0;
  uint8_t* const begin = memory.data() + memory.bytes() - nbytes;
  // The values matter only in forms that the op accepts.
  for (int64_t at = 0; c.form < Copies::kInt32 && at < static_cast<int64_t>(numbers.size()); ++at) {
    std::memcpy(begin + (at / 4 * strides[0] + at % 4 * strides[1]) * 8, &numbers[at], sizeof numbers[at]);
  }
  return make_tensor(make_storage(begin, nbytes), dtype, sizes, strides, 0);
}

}  // namespace fuzz
