// SPDX-License-Identifier: Apache-2.0
//
// What boxed kernels share: one function serves every op.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>

#include "../plan/call_context.h"

namespace llm_datadist {

// Every op of library.cpp. A boxed kernel is registered for each.
inline constexpr const char* kOps[] = {"copy_cache", "copy_cache_batch", "_copy_cache_blocking",
                                       "_copy_cache_batch_blocking"};

// The op's name in messages: that of its schema, without namespace, and for a blocking op that of the public one.
inline std::string_view public_name(const c10::OperatorHandle& op) {
  std::string_view name = op.schema().name();
  name.remove_prefix(name.find("::") + 2);
  constexpr std::string_view suffix = "_blocking";
  if (name.ends_with(suffix)) {
    name.remove_prefix(1);
    name.remove_suffix(suffix.size());
  }
  return name;
}

// The context of the call whose arguments are on the stack.
inline CallContext context_of(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const c10::FunctionSchema& schema = op.schema();
  const auto arguments = torch::jit::last(stack, schema.arguments().size());
  const c10::IValue& req_id = arguments[*schema.argumentIndexWithName("req_id")];
  return {public_name(op), req_id.isInt() ? std::optional(req_id.toInt()) : std::nullopt};
}

}  // namespace llm_datadist
