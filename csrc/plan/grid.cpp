// SPDX-License-Identifier: Apache-2.0
#include "grid.h"

#include <algorithm>

#include "extent.h"

namespace llm_datadist {
namespace {

struct Dim {
  int64_t stride;  // bytes
  int64_t size;
};

// The dimensions before the batch, and the batch.
using Dims = c10::SmallVector<Dim, 8>;

Dims dims_of(const at::Tensor& tensor, const RowLayout& rows, int64_t batch_dim) {
  Dims dims;
  for (int64_t dim = 0; dim < batch_dim; ++dim) {
    // The stride of a dimension of one is never walked and may be anything.
    const int64_t stride = tensor.size(dim) == 1 ? 0 : tensor.stride(dim) * static_cast<int64_t>(tensor.itemsize());
    dims.push_back({stride, tensor.size(dim)});
  }
  dims.push_back({rows.batch_stride, rows.batch_size});
  return dims;
}

Extent footprint(const char* first, const Dims& dims, int64_t row_bytes) {
  int64_t bytes = row_bytes;
  for (const Dim& dim : dims) {
    bytes += dim.stride * (dim.size - 1);
  }
  return extent_of(first, bytes);
}

// Whether no two rows share a byte: every dimension steps over all that the smaller steps reach.
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

// Whether the rows of both tensors are rows of one grid, of which no two share a byte.
bool in_one_grid(const TensorPair& pair, Dims dst, const Dims& src, int64_t shift) {
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
  if ((src_batch > 1 && src.back().stride != batch.stride) || shift % batch.stride != 0) {
    return false;
  }
  const int64_t first = shift / batch.stride;
  batch.size = std::max(batch.size, first + src_batch) - std::min<int64_t>(0, first);
  return nested(dst, std::max(pair.dst_rows.row_bytes, pair.src_rows.row_bytes));
}

struct Footprint {
  Extent extent;
  bool written;
};

// Whether no footprint that is written overlaps another one.
bool apart(std::vector<Footprint>& footprints) {
  std::sort(footprints.begin(), footprints.end(),
            [](const Footprint& a, const Footprint& b) { return a.extent.begin < b.extent.begin; });
  uintptr_t end = 0;
  uintptr_t written_end = 0;
  for (const auto& [extent, written] : footprints) {
    if (extent.begin < (written ? end : written_end)) {
      return false;
    }
    end = std::max(end, extent.end);
    written_end = written ? extent.end : written_end;
  }
  return true;
}

}  // namespace

std::optional<std::vector<Shift>> independent_places(const std::vector<TensorPair>& pairs) {
  std::vector<Shift> shifts;
  std::vector<Footprint> footprints;
  for (const TensorPair& pair : pairs) {
    const Dims dst = dims_of(*pair.dst, pair.dst_rows, pair.batch_dim);
    const Dims src = dims_of(*pair.src, pair.src_rows, pair.batch_dim);
    const Extent written = footprint(pair.to(), dst, pair.dst_rows.row_bytes);
    const Extent read = footprint(pair.from(), src, pair.src_rows.row_bytes);
    const int64_t shift = distance(pair.to(), pair.from());
    if (!nested(dst, pair.dst_rows.row_bytes)) {
      return std::nullopt;
    }
    if (disjoint(written, read)) {
      shifts.emplace_back();
      footprints.push_back({written, true});
      footprints.push_back({read, false});
    } else if (in_one_grid(pair, dst, src, shift)) {
      shifts.emplace_back(shift);
      footprints.push_back({hull(written, read), true});
    } else {
      return std::nullopt;
    }
  }
  if (!apart(footprints)) {
    return std::nullopt;
  }
  return shifts;
}

}  // namespace llm_datadist
