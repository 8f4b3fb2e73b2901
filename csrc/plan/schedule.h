// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "copy_plan.h"

namespace llm_datadist {

// A range of bytes to write, and one to read, as positions on one line.
struct Move {
  int64_t dst;
  int64_t src;
  int64_t width;
  int64_t index;  // which one of the caller's it is
};

// Sorts moves by what they write. Returns two that write the same byte, by their index, if there are such.
std::optional<std::pair<int64_t, int64_t>> find_double_write(std::vector<Move>& moves);

// Moves brought into an order that makes the result that of reading everything before writing anything.
struct Schedule {
  std::vector<Span> direct;  // to be copied as they are
  std::vector<Span> staged;  // to be read before all others and written after them
  bool in_order = false;     // whether the direct ones depend on their order, or overlap their own source
};

// Schedules moves that find_double_write has sorted and found good. `shared`: what is read may be written by other
// moves too; otherwise sources lie on a line of their own. `can_shift`: a move may overlap its own source, as with
// memmove; otherwise it is staged.
Schedule schedule(const std::vector<Move>& moves, bool shared, bool can_shift);

}  // namespace llm_datadist
