// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "checks.h"

namespace llm_datadist {

// How the tensors of a call share bytes.
struct Overlap {
  // Only a look at every range tells whether a byte is written twice, or written and read: two rows of dst may hold the
  // same byte, two tensors exchange rows, or the rows of a tensor of dst and of one of src lie on different grids.
  bool irregular = false;

  // For each index, if not irregular: row 0 of src lies this many bytes after row 0 of dst, all rows of both lie on one
  // grid, and so the same rows share bytes at every place. Nothing: dst and src share no byte. An empty list: no index
  // has a number.
  c10::SmallVector<std::optional<int64_t>, 0> row_offsets = {};
};

Overlap find_overlap(c10::ArrayRef<TensorPair> pairs);

}  // namespace llm_datadist
