// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace llm_datadist {

// A copy of `width` bytes between positions that count from one common origin (such as row 0 of a tensor), so that the
// positions of different copies can be compared.
struct ByteCopy {
  int64_t dst;
  int64_t src;
  int64_t width;
  int64_t tensor;    // index in dst, for messages
  int64_t copy = 0;  // row of the `copies` argument, for messages

  bool onto_itself() const { return dst == src; }
};

// Sorts copies by their destination. Returns two that write the same byte, in the order in which the caller listed
// them, or nothing.
std::optional<std::pair<ByteCopy, ByteCopy>> find_double_write(std::vector<ByteCopy>& copies);

// The copies [begin, end) that write into the source of one copy.
struct Writers {
  int64_t begin;
  int64_t end;
};

// The writers of each copy's source. The copies are sorted by destination, and no two write the same byte.
std::vector<Writers> find_writers(const std::vector<ByteCopy>& copies);

}  // namespace llm_datadist
