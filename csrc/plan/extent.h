// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

namespace llm_datadist {

// Memory from `begin` up to `end`. Addresses of different allocations are compared, which pointers do not allow and
// integers do.
struct Extent {
  uintptr_t begin;
  uintptr_t end;
};

inline Extent extent_of(const char* first, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(first);
  return {begin, begin + bytes};
}

inline bool disjoint(const Extent& a, const Extent& b) { return a.end <= b.begin || b.end <= a.begin; }

inline Extent hull(const Extent& a, const Extent& b) { return {std::min(a.begin, b.begin), std::max(a.end, b.end)}; }

// The bytes from address `from` to address `to`.
inline int64_t distance(const char* from, const char* to) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

}  // namespace llm_datadist
