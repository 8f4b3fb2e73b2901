// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "tensor_pair.h"

namespace llm_datadist {

// How the rows of dst and src lie to one another in one pair of tensors. Nothing: they share no byte. A number: they
// are rows of one grid, row 0 of src that many bytes after row 0 of dst, so that which rows overlap is the same at
// every place.
using Shift = std::optional<int64_t>;

// The shift of each pair, if no byte of one place is written that belongs to another place, of the same or another
// pair. Then each place can be looked at by itself, and all that are alike at once. Returns nothing where tensors
// overlap in another way, or where finding out would take looking at every row.
std::optional<std::vector<Shift>> independent_places(const std::vector<TensorPair>& pairs);

}  // namespace llm_datadist
