// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "byte_copy.h"
#include "step.h"

namespace llm_datadist {

// Copies in an order whose result is that of reading every source before writing any destination.
struct Schedule {
  std::vector<Span> direct;    // to be copied in this order
  std::vector<Span> staged;    // to be read before all of `direct` and written after it
  bool order_matters = false;  // whether a direct copy reads what another one writes, or overlaps its own source
};

// Schedules copies that find_double_write has sorted and found none in. `shared_memory`: positions of dst and src count
// from one origin, so copies may read what others write; otherwise none does. `memmove`: a direct copy may overlap its
// own source; otherwise it is staged.
Schedule schedule(const std::vector<ByteCopy>& copies, bool shared_memory, bool memmove);

}  // namespace llm_datadist
