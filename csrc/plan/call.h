// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

namespace llm_datadist {

// One tensor of a list, printed as `dst[3]`, or an argument as a whole, printed as `dst`.
struct Item {
  const char* argument;
  std::optional<int64_t> index = std::nullopt;
};

inline std::ostream& operator<<(std::ostream& out, const Item& item) {
  out << item.argument;
  return item.index ? out << '[' << *item.index << ']' : out;
}

// What the messages of one call have in common: the name of the op, the copy of a batch that they are about, and the
// request that the call belongs to.
struct Call {
  const char* op;
  std::optional<int64_t> req_id;
  std::optional<int64_t> copy = std::nullopt;

  // A req_id is a uint64; the schema can only carry its bits.
  std::string request() const {
    return req_id ? " (req_id " + std::to_string(static_cast<uint64_t>(*req_id)) + ")" : "";
  }
};

inline std::ostream& operator<<(std::ostream& out, const Call& call) {
  out << call.op << ": ";
  return call.copy ? out << Item{"copies", call.copy} << ": " : out;
}

}  // namespace llm_datadist

// Refuses the call with a ValueError. A macro, because the text must only be made when the check fails.
#define CHECK_CALL(call, condition, ...) TORCH_CHECK_VALUE(condition, call, __VA_ARGS__, (call).request())
