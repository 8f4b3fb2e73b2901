// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>

namespace llm_datadist {

// Names one tensor of a list in messages, printed as `dst[3]`, or an argument as a whole, printed as `dst`.
struct TensorName {
  const char* argument;
  int64_t index = -1;  // -1: the argument as a whole
};

inline std::ostream& operator<<(std::ostream& out, const TensorName& name) {
  out << name.argument;
  return name.index >= 0 ? out << '[' << name.index << ']' : out;
}

// What all messages of one call say: the op, the row of `copies` that is being checked, and the request.
struct CallContext {
  std::string_view op;  // of static storage duration, or the schema's own name: outlives every call
  std::optional<int64_t> req_id;
  int64_t copy = -1;  // -1: none

  // req_id is a uint64; the schema carries its bits as an int64.
  std::string request() const {
    return req_id ? " (req_id " + std::to_string(static_cast<uint64_t>(*req_id)) + ")" : "";
  }
};

inline std::ostream& operator<<(std::ostream& out, const CallContext& call) {
  out << call.op << ": ";
  return call.copy >= 0 ? out << TensorName{"copies", call.copy} << ": " : out;
}

}  // namespace llm_datadist

// Refuses the call with a ValueError. A macro, so that the text is only made when the check fails.
#define CHECK_CALL(call, condition, ...) TORCH_CHECK_VALUE(condition, call, __VA_ARGS__, (call).request())
