// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

#include "plan/call.h"

namespace llm_datadist {

// The call whose arguments lie on the stack. An op has the name of its blocking form too.
inline Call call_of(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const c10::FunctionSchema& schema = op.schema();
  const auto arguments = torch::jit::last(stack, schema.arguments().size());
  const c10::IValue& req_id = arguments[*schema.argumentIndexWithName("req_id")];
  return {arguments[2].isTensor() ? "copy_cache_batch" : "copy_cache",
          req_id.isInt() ? std::optional(req_id.toInt()) : std::nullopt};
}

}  // namespace llm_datadist
