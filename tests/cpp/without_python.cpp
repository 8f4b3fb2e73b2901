// SPDX-License-Identifier: Apache-2.0
//
// A C++ program that loads the library, without Python, and calls the op through the dispatcher. It also makes the one
// call that Python cannot: with an undefined tensor. Prints OK, or what went wrong.

#include <ATen/ATen.h>
#include <ATen/core/IListRef.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <iostream>

using CopyCache = void(at::ITensorListRef, at::ITensorListRef, c10::SymInt, c10::SymInt, c10::SymInt, c10::SymInt,
                       std::optional<c10::SymInt>, int64_t);

int main(int, char** argv) {
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::cout << dlerror() << '\n';
    return 1;
  }
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("llm_datadist::copy_cache", "").typed<CopyCache>();

  // Large enough for the intra-op threads.
  const at::Tensor dst = at::zeros({4, 1000000});
  const at::Tensor src = at::rand({2, 1000000});
  const auto version = dst._version();
  op.call(at::TensorList({dst}), at::TensorList({src}), 2, 1, 0, -1, std::nullopt, 0);
  if (!at::equal(dst[2], src[1]) || dst[1].any().item<bool>() || dst._version() != version + 1) {
    std::cout << "wrong bytes or version\n";
    return 1;
  }

  try {
    op.call(at::TensorList({dst, at::Tensor()}), at::TensorList({src, src}), 2, 0, 0, -1, 7, 0);
    std::cout << "an undefined tensor was taken\n";
    return 1;
  } catch (const c10::ValueError& error) {
    std::cout << error.what_without_backtrace() << '\n';
  }
  std::cout << "OK\n";
}
