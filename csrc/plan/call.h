// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

namespace llm_datadist {

// What the messages of one call have in common: the name of the op, and the request it belongs to.
struct Call {
  const char* op;
  std::optional<int64_t> req_id;

  // A req_id is a uint64; the schema can only carry its bits.
  std::string request() const {
    return req_id ? " (req_id " + std::to_string(static_cast<uint64_t>(*req_id)) + ")" : "";
  }
};

// One tensor of an argument, printed as `dst[3]`.
struct Item {
  const char* list;
  int64_t index;
};

inline std::ostream& operator<<(std::ostream& out, const Item& item) {
  return out << item.list << '[' << item.index << ']';
}

}  // namespace llm_datadist

// Refuses the call with a ValueError. A macro, because the text must only be made when the check fails.
#define CHECK_CALL(call, condition, ...) TORCH_CHECK_VALUE(condition, (call).op, ": ", __VA_ARGS__, (call).request())
