// SPDX-License-Identifier: Apache-2.0
#include "device_table.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "../plan/overlap.h"

namespace llm_datadist {
namespace {

// One side of a place, as Note [Tables on the device] in llm_datadist_torch/_native/kernel.py has it.
struct Side {
  Address row_0;
  int64_t per_index;
  int64_t per_copy;
  int64_t per_byte;
};

struct Place {
  Side dst;
  Side src;
  const Rows* dst_rows;
  const Rows* src_rows;
};

// A place for each index of the dimensions before the batch.
void add_places(std::vector<Place>& places, const TensorPair& pair) {
  int64_t count = 1;
  for (int64_t dim = 0; dim < pair.batch_dim; ++dim) {
    count *= pair.dst.tensor->size(dim);
  }
  const auto at = [&](const TensorPair::Side& side, int64_t index) {
    Address address = side.rows.row_0;
    for (int64_t dim = pair.batch_dim - 1; dim >= 0; --dim) {
      const int64_t size = side.tensor->size(dim);
      if (size > 1) {  // a dimension of 1 may have any stride
        address += index % size * side.tensor->stride(dim) * static_cast<int64_t>(side.tensor->itemsize());
      }
      index /= size;
    }
    return Side{address, side.rows.stride, 0, 1};
  };
  for (int64_t index = 0; index < count; ++index) {
    places.push_back({at(pair.dst, index), at(pair.src, index), &pair.dst.rows, &pair.src.rows});
  }
}

KernelLaunch make_launch(const Kernel& kernel, const std::vector<Place>& places, const at::Tensor& copies,
                         int64_t longest_row, bool counts) {
  const Address dst_base = places.front().dst.row_0;
  const Address src_base = places.front().src.row_0;
  Table table;
  for (const Place& place : places) {
    for (const auto& [side, base] : {std::pair(&place.dst, dst_base), std::pair(&place.src, src_base)}) {
      table.insert(table.end(),
                   {static_cast<int64_t>(side->row_0 - base), side->per_index, side->per_copy, side->per_byte});
    }
    for (const Rows* rows : {place.dst_rows, place.src_rows}) {
      table.insert(table.end(), {rows->batch_size, rows->bytes});
    }
  }
  const int64_t tiles = (longest_row + kernel.tile_bytes - 1) / kernel.tile_bytes;
  const int64_t work = static_cast<int64_t>(places.size()) * copies.size(0) * tiles;
  const auto number = [](const void* address) { return static_cast<int64_t>(reinterpret_cast<Address>(address)); };
  const auto* const skipped = static_cast<const int32_t*>(kernel.skipped.const_data_ptr()) + (counts ? 0 : 1);
  return {kernel.of_rows,
          std::min(kernel.cores, work),
          {dst_base, src_base},
          {std::move(table)},
          {number(copies.const_data_ptr()), number(skipped), copies.size(0), copies.size(1), tiles, work}};
}

}  // namespace

KernelPlan plan_for_table(const CallContext& call, at::ITensorListRef dst_list, at::ITensorListRef src_list,
                          const at::Tensor& copies, int64_t batch_dim) {
  const Kernel* const kernel = kernel_in_use(copies.device());
  CHECK_CALL(call, kernel != nullptr, "expected copies on the CPU, got ", copies.device(),
             ": only the kernel reads copies there, and it is not in use; llm_datadist_torch.warm_up() says why");
  CHECK_CALL(call, copies.is_contiguous(), "expected copies on ", copies.device(), " to be contiguous, got strides ",
             copies.strides());
  const Tensors dst = tensors_of(dst_list);
  const Tensors src = tensors_of(src_list);
  check_lists(call, dst, src);
  c10::SmallVector<TensorPair, 1> pairs;
  pairs.reserve(dst.size());
  std::vector<Place> places;
  int64_t longest_row = 0;
  for (size_t index = 0; index < dst.size(); ++index) {
    for (const at::Tensor& tensor : {dst[index].get(), src[index].get()}) {
      CHECK_CALL(call, tensor.device() == copies.device(), "expected dst and src on ", copies.device(),
                 ", the device of copies, got ", tensor.device());
    }
    dst[index].get().storage().mutable_data();  // ends copy-on-write, which changes the address
    pairs.push_back(checked_pair(call, dst[index], src[index], static_cast<int64_t>(index), batch_dim));
    add_places(places, pairs.back());
    longest_row = std::max(longest_row, std::min(pairs.back().dst.rows.bytes, pairs.back().src.rows.bytes));
  }
  KernelPlan result;
  if (copies.size(0) == 0) {
    return result;
  }
  const Overlap overlap = find_overlap(pairs);
  const auto shared = [](const std::optional<int64_t>& row_offset) { return row_offset.has_value(); };
  if (!overlap.irregular && std::none_of(overlap.row_offsets.begin(), overlap.row_offsets.end(), shared)) {
    result.launches.push_back(make_launch(*kernel, places, copies, longest_row, true));
    return result;
  }
  const int64_t slots = copies.size(0) * longest_row;
  result.buffer = at::empty({static_cast<int64_t>(places.size()) * slots}, copies.options().dtype(at::kByte));
  auto slot = reinterpret_cast<Address>(result.buffer.mutable_data_ptr());
  std::vector<Place> scatter = places;
  for (size_t index = 0; index < places.size(); ++index, slot += slots) {
    places[index].dst = scatter[index].src = Side{slot, 0, longest_row, 0};
  }
  result.launches.push_back(make_launch(*kernel, places, copies, longest_row, true));
  result.launches.push_back(make_launch(*kernel, scatter, copies, longest_row, false));
  return result;
}

}  // namespace llm_datadist
