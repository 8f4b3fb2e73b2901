// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "tensor_pair.h"

namespace llm_datadist {

// How the rows of dst and src of one pair overlap. Nothing: they share no byte. A number: they are rows of one grid,
// and row 0 of src lies that many bytes after row 0 of dst, so the same rows overlap at every place.
using RowOffset = std::optional<int64_t>;

// The row offset of each pair, if no place (of this or another pair) reads or writes what another place writes. The
// copies of one place can then be ordered alone, and once for all pairs that are alike. Returns nothing if tensors
// overlap otherwise, or if only a look at every row could tell.
std::optional<std::vector<RowOffset>> row_offsets(const std::vector<TensorPair>& pairs);

}  // namespace llm_datadist
