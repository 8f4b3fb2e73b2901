// SPDX-License-Identifier: Apache-2.0
#include "slice.h"

#include <algorithm>

namespace llm_datadist {
namespace {

void check_batch_index(const Call& call, const char* name, int64_t index, Item item, const RowLayout& rows) {
  CHECK_CALL(call, 0 <= index && index < rows.batch_size, name, " (", index, ") out of range [0, ", rows.batch_size,
             "), the batch of ", item);
}

void check_offset(const Call& call, int64_t offset, Item item, const RowLayout& rows) {
  CHECK_CALL(call, 0 <= offset && offset < rows.row_bytes, "offset (", offset, ") out of range [0, ", rows.row_bytes,
             "), the bytes of a row of ", item);
}

// Compares with what is left of the row: offset + size may not fit in 64 bits.
void check_size(const Call& call, int64_t size, int64_t offset, Item item, const RowLayout& rows) {
  CHECK_CALL(call, size <= rows.row_bytes - offset, "offset (", offset, ") plus size (", size,
             ") runs past the row of ", item, ", ", rows.row_bytes, " bytes");
}

}  // namespace

int64_t checked_width(const Call& call, const Slice& slice, Item dst_item, const RowLayout& dst, Item src_item,
                      const RowLayout& src) {
  check_batch_index(call, "dst_batch_index", slice.dst_batch_index, dst_item, dst);
  check_batch_index(call, "src_batch_index", slice.src_batch_index, src_item, src);
  check_offset(call, slice.offset, dst_item, dst);
  check_offset(call, slice.offset, src_item, src);
  CHECK_CALL(call, slice.size > 0 || slice.size == -1, "size (", slice.size,
             ") must be greater than 0, or -1 for the rest of the row");
  if (slice.size == -1) {
    const int64_t rest = src.row_bytes - slice.offset;
    CHECK_CALL(call, rest <= dst.row_bytes - slice.offset, "size (-1) means the ", rest, " bytes of the row of ",
               src_item, " from offset (", slice.offset, "), which runs past the row of ", dst_item, ", ",
               dst.row_bytes, " bytes");
    return rest;
  }
  check_size(call, slice.size, slice.offset, dst_item, dst);
  check_size(call, slice.size, slice.offset, src_item, src);
  return slice.size;
}

void check_copies(const Call& call, const at::Tensor& copies) {
  CHECK_CALL(call, copies.defined(), "expected copies to be a tensor, got an undefined one");
  CHECK_CALL(call, copies.layout() == at::kStrided, "expected copies to have the strided layout, got ",
             copies.layout());
  CHECK_CALL(call, copies.is_cpu() || copies.is_meta(), "expected copies on the CPU, got ", copies.device());
  CHECK_CALL(call, copies.scalar_type() == at::kLong, "expected copies of dtype Long (int64), got ",
             copies.scalar_type());
  CHECK_CALL(call, copies.dim() == 2 && copies.sym_size(1) == 4, "expected copies of shape [n, 4], got ",
             copies.sym_sizes());
}

std::vector<Slice> read_slices(const Call& call, const at::Tensor& copies) {
  check_copies(call, copies);
  std::vector<Slice> slices;
  if (copies.size(0) == 0) {
    return slices;
  }
  checked_memory(call, Item{"copies"}, copies);
  const auto* row = copies.const_data_ptr<int64_t>();
  const int64_t step = copies.stride(1);
  // A row that is repeated without being stored (stride 0) writes the same bytes twice, and can be there any number of
  // times: the first repetition decides.
  const int64_t count = copies.stride(0) == 0 ? std::min<int64_t>(copies.size(0), 2) : copies.size(0);
  slices.reserve(count);
  for (int64_t index = 0; index < count; ++index, row += copies.stride(0)) {
    slices.push_back({row[0], row[step], row[2 * step], row[3 * step]});
  }
  return slices;
}

}  // namespace llm_datadist
