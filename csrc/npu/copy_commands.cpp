// SPDX-License-Identifier: Apache-2.0
#include "copy_commands.h"

#include <dlfcn.h>

#include <algorithm>
#include <vector>

#include "acl_check.h"

namespace llm_datadist {
namespace {

// Limits of the runtime, from the documentation of aclrtMemcpy2dAsync; and the size at which LLM-DataDist splits
// copies.
constexpr int64_t kMax2dWidth = 5'000'000;
constexpr int64_t kMax2dHeight = 5'242'880;
constexpr int64_t kMaxBytes = int64_t{4} << 30;
// Bounds the arrays of one batch. Any number would do; the gain per copy is gone long before.
constexpr size_t kMaxBatch = 4096;

// Functions that not every version of CANN has. Looked up when first used, so that one build serves all of them.
template <typename Function>
Function* optional_function(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

const char* name_of(aclrtMemcpyKind kind) {
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_DEVICE:
      return "host to device";
    case ACL_MEMCPY_DEVICE_TO_HOST:
      return "device to host";
    default:
      return "device to device";
  }
}

// "cannot do that", as opposed to "something broke": the copy can be tried as plain copies.
bool refused(aclError code) {
  return code == ACL_ERROR_INVALID_PARAM || code == ACL_ERROR_RT_PARAM_INVALID ||
         code == ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

struct Commands {
  const Call& call;
  aclrtMemcpyKind kind;
  int32_t device;
  aclrtStream stream;

  // Returns whether the runtime took the ranges as strided copies. If it refuses, it refuses the first one.
  bool strided(const StridedCopy& copy) const {
    static auto* const memcpy_2d = optional_function<decltype(aclrtMemcpy2dAsync)>("aclrtMemcpy2dAsync");
    if (memcpy_2d == nullptr || copy.width > kMax2dWidth) {
      return false;
    }
    for (int64_t row = 0; row < copy.height; row += kMax2dHeight) {
      const int64_t height = std::min(copy.height - row, kMax2dHeight);
      const aclError code = memcpy_2d(copy.dst + row * copy.dst_pitch, copy.dst_pitch, copy.src + row * copy.src_pitch,
                                      copy.src_pitch, copy.width, height, kind, stream);
      if (row == 0 && refused(code)) {
        return false;
      }
      CHECK_ACL(call, code, "aclrtMemcpy2dAsync", name_of(kind), " of ", height, " x ", copy.width, " bytes to dst[",
                copy.tensor, "]");
    }
    return true;
  }

  void plain(char* dst, const char* src, int64_t bytes, int64_t tensor) const {
    for (int64_t done = 0; done < bytes; done += kMaxBytes) {
      const int64_t part = std::min(bytes - done, kMaxBytes);
      CHECK_ACL(call, aclrtMemcpyAsync(dst + done, part, src + done, part, kind, stream), "aclrtMemcpyAsync",
                name_of(kind), " of ", part, " bytes to dst[", tensor, "]");
    }
  }

  void rows(const StridedCopy& copy) const {
    for (int64_t row = 0; row < copy.height; ++row) {
      plain(copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width, copy.tensor);
    }
  }

  // Returns whether the runtime took the whole plan as batches. If it refuses, it refuses the first one.
  bool batches(const CopyPlan& plan) const {
    static auto* const memcpy_batch = optional_function<decltype(aclrtMemcpyBatchAsync)>("aclrtMemcpyBatchAsync");
    const auto too_long = [](const StridedCopy& copy) { return copy.width > kMaxBytes; };
    if (memcpy_batch == nullptr || std::any_of(plan.copies.begin(), plan.copies.end(), too_long)) {
      return false;
    }
    std::vector<void*> dst;
    std::vector<void*> src;
    std::vector<size_t> bytes;
    std::vector<int64_t> tensors;
    for (const StridedCopy& copy : plan.copies) {
      for (int64_t row = 0; row < copy.height; ++row) {
        dst.push_back(copy.dst + row * copy.dst_pitch);
        src.push_back(const_cast<char*>(copy.src) + row * copy.src_pitch);
        bytes.push_back(copy.width);
        tensors.push_back(copy.tensor);
      }
    }
    const aclrtMemLocation on_device{static_cast<uint32_t>(device), ACL_MEM_LOCATION_TYPE_DEVICE};
    const aclrtMemLocation on_host{0, ACL_MEM_LOCATION_TYPE_HOST};
    const bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE;
    aclrtMemcpyBatchAttr attribute{to_device ? on_device : on_host, to_device ? on_host : on_device, {}};
    for (size_t begin = 0; begin < dst.size(); begin += kMaxBatch) {
      const size_t count = std::min(dst.size() - begin, kMaxBatch);
      size_t attribute_index = 0;
      size_t failed = SIZE_MAX;
      const aclError code = memcpy_batch(&dst[begin], &bytes[begin], &src[begin], &bytes[begin], count, &attribute,
                                         &attribute_index, 1, &failed, stream);
      if (begin == 0 && refused(code)) {
        return false;
      }
      const size_t at = begin + (failed < count ? failed : 0);
      CHECK_ACL(call, code, "aclrtMemcpyBatchAsync", name_of(kind), " of ", count, " copies, at ", bytes[at],
                " bytes to dst[", tensors[at], "],");
    }
    return true;
  }
};

}  // namespace

void enqueue_copies(const Call& call, const CopyPlan& plan, aclrtMemcpyKind kind, int32_t device, aclrtStream stream) {
  const Commands commands{call, kind, device, stream};
  // Batches are for copies between host and device only.
  if (kind != ACL_MEMCPY_DEVICE_TO_DEVICE && plan.copies.size() > 1 && commands.batches(plan)) {
    return;
  }
  for (const StridedCopy& copy : plan.copies) {
    if (copy.height == 1 || !commands.strided(copy)) {
      commands.rows(copy);
    }
  }
}

}  // namespace llm_datadist
