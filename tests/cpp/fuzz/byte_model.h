// SPDX-License-Identifier: Apache-2.0
//
// The result of a call, written from docs/contract.md alone. It visits every byte, with integers that cannot overflow.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>

#include "case.h"

namespace fuzz {

using Wide = __int128;
using Bytes = std::vector<uint8_t>;

struct Range {
  int dst_memory;
  int64_t dst;
  int src_memory;
  int64_t src;
  int64_t bytes;

  bool in_place() const { return dst_memory == src_memory && dst == src; }
};

struct Verdict {
  const char* refused = nullptr;  // the reason, for messages
  bool open = false;              // the contract leaves open whether the call, which writes nothing, is refused
  std::vector<Range> ranges;
};

// Calls `visit` with the element offset of every index of these dimensions, until it returns false.
template <typename Visit>
bool for_each_element(const Numbers& sizes, const Numbers& strides, Visit visit) {
  Numbers index(sizes.size(), 0);
  while (true) {
    if (!visit(std::inner_product(index.begin(), index.end(), strides.begin(), int64_t{0}))) {
      return false;
    }
    size_t dim = sizes.size();
    while (dim > 0 && ++index[dim - 1] == sizes[dim - 1]) {
      index[--dim] = 0;
    }
    if (dim == 0) {
      return true;
    }
  }
}

inline Wide product(const Numbers& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), Wide{1}, std::multiplies<>());
}

class ByteModel {
 public:
  explicit ByteModel(const Case& c) : case_(c) {}

  Verdict judge() {
    Verdict verdict;
    if (case_.batch && case_.form >= Copies::kInt32) {
      verdict.refused = "copies is not an int64 tensor of shape [n, 4] inside its storage";
      return verdict;
    }
    verdict.refused = lists();
    for (size_t i = 0; !verdict.refused && i < case_.dst.size(); ++i) {
      verdict.refused = tensors(case_.dst[i], case_.src[i]);
    }
    if (case_.batch && case_.copies.empty()) {
      verdict.open = verdict.refused != nullptr;
      return verdict;
    }
    for (const Copy& copy : case_.copies) {
      for (size_t i = 0; !verdict.refused && i < case_.dst.size(); ++i) {
        verdict.refused = add_ranges(verdict.ranges, copy, case_.dst[i], case_.src[i]);
      }
    }
    if (!verdict.refused) {
      verdict.refused = overlap(verdict.ranges);
    }
    return verdict;
  }

  // Writes the expected contents: every source is read before any destination is written.
  static void apply(const std::vector<Range>& ranges, const std::vector<Bytes>& before, std::vector<Bytes>& after) {
    for (const Range& range : ranges) {
      for (int64_t i = 0; i < range.bytes; ++i) {
        after[range.dst_memory][range.dst + i] = before[range.src_memory][range.src + i];
      }
    }
  }

 private:
  const char* lists() const {
    if (case_.dst.empty() || case_.dst.size() != case_.src.size()) {
      return "the lists differ in length";
    }
    for (const auto* list : {&case_.dst, &case_.src}) {
      for (const View& view : *list) {
        if (view.undefined) {
          return "undefined";
        }
        if (view.dtype != case_.dst[0].dtype) {
          return "dtypes differ";
        }
        if (view.requires_grad && list == &case_.dst) {
          return "requires grad";
        }
      }
    }
    return nullptr;
  }

  const char* tensors(const View& dst, const View& src) const {
    for (const View* view : {&dst, &src}) {
      if (const char* wrong = tensor(*view)) {
        return wrong;
      }
    }
    return leading(dst.sizes) == leading(src.sizes) ? nullptr : "sizes before batch_dim differ";
  }

  const char* tensor(const View& view) const {
    const Storage& storage = case_.storages[view.storage];
    if (case_.batch_dim < 0 || case_.batch_dim >= static_cast<int64_t>(view.sizes.size())) {
      return "no such batch_dim";
    }
    Wide last = view.offset;
    for (size_t dim = 0; dim < view.sizes.size(); ++dim) {
      if (view.sizes[dim] == 0) {
        return "empty";
      }
      last += Wide{view.sizes[dim] - 1} * view.strides[dim];
    }
    if (view.offset < 0 || (last + 1) * view.itemsize() > storage.nbytes) {
      return "outside its storage";
    }
    if (storage.null) {
      return "no memory";
    }
    const int64_t batch_size = view.sizes[case_.batch_dim];
    if (!dense_row(view)) {
      return "rows not dense";
    }
    const bool apart = Wide{view.strides[case_.batch_dim]} >= product(row(view.sizes));
    return batch_size == 1 || apart ? nullptr : "rows overlap";
  }

  // Whether the elements of a row fill one contiguous range, each at its own offset.
  bool dense_row(const View& view) const {
    const Wide elements = product(row(view.sizes));
    if (elements * view.itemsize() > case_.storages[view.storage].nbytes) {
      return false;
    }
    std::vector<bool> taken(static_cast<size_t>(elements));
    return for_each_element(row(view.sizes), row(view.strides), [&](int64_t at) {
      const bool free = at < elements && !taken[at];
      if (free) {
        taken[at] = true;
      }
      return free;
    });
  }

  const char* add_ranges(std::vector<Range>& ranges, const Copy& copy, const View& dst, const View& src) const {
    const Wide dst_row = product(row(dst.sizes)) * dst.itemsize();
    const Wide src_row = product(row(src.sizes)) * src.itemsize();
    if (copy.dst_batch_index < 0 || copy.dst_batch_index >= dst.sizes[case_.batch_dim] || copy.src_batch_index < 0 ||
        copy.src_batch_index >= src.sizes[case_.batch_dim]) {
      return "batch index out of range";
    }
    if (copy.offset < 0 || copy.offset >= dst_row || copy.offset >= src_row) {
      return "offset out of range";
    }
    if (copy.size == 0 || copy.size < -1) {
      return "no such size";
    }
    const Wide bytes = copy.size == -1 ? src_row - copy.offset : Wide{copy.size};
    if (copy.offset + bytes > dst_row || copy.offset + bytes > src_row) {
      return "past the row";
    }
    // More ranges than bytes: they overlap. They are not listed, as there may be 2**62.
    if (product(leading(dst.sizes)) > case_.storages[dst.storage].nbytes) {
      return "ranges overlap, by their number";
    }
    std::vector<int64_t> starts[2];
    const View* views[] = {&dst, &src};
    const int64_t indices[] = {copy.dst_batch_index, copy.src_batch_index};
    for (int side = 0; side < 2; ++side) {
      const View& view = *views[side];
      const int64_t first = view.offset + (indices[side] ? indices[side] * view.strides[case_.batch_dim] : 0);
      for_each_element(leading(view.sizes), leading(view.strides), [&](int64_t at) {
        starts[side].push_back(case_.storages[view.storage].begin + (first + at) * view.itemsize() + copy.offset);
        return true;
      });
    }
    for (size_t i = 0; i < starts[0].size(); ++i) {
      ranges.push_back({case_.storages[dst.storage].memory, starts[0][i], case_.storages[src.storage].memory,
                        starts[1][i], static_cast<int64_t>(bytes)});
    }
    return nullptr;
  }

  // copy_cache refuses a call whose result depends on the order of its copies; another copy may read a range that is
  // copied onto itself. copy_cache_batch refuses only bytes that are written twice.
  const char* overlap(const std::vector<Range>& ranges) {
    std::vector<std::vector<int>> writer(case_.memories, std::vector<int>(case_.memory_bytes, -1));
    for (size_t i = 0; i < ranges.size(); ++i) {
      for (int64_t at = ranges[i].dst; at < ranges[i].dst + ranges[i].bytes; ++at) {
        int& who = writer[ranges[i].dst_memory][at];
        if (who != -1) {
          return "a byte is written twice";
        }
        who = static_cast<int>(i);
      }
    }
    for (size_t i = 0; !case_.batch && i < ranges.size(); ++i) {
      for (int64_t at = ranges[i].src; at < ranges[i].src + ranges[i].bytes; ++at) {
        const int who = writer[ranges[i].src_memory][at];
        if (who != -1 && who != static_cast<int>(i) && !ranges[who].in_place()) {
          return "a source is written by another copy";
        }
      }
    }
    return nullptr;
  }

  Numbers leading(const Numbers& of) const { return {of.begin(), of.begin() + case_.batch_dim}; }
  Numbers row(const Numbers& of) const { return {of.begin() + case_.batch_dim + 1, of.end()}; }

  const Case& case_;
};

}  // namespace fuzz
