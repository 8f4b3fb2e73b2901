// SPDX-License-Identifier: Apache-2.0
//
// Note [Tensors of Python]
// Releasing the last reference to a tensor that Python knows takes the GIL. torch_npu's thread must not do that: while
// the interpreter shuts down, a thread that asks for the GIL is ended, and the process aborts. So the destructor of a
// submission only defers the release of its tensors. The interpreter's main thread does it soon, or the next call.

#include "submission.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <dlfcn.h>
#include <torch_npu/csrc/core/NPUStorageImpl.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <typeinfo>
#include <utility>

#include "enqueue.h"

namespace llm_datadist {
namespace {

struct DeferredReleases {
  std::mutex mutex;
  std::vector<at::Tensor> tensors;
};

// Never destroyed: torch_npu's thread may still use it at exit.
DeferredReleases& deferred_releases() {
  static auto* const instance = new DeferredReleases;
  return *instance;
}

// Only a storage that torch_npu made has a format. libtorch_npu hides the type of its storages, so dynamic_cast does
// not link: the name tells.
aclFormat format_of(const c10::StorageImpl& storage) {
  return std::strcmp(typeid(storage).name(), "N9torch_npu14NPUStorageImplE") == 0
             ? static_cast<const torch_npu::NPUStorageImpl&>(storage).npu_desc_.npu_format_
             : ACL_FORMAT_ND;
}

// The rows of a tensor in an internal format (FRACTAL_NZ, ...) are not plain byte ranges.
void check_format(const CallContext& call, const char* list, at::ITensorListRef tensors) {
  int64_t index = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_cpu()) {
      return;
    }
    const aclFormat format = format_of(*tensor.storage().unsafeGetStorageImpl());
    const bool plain = format == ACL_FORMAT_ND || format == ACL_FORMAT_NCHW || format == ACL_FORMAT_NHWC ||
                       format == ACL_FORMAT_NCDHW || format == ACL_FORMAT_NDHWC || format == ACL_FORMAT_NCL ||
                       format == ACL_FORMAT_UNDEFINED;
    CHECK_CALL(call, plain, "expected ", (TensorName{list, index}), " to be in a plain format such as ND, got format ",
               static_cast<int>(format), "; torch_npu.npu_format_cast(tensor, 2) makes it ND");
    ++index;
  }
}

bool all_pinned(at::ITensorListRef tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) { return tensor.is_pinned(); });
}

void refuse_pageable_capture(const CallContext& call, const char* list) {
  // The host reads or writes pageable memory during the call, which a replay would not repeat.
  CHECK_CALL(call, c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, "expected ", list,
             " to be in pinned memory, as a graph is being captured; got pageable memory");
}

at::Tensor host_buffer(int64_t bytes) {
  at::Tensor buffer = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
  if (buffer.const_data_ptr() == nullptr) {
    // torch_npu returns a null pointer if no more memory can be pinned. Pageable memory is slower but works.
    buffer = at::empty({bytes}, at::kByte);
  }
  return buffer;
}

}  // namespace

Submission::~Submission() {
  if (owned.empty()) {
    return;
  }
  {
    const std::lock_guard lock(deferred_releases().mutex);
    std::move(owned.begin(), owned.end(), std::back_inserter(deferred_releases().tensors));
  }
  // Both may be called without the GIL. Looked up, because this library does not need Python.
  static auto* const is_initialized = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
  static auto* const add_pending_call =
      reinterpret_cast<int (*)(int (*)(void*), void*)>(dlsym(RTLD_DEFAULT, "Py_AddPendingCall"));
  if (is_initialized == nullptr || add_pending_call == nullptr) {
    release_deferred();
  } else if (is_initialized() != 0) {
    const auto release = [](void*) {
      release_deferred();
      return 0;
    };
    add_pending_call(release, nullptr);
  }
}

void Submission::enqueue(aclrtStream stream) const {
  for (const Phase& phase : plan.phases) {
    llm_datadist::enqueue(call, phase, kind, device.index(), stream);
  }
}

std::shared_ptr<Submission> make_submission(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src,
                                            Plan plan, const Deadline& deadline) {
  const at::Device dst_device = dst.front().device();
  const at::Device src_device = src.front().device();
  const at::Device device = dst_device.is_cpu() ? src_device : dst_device;
  CHECK_CALL(call, dst_device.is_cpu() || src_device.is_cpu() || dst_device == src_device, "expected dst and src on ",
             "one NPU, or one of them on the CPU, got ", dst_device, " and ", src_device,
             "; copy through a host cache");
  check_format(call, "dst", dst);
  check_format(call, "src", src);
  const c10::DeviceGuard guard(device);
  if (plan.phases.empty()) {
    return nullptr;
  }

  const aclrtMemcpyKind kind = src_device.is_cpu()   ? ACL_MEMCPY_HOST_TO_DEVICE
                               : dst_device.is_cpu() ? ACL_MEMCPY_DEVICE_TO_HOST
                                                     : ACL_MEMCPY_DEVICE_TO_DEVICE;
  auto submission = std::make_shared<Submission>(call, device, kind, std::move(plan));
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE && !all_pinned(src)) {
    // The caller may write to pageable memory once the op returns, before the task reads it.
    refuse_pageable_capture(call, "src");
    for (Phase& phase : submission->plan.phases) {
      const at::Tensor buffer = host_buffer(phase.bytes);
      submission->timed_out = submission->timed_out || !copy_on_host(gather_into(buffer, phase), deadline);
      submission->buffers.push_back(buffer);
    }
  } else if (kind == ACL_MEMCPY_DEVICE_TO_HOST && !all_pinned(dst)) {
    refuse_pageable_capture(call, "dst");
    if (!deadline) {
      submission->owned.assign(dst.begin(), dst.end());
      return submission;
    }
    // A copy to pageable memory would block torch_npu's thread in the runtime until it is done.
    for (Phase& phase : submission->plan.phases) {
      const at::Tensor buffer = host_buffer(phase.bytes);
      Phase to_buffer = gather_into(buffer, phase);
      submission->host_phases_after.push_back(std::exchange(phase, std::move(to_buffer)));
      submission->buffers.push_back(buffer);
    }
  }
  return submission;
}

void release_deferred() {
  std::vector<at::Tensor> tensors;  // destroyed after the lock is released
  const std::lock_guard lock(deferred_releases().mutex);
  tensors.swap(deferred_releases().tensors);
}

}  // namespace llm_datadist
