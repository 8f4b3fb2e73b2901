// SPDX-License-Identifier: Apache-2.0
//
// What boxed kernels share: one function serves every op.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>
#include <string_view>

#include "../plan/call_context.h"

namespace llm_datadist {

// The ops of library.cpp that have a kernel for each device, and those that call them with views of dst.
inline constexpr const char* kOps[] = {"copy_cache", "copy_cache_batch", "_copy_cache_blocking",
                                       "_copy_cache_batch_blocking"};
inline constexpr const char* kViewOps[] = {"_copy_cache_views", "_copy_cache_batch_views"};

template <auto* kernel, size_t count>
void register_boxed(torch::Library& m, const char* const (&ops)[count]) {
  for (const char* op : ops) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<kernel>());
  }
}

// The op's name in messages: that of its schema, without namespace, and for a private op that of the public one.
inline std::string_view public_name(const c10::OperatorHandle& op) {
  std::string_view name = op.schema().name();
  name.remove_prefix(name.find("::") + 2);
  if (name.front() == '_') {
    name = name.substr(1, name.rfind('_') - 1);
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
