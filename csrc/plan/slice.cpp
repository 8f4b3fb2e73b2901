// SPDX-License-Identifier: Apache-2.0
#include "slice.h"

#include <algorithm>

namespace llm_datadist {
namespace {

void check_batch_index(const CallContext& call, const char* name, int64_t index, const TensorPair::Side& side) {
  CHECK_CALL(call, 0 <= index && index < side.rows.batch_size, name, " (", index, ") out of range [0, ",
             side.rows.batch_size, "), the batch of ", side.name);
}

void check_offset(const CallContext& call, int64_t offset, const TensorPair::Side& side) {
  CHECK_CALL(call, 0 <= offset && offset < side.rows.row_bytes, "offset (", offset, ") out of range [0, ",
             side.rows.row_bytes, "), the bytes of a row of ", side.name);
}

// Compares with the rest of the row, because offset + size may not fit in 64 bits.
void check_size(const CallContext& call, int64_t size, int64_t offset, const TensorPair::Side& side) {
  CHECK_CALL(call, size <= side.rows.row_bytes - offset, "offset (", offset, ") plus size (", size,
             ") runs past the row of ", side.name, ", ", side.rows.row_bytes, " bytes");
}

int64_t checked_width(const CallContext& call, const Slice& slice, const TensorPair& pair) {
  const auto& [dst, src, batch_dim] = pair;
  check_batch_index(call, "dst_batch_index", slice.dst_batch_index, dst);
  check_batch_index(call, "src_batch_index", slice.src_batch_index, src);
  check_offset(call, slice.offset, dst);
  check_offset(call, slice.offset, src);
  CHECK_CALL(call, slice.size > 0 || slice.size == -1, "size (", slice.size,
             ") must be greater than 0, or -1 for the rest of the row");
  if (slice.size == -1) {
    const int64_t rest = src.rows.row_bytes - slice.offset;
    CHECK_CALL(call, rest <= dst.rows.row_bytes - slice.offset, "size (-1) means the ", rest, " bytes of the row of ",
               src.name, " from offset (", slice.offset, "), which runs past the row of ", dst.name, ", ",
               dst.rows.row_bytes, " bytes");
    return rest;
  }
  check_size(call, slice.size, slice.offset, dst);
  check_size(call, slice.size, slice.offset, src);
  return slice.size;
}

}  // namespace

ByteCopy checked_copy(const CallContext& call, const Slice& slice, const TensorPair& pair) {
  const int64_t width = checked_width(call, slice, pair);
  return {slice.dst_batch_index * pair.dst.rows.batch_stride + slice.offset,
          slice.src_batch_index * pair.src.rows.batch_stride + slice.offset, width, pair.dst.name.index};
}

std::vector<Slice> read_slices(const CallContext& call, const at::Tensor& copies) {
  check_copies(call, copies);
  std::vector<Slice> slices;
  if (copies.size(0) == 0) {
    return slices;
  }
  checked_data(call, TensorName{"copies"}, copies);
  const auto* row = copies.const_data_ptr<int64_t>();
  const int64_t column = copies.stride(1);
  // A row repeated by a stride of 0 writes the same bytes again, and may repeat any number of times: the first
  // repetition is enough to refuse it.
  const int64_t count = copies.stride(0) == 0 ? std::min<int64_t>(copies.size(0), 2) : copies.size(0);
  slices.reserve(count);
  for (int64_t index = 0; index < count; ++index, row += copies.stride(0)) {
    slices.push_back({row[0], row[column], row[2 * column], row[3 * column]});
  }
  return slices;
}

}  // namespace llm_datadist
