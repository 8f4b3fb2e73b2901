// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

namespace fuzz {

// Numbers from an input, two bytes for each, and when it is used up from a seed. The same on every machine and with
// every compiler.
class Random {
 public:
  explicit Random(uint64_t seed, c10::ArrayRef<uint8_t> input = {}) : state_(seed), input_(input) {}

  uint64_t bits() {
    if (input_.size() >= 2) {
      const uint64_t number = input_[0] | input_[1] << 8;
      input_ = input_.slice(2);
      return number;
    }
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // From [0, end).
  int64_t below(int64_t end) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(end)); }
  // From [first, last].
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  // From [1, last], of every order of magnitude.
  int64_t scaled(int64_t last) {
    int64_t high = last;
    while (high > 1 && chance(30)) {
      high = (high + 3) / 4;
    }
    return between(1, high);
  }
  bool chance(int64_t percent) { return below(100) < percent; }
  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return *(values.begin() + below(static_cast<int64_t>(values.size())));
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[below(static_cast<int64_t>(i))]);
    }
  }

  // A number near the limits of an integer type.
  int64_t absurd() {
    constexpr int64_t most = std::numeric_limits<int64_t>::max();
    return one_of({most, most - 7, most / 2 + 1, -most - 1, -most, int64_t{-2}, int64_t{1} << 32, int64_t{1} << 31,
                   static_cast<int64_t>(bits())});
  }

 private:
  uint64_t state_;
  c10::ArrayRef<uint8_t> input_;
};

}  // namespace fuzz
