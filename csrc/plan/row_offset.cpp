// SPDX-License-Identifier: Apache-2.0
#include "row_offset.h"

#include <algorithm>

#include "address_range.h"

namespace llm_datadist {
namespace {

struct Dim {
  int64_t stride;  // bytes
  int64_t size;
};

// The dimensions before the batch, and the batch.
using Dims = c10::SmallVector<Dim, 8>;

Dims dims_of(const TensorPair::Side& side, int64_t batch_dim) {
  const at::Tensor& tensor = *side.tensor;
  Dims dims;
  for (int64_t dim = 0; dim < batch_dim; ++dim) {
    // The stride of a dimension of size 1 is never used and may have any value.
    const int64_t stride = tensor.size(dim) == 1 ? 0 : tensor.stride(dim) * static_cast<int64_t>(tensor.itemsize());
    dims.push_back({stride, tensor.size(dim)});
  }
  dims.push_back({side.rows.batch_stride, side.rows.batch_size});
  return dims;
}

AddressRange footprint(const TensorPair::Side& side, const Dims& dims) {
  int64_t bytes = side.rows.row_bytes;
  for (const Dim& dim : dims) {
    bytes += dim.stride * (dim.size - 1);
  }
  return range_of(side.rows.data, bytes);
}

// Whether no two rows share a byte: the stride of every dimension spans all that smaller strides reach.
bool nested(Dims dims, int64_t row_bytes) {
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

// Whether the rows of both tensors belong to one grid of rows, of which no two share a byte.
bool in_one_grid(const TensorPair& pair, Dims dst, const Dims& src, int64_t row_offset) {
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
  return nested(dst, std::max(pair.dst.rows.row_bytes, pair.src.rows.row_bytes));
}

struct Footprint {
  AddressRange range;
  bool written;
};

// Whether no footprint that is written overlaps another one.
bool written_ones_apart(std::vector<Footprint>& footprints) {
  std::sort(footprints.begin(), footprints.end(),
            [](const Footprint& a, const Footprint& b) { return a.range.begin < b.range.begin; });
  uintptr_t end = 0;
  uintptr_t written_end = 0;
  for (const auto& [range, written] : footprints) {
    if (range.begin < (written ? end : written_end)) {
      return false;
    }
    end = std::max(end, range.end);
    written_end = written ? range.end : written_end;
  }
  return true;
}

}  // namespace

std::optional<std::vector<RowOffset>> row_offsets(const std::vector<TensorPair>& pairs) {
  std::vector<RowOffset> row_offsets;
  std::vector<Footprint> footprints;
  row_offsets.reserve(pairs.size());
  footprints.reserve(2 * pairs.size());
  for (const TensorPair& pair : pairs) {
    const Dims dst = dims_of(pair.dst, pair.batch_dim);
    const Dims src = dims_of(pair.src, pair.batch_dim);
    const AddressRange written = footprint(pair.dst, dst);
    const AddressRange read = footprint(pair.src, src);
    const int64_t row_offset = distance(pair.dst.rows.data, pair.src.rows.data);
    if (!nested(dst, pair.dst.rows.row_bytes)) {
      return std::nullopt;
    }
    if (disjoint(written, read)) {
      row_offsets.emplace_back();
      footprints.push_back({written, true});
      footprints.push_back({read, false});
    } else if (in_one_grid(pair, dst, src, row_offset)) {
      row_offsets.emplace_back(row_offset);
      footprints.push_back({hull(written, read), true});
    } else {
      return std::nullopt;
    }
  }
  if (!written_ones_apart(footprints)) {
    return std::nullopt;
  }
  return row_offsets;
}

}  // namespace llm_datadist
