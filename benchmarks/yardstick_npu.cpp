// SPDX-License-Identifier: Apache-2.0
//
// LLM-DataDist's pattern, as a yardstick: for each call four threads are made, which share one blocking aclrtMemcpy per
// tensor.

#include <acl/acl.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <atomic>
#include <thread>
#include <vector>

namespace {

void blocking_copies(at::IntArrayRef dst, at::IntArrayRef src, int64_t bytes, bool from_host) {
  aclrtContext context = nullptr;
  TORCH_CHECK(aclrtGetCurrentContext(&context) == ACL_SUCCESS);
  const aclrtMemcpyKind kind = from_host ? ACL_MEMCPY_HOST_TO_DEVICE : ACL_MEMCPY_DEVICE_TO_DEVICE;
  constexpr size_t kThreads = 4;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      failures += aclrtSetCurrentContext(context) != ACL_SUCCESS;
      for (size_t i = thread; i < dst.size(); i += kThreads) {
        failures += aclrtMemcpy(reinterpret_cast<void*>(dst[i]), bytes, reinterpret_cast<const void*>(src[i]), bytes,
                                kind) != ACL_SUCCESS;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  TORCH_CHECK(failures == 0);
}

}  // namespace

TORCH_LIBRARY(yardstick_npu, m) { m.def("blocking_copies(int[] dst, int[] src, int bytes, bool from_host) -> ()"); }

TORCH_LIBRARY_IMPL(yardstick_npu, CompositeExplicitAutograd, m) { m.impl("blocking_copies", &blocking_copies); }
