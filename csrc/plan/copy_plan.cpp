// SPDX-License-Identifier: Apache-2.0
#include "copy_plan.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "overlap.h"
#include "row_layout.h"

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

// Both checks compare with what is left of the row: offset + size may not fit in 64 bits.
void check_size(const Call& call, int64_t size, int64_t offset, Item item, const RowLayout& rows) {
  CHECK_CALL(call, size <= rows.row_bytes - offset, "offset (", offset, ") plus size (", size,
             ") runs past the row of ", item, ", ", rows.row_bytes, " bytes");
}

// The bytes to copy from each row of one tensor.
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

// Makes `copy` a continuation of the last entry, if it is one. A pitch below the width would not be a strided copy but
// an overlap (or, on the source side, a broadcast): those stay separate entries.
bool extend_last(CopyPlan& plan, const StridedCopy& copy) {
  if (plan.copies.empty()) {
    return false;
  }
  StridedCopy& last = plan.copies.back();
  const int64_t dst_pitch = last.height == 1 ? copy.dst - last.dst : last.dst_pitch;
  const int64_t src_pitch = last.height == 1 ? copy.src - last.src : last.src_pitch;
  const bool continues = copy.width == last.width && dst_pitch >= copy.width && src_pitch >= copy.width &&
                         copy.dst - last.dst == dst_pitch * last.height &&
                         copy.src - last.src == src_pitch * last.height &&
                         (copy.height == 1 || (copy.dst_pitch == dst_pitch && copy.src_pitch == src_pitch));
  if (continues) {
    last.dst_pitch = dst_pitch;
    last.src_pitch = src_pitch;
    last.height += copy.height;
  }
  return continues;
}

void append(CopyPlan& plan, const StridedCopy& copy) {
  if (copy.height > 1 && (copy.dst_pitch < copy.width || copy.src_pitch < copy.width)) {
    for (int64_t row = 0; row < copy.height; ++row) {
      append(plan,
             {copy.dst + row * copy.dst_pitch, 0, copy.src + row * copy.src_pitch, 0, copy.width, 1, copy.tensor});
    }
  } else if (!extend_last(plan, copy)) {
    plan.copies.push_back(copy);
  }
}

// Appends `first` once for every index of the dimensions before the batch: the innermost one as a strided copy, the
// ones outside it one by one.
void append_leading(CopyPlan& plan, StridedCopy first, const at::Tensor& dst, const at::Tensor& src, int64_t dim) {
  if (dim == 0) {
    append(plan, first);
    return;
  }
  const int64_t outer = dim - 1;
  const int64_t dst_step = dst.stride(outer) * dst.itemsize();
  const int64_t src_step = src.stride(outer) * src.itemsize();
  if (first.height == 1) {
    first.height = dst.size(outer);
    first.dst_pitch = dst_step;
    first.src_pitch = src_step;
    append_leading(plan, first, dst, src, outer);
    return;
  }
  for (int64_t index = 0; index < dst.size(outer); ++index) {
    append_leading(plan, first, dst, src, outer);
    first.dst += dst_step;
    first.src += src_step;
  }
}

int64_t leading_indices(const at::Tensor& tensor, int64_t batch_dim) {
  return c10::multiply_integers(tensor.sizes().slice(0, batch_dim));
}

// The tensor that the range at `position` of the plan belongs to: ranges lie there in the order of their tensors.
Item item_at(const char* list, const Tensors& tensors, int64_t position, int64_t batch_dim) {
  int64_t index = 0;
  while (position >= leading_indices(tensors[index], batch_dim)) {
    position -= leading_indices(tensors[index], batch_dim);
    ++index;
  }
  return {list, index};
}

// What remains to be moved: ranges already in place are dropped, ranges without gaps become one.
void simplify(CopyPlan& plan) {
  auto kept = plan.copies.begin();
  for (StridedCopy copy : plan.copies) {
    if (copy.dst == copy.src && (copy.height == 1 || copy.dst_pitch == copy.src_pitch)) {
      continue;
    }
    if (copy.dst_pitch == copy.width && copy.src_pitch == copy.width) {
      copy.width *= copy.height;
      copy.height = 1;
    }
    plan.bytes += copy.width * copy.height;
    *kept++ = copy;
  }
  plan.copies.erase(kept, plan.copies.end());
}

}  // namespace

CopyPlan plan_copy(const Call& call, at::ITensorListRef dst_list, at::ITensorListRef src_list, const Slice& slice,
                   int64_t batch_dim) {
  const Tensors dst = dst_list.materialize();
  const Tensors src = src_list.materialize();
  check_lists(call, dst, src);
  CopyPlan plan;
  for (int64_t index = 0; index < static_cast<int64_t>(dst.size()); ++index) {
    const at::Tensor& dst_tensor = dst[index];
    const at::Tensor& src_tensor = src[index];
    const Item dst_item{"dst", index};
    const Item src_item{"src", index};
    const RowLayout dst_rows = row_layout(call, dst_item, dst_tensor, batch_dim);
    const RowLayout src_rows = row_layout(call, src_item, src_tensor, batch_dim);
    CHECK_CALL(call, dst_tensor.sizes().slice(0, batch_dim) == src_tensor.sizes().slice(0, batch_dim),
               "expected the sizes before batch_dim (", batch_dim, ") to be the same, got ", dst_tensor.sizes(),
               " for ", dst_item, " and ", src_tensor.sizes(), " for ", src_item);
    const int64_t width = checked_width(call, slice, dst_item, dst_rows, src_item, src_rows);
    // More ranges than there are bytes to hold them: they overlap. Seen here, because a tensor whose leading strides
    // are 0 can have more of them than could ever be listed.
    const auto storage_bytes = static_cast<int64_t>(dst_tensor.storage().nbytes());
    CHECK_CALL(call, leading_indices(dst_tensor, batch_dim) <= storage_bytes / width, "ranges of ", dst_item,
               " overlap one another: got shape ", dst_tensor.sizes(), ", strides ", dst_tensor.strides());
    // mutable_data_ptr gives a lazily cloned destination bytes of its own, so it comes before the source is asked.
    auto* const to = static_cast<char*>(dst_tensor.mutable_data_ptr());
    const auto* const from = static_cast<const char*>(src_tensor.const_data_ptr());
    append_leading(plan,
                   {to + slice.dst_batch_index * dst_rows.batch_stride + slice.offset, 0,
                    from + slice.src_batch_index * src_rows.batch_stride + slice.offset, 0, width, 1, index},
                   dst_tensor, src_tensor, batch_dim);
  }
  if (const std::optional<Conflict> conflict = find_conflict(plan.copies, plan.shifts)) {
    const Item written = item_at("dst", dst, conflict->dst, batch_dim);
    const Item other = conflict->other_is_dst ? item_at("dst", dst, conflict->other, batch_dim)
                                              : item_at("src", src, conflict->other, batch_dim);
    CHECK_CALL(call, false, "the range to write in ", written, " overlaps the range to ",
               conflict->other_is_dst ? "write" : "read", " in ", other,
               ": the result would depend on the order of the copies");
  }
  simplify(plan);
  return plan;
}

}  // namespace llm_datadist
