// SPDX-License-Identifier: Apache-2.0
//
// One call of an op as plain numbers. The generator makes it, the model checks it, a failure prints it.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <vector>

namespace fuzz {

using Numbers = std::vector<int64_t>;

// Bytes [begin, begin + nbytes) of a memory block. Two storages may share bytes.
struct Storage {
  int memory;
  int64_t begin;
  int64_t nbytes;
  bool null;  // has nbytes, but a null data pointer
};

struct View {
  int storage;
  c10::ScalarType dtype;
  Numbers sizes;
  Numbers strides;
  int64_t offset;
  bool undefined = false;
  bool requires_grad = false;

  int64_t itemsize() const { return static_cast<int64_t>(c10::elementSize(dtype)); }
};

// The elements from the first to the last one, inclusive.
inline int64_t extent(const Numbers& sizes, const Numbers& strides) {
  int64_t last = 0;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    last += (sizes[dim] - 1) * strides[dim];
  }
  return last + 1;
}

struct Copy {
  int64_t dst_batch_index;
  int64_t src_batch_index;
  int64_t offset;
  int64_t size;
};

// The form of the copies tensor. kRepeated: one row, repeated by a stride of 0. copy_cache_batch refuses the forms from
// kInt32 on.
enum class Copies {
  kContiguous,
  kTransposed,
  kInterleaved,
  kRepeated,
  kInt32,
  kThreeColumns,
  kOneDimension,
  kOutsideStorage,
  kUndefined,
  kLast = kUndefined
};

struct Case {
  int64_t memory_bytes;
  int memories;
  std::vector<Storage> storages;
  std::vector<View> dst;
  std::vector<View> src;
  bool batch;  // copy_cache_batch, with any number of copies; else copy_cache, with one
  Copies form = Copies::kContiguous;
  std::vector<Copy> copies;
  int64_t batch_dim;
  std::optional<int64_t> req_id;
};

inline std::ostream& operator<<(std::ostream& out, const Numbers& numbers) {
  out << '[';
  for (size_t i = 0; i < numbers.size(); ++i) {
    out << (i ? ", " : "") << numbers[i];
  }
  return out << ']';
}

inline std::ostream& operator<<(std::ostream& out, const View& view) {
  if (view.undefined) {
    return out << "undefined";
  }
  return out << view.dtype << " sizes " << view.sizes << " strides " << view.strides << " offset " << view.offset
             << " of storage " << view.storage << (view.requires_grad ? ", requires grad" : "");
}

inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  out << c.memories << " memories of " << c.memory_bytes << " bytes\n";
  for (size_t i = 0; i < c.storages.size(); ++i) {
    const Storage& s = c.storages[i];
    out << "  storage " << i << ": bytes [" << s.begin << ", " << s.begin + s.nbytes << ") of memory " << s.memory
        << (s.null ? ", at address 0" : "") << '\n';
  }
  for (size_t i = 0; i < c.dst.size(); ++i) {
    out << "  dst[" << i << "]: " << c.dst[i] << '\n';
  }
  for (size_t i = 0; i < c.src.size(); ++i) {
    out << "  src[" << i << "]: " << c.src[i] << '\n';
  }
  for (const Copy& copy : c.copies) {
    out << "  dst_batch_index " << copy.dst_batch_index << ", src_batch_index " << copy.src_batch_index << ", offset "
        << copy.offset << ", size " << copy.size << '\n';
  }
  out << "  batch_dim " << c.batch_dim;
  if (c.req_id) {
    out << ", req_id " << *c.req_id;
  }
  return out << (c.batch ? ", copies in form " + std::to_string(static_cast<int>(c.form)) : "") << '\n';
}

}  // namespace fuzz
