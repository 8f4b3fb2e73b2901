// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/SmallVector.h>

#include <cstdint>
#include <optional>
#include <utility>

namespace llm_datadist {

// A copy of `bytes` bytes, from `src` bytes after row 0 of the source to `dst` bytes after row 0 of the destination.
struct Move {
  int64_t dst;
  int64_t src;
  int64_t bytes;
  int64_t copy;  // row of the `copies` argument, for messages; -1 in copy_cache
};

using Moves = c10::SmallVector<Move, 1>;

// Sorts moves by their destination. Returns two that write the same byte, in the order in which the caller listed them,
// or nothing.
std::optional<std::pair<Move, Move>> sort_by_destination(Moves& moves);

// Moves whose result, run one after the other, is that of reading every source before writing any destination.
struct Order {
  Moves direct;
  Moves staged;          // read into a buffer before `direct`, and written from it after `direct`
  bool ordered = false;  // whether the order of `direct` matters
};

// Orders moves that are sorted by destination and write no byte twice. `row_offset`: row 0 of the source is this many
// bytes after row 0 of the destination, so a move may read what another one writes. Without it, none does.
Order order(const Moves& moves, std::optional<int64_t> row_offset);

}  // namespace llm_datadist
