// SPDX-License-Identifier: Apache-2.0
#include "overlap.h"

#include <algorithm>

namespace llm_datadist {
namespace {

// The addresses [begin, end).
struct Range {
  Address begin;
  Address end;
};

bool disjoint(const Range& a, const Range& b) { return a.end <= b.begin || b.end <= a.begin; }

Range hull(const Range& a, const Range& b) { return {std::min(a.begin, b.begin), std::max(a.end, b.end)}; }

struct Dim {
  int64_t stride;  // bytes
  int64_t size;
};

// The dimensions before the batch, and the batch.
using Dims = c10::SmallVector<Dim, 4>;

Dims dims_of(const TensorPair::Side& side, int64_t batch_dim) {
  const at::Tensor& tensor = *side.tensor;
  Dims dims;
  for (int64_t dim = 0; dim < batch_dim; ++dim) {
    // A dimension of size 1 may have any stride: nothing uses it.
    const int64_t stride = tensor.size(dim) == 1 ? 0 : tensor.stride(dim) * static_cast<int64_t>(tensor.itemsize());
    dims.push_back({stride, tensor.size(dim)});
  }
  dims.push_back({side.rows.stride, side.rows.batch_size});
  return dims;
}

// From the first byte of the first row to the last byte of the last one.
Range extent(const TensorPair::Side& side, int64_t batch_dim) {
  int64_t bytes = (side.rows.batch_size - 1) * side.rows.stride + side.rows.bytes;
  for (int64_t dim = 0; dim < batch_dim; ++dim) {
    const at::Tensor& tensor = *side.tensor;
    // Nothing for a size of 1, whose stride may be any number.
    bytes += (tensor.size(dim) - 1) * tensor.stride(dim) * static_cast<int64_t>(tensor.itemsize());
  }
  return {side.rows.row_0, side.rows.row_0 + bytes};
}

// Whether no two rows share a byte: the stride of every dimension spans all that smaller strides reach.
bool apart(Dims dims, int64_t row_bytes) {
  std::sort(dims.begin(), dims.end(), [](const Dim& a, const Dim& b) { return a.stride < b.stride; });
  int64_t reach = row_bytes;
  for (const Dim& dim : dims) {
    if (dim.size > 1 && dim.stride < reach) {
      return false;
    }
    reach += dim.stride * (dim.size - 1);
  }
  return true;
}

bool rows_apart(const TensorPair::Side& side, int64_t batch_dim) {
  return apart(dims_of(side, batch_dim), side.rows.bytes);
}

// Whether the rows of both tensors lie on one grid of rows, of which no two share a byte.
bool on_one_grid(const TensorPair& pair, int64_t row_offset) {
  Dims dst = dims_of(pair.dst, pair.batch_dim);
  const Dims src = dims_of(pair.src, pair.batch_dim);
  for (int64_t dim = 0; dim < pair.batch_dim; ++dim) {
    if (dst[dim].size > 1 && dst[dim].stride != src[dim].stride) {
      return false;
    }
  }
  Dim& batch = dst.back();
  const int64_t src_batch = src.back().size;
  if (batch.size == 1) {
    batch.stride = src.back().stride;
  }
  if ((src_batch > 1 && src.back().stride != batch.stride) || row_offset % batch.stride != 0) {
    return false;
  }
  const int64_t first = row_offset / batch.stride;
  batch.size = std::max(batch.size, first + src_batch) - std::min<int64_t>(0, first);
  return apart(dst, std::max(pair.dst.rows.bytes, pair.src.rows.bytes));
}

// A quick test without sorting, true for most calls between two caches: the addresses of dst ascend or descend, and
// those of src lie all before or all after them.
bool clearly_apart(c10::ArrayRef<TensorPair> pairs) {
  Range all_dst{UINTPTR_MAX, 0};
  Range all_src{UINTPTR_MAX, 0};
  bool ascends = true;
  bool descends = true;
  for (const TensorPair& pair : pairs) {
    const Range dst = extent(pair.dst, pair.batch_dim);
    ascends = ascends && dst.begin >= all_dst.end;
    descends = descends && dst.end <= all_dst.begin;
    if ((!ascends && !descends) || (pair.batch_dim > 0 && !rows_apart(pair.dst, pair.batch_dim))) {
      return false;
    }
    all_dst = hull(all_dst, dst);
    all_src = hull(all_src, extent(pair.src, pair.batch_dim));
  }
  return disjoint(all_dst, all_src);
}

struct Memory {
  Range range;
  bool written;
};

// Whether memory that is written overlaps other memory.
bool any_overlap(c10::SmallVectorImpl<Memory>& memory) {
  std::sort(memory.begin(), memory.end(),
            [](const Memory& a, const Memory& b) { return a.range.begin < b.range.begin; });
  Address end = 0;
  Address written_end = 0;
  for (const auto& [range, written] : memory) {
    if (range.begin < (written ? end : written_end)) {
      return true;
    }
    end = std::max(end, range.end);
    written_end = written ? range.end : written_end;
  }
  return false;
}

}  // namespace

Overlap find_overlap(c10::ArrayRef<TensorPair> pairs) {
  Overlap overlap;
  if (clearly_apart(pairs)) {
    return overlap;
  }
  c10::SmallVector<Memory, 2> memory;
  memory.reserve(2 * pairs.size());
  overlap.row_offsets.reserve(pairs.size());
  for (const TensorPair& pair : pairs) {
    if (pair.batch_dim > 0 && !rows_apart(pair.dst, pair.batch_dim)) {
      return {true};
    }
    const Range written = extent(pair.dst, pair.batch_dim);
    const Range read = extent(pair.src, pair.batch_dim);
    const auto row_offset = static_cast<int64_t>(pair.src.rows.row_0 - pair.dst.rows.row_0);
    if (!disjoint(written, read) && on_one_grid(pair, row_offset)) {
      overlap.row_offsets.emplace_back(row_offset);
      memory.push_back({hull(written, read), true});
    } else {
      overlap.row_offsets.emplace_back();
      memory.push_back({written, true});
      memory.push_back({read, false});
    }
  }
  if (any_overlap(memory)) {
    return {true};
  }
  return overlap;
}

}  // namespace llm_datadist
