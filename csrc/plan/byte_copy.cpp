// SPDX-License-Identifier: Apache-2.0
#include "byte_copy.h"

#include <algorithm>
#include <tuple>

namespace llm_datadist {

std::optional<std::pair<ByteCopy, ByteCopy>> find_double_write(std::vector<ByteCopy>& copies) {
  const auto by_dst = [](const ByteCopy& a, const ByteCopy& b) { return a.dst < b.dst; };
  if (!std::is_sorted(copies.begin(), copies.end(), by_dst)) {
    std::sort(copies.begin(), copies.end(), by_dst);
  }
  const auto twice = std::adjacent_find(copies.begin(), copies.end(),
                                        [](const ByteCopy& a, const ByteCopy& b) { return b.dst < a.dst + a.width; });
  if (twice == copies.end()) {
    return std::nullopt;
  }
  const auto listed_before = [](const ByteCopy& a, const ByteCopy& b) {
    return std::tie(a.tensor, a.copy) < std::tie(b.tensor, b.copy);
  };
  return std::pair<ByteCopy, ByteCopy>(std::minmax(twice[0], twice[1], listed_before));
}

std::vector<Writers> find_writers(const std::vector<ByteCopy>& copies) {
  std::vector<Writers> writers;
  writers.reserve(copies.size());
  for (const ByteCopy& copy : copies) {
    if (copy.src + copy.width <= copies.front().dst || copies.back().dst + copies.back().width <= copy.src) {
      writers.push_back({0, 0});  // not worth a search: all sources of a copy between two caches
      continue;
    }
    const auto begin = std::partition_point(copies.begin(), copies.end(),
                                            [&](const ByteCopy& other) { return other.dst + other.width <= copy.src; });
    const auto end = std::partition_point(begin, copies.end(),
                                          [&](const ByteCopy& other) { return other.dst < copy.src + copy.width; });
    writers.push_back({begin - copies.begin(), end - copies.begin()});
  }
  return writers;
}

}  // namespace llm_datadist
