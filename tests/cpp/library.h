// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/IListRef.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <cstdlib>
#include <iostream>

using CopyCache = void(at::ITensorListRef, at::ITensorListRef, c10::SymInt, c10::SymInt, c10::SymInt, c10::SymInt,
                       std::optional<c10::SymInt>, int64_t);
using CopyCacheBatch = void(at::ITensorListRef, at::ITensorListRef, const at::Tensor&, std::optional<c10::SymInt>,
                            int64_t);

// Registers the ops of the library under test. The library is loaded, not linked: one program tests every build of it,
// and the sanitizers must be initialized before its target_clones functions are resolved.
inline void load_library(const char* path) {
  if (dlopen(path, RTLD_NOW) == nullptr) {
    std::cerr << dlerror() << '\n';
    std::exit(2);
  }
}

template <typename Function>
c10::TypedOperatorHandle<Function> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Function>();
}
