// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

namespace llm_datadist {

// The addresses [begin, end). Integers, because C++ does not define the order of pointers into different allocations.
struct AddressRange {
  uintptr_t begin;
  uintptr_t end;
};

inline AddressRange range_of(const char* first, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(first);
  return {begin, begin + bytes};
}

inline bool disjoint(const AddressRange& a, const AddressRange& b) { return a.end <= b.begin || b.end <= a.begin; }

// The smallest range that holds both.
inline AddressRange hull(const AddressRange& a, const AddressRange& b) {
  return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// The bytes from address `from` to address `to`; negative if `to` is lower.
inline int64_t distance(const char* from, const char* to) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

}  // namespace llm_datadist
