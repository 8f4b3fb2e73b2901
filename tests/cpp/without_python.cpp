// SPDX-License-Identifier: Apache-2.0
//
// Loads the library without Python and calls the op through the dispatcher, also with an undefined tensor, which Python
// cannot pass. Prints OK, or the failure.

#include "library.h"

int main(int, char** argv) {
  load_library(argv[1]);
  const auto op = find_op<CopyCache>("llm_datadist::copy_cache");

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
    std::cout << "an undefined tensor was accepted\n";
    return 1;
  } catch (const c10::ValueError& error) {
    std::cout << error.what_without_backtrace() << '\n';
  }
  std::cout << "OK\n";
}
