// SPDX-License-Identifier: Apache-2.0
//
// Note [Tensors of Python]
// The last owner of a tensor that Python knows takes the GIL to let go of it. torch_npu's thread must not be that
// owner: when the interpreter ends, a thread that asks for the GIL is ended too, and the process aborts. So what a
// submission owns is put aside when it is destroyed, wherever that is, and the next call lets go of it.

#include "submission.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch_npu/csrc/core/NPUStorageImpl.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>

#include <algorithm>
#include <iterator>
#include <mutex>
#include <typeinfo>
#include <utility>

#include "../plan/staging.h"
#include "copy_commands.h"

namespace llm_datadist {
namespace {

struct Retired {
  std::mutex mutex;
  std::vector<at::Tensor> tensors;
};

// Never destroyed: at exit torch_npu's thread may still come by.
Retired& retired() {
  static auto* const instance = new Retired;
  return *instance;
}

// The rows of a tensor in an internal format (FRACTAL_NZ, ...) are not plain byte ranges.
void check_format(const Call& call, const char* list, at::ITensorListRef tensors) {
  int64_t index = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_cpu()) {
      return;
    }
    const c10::StorageImpl& storage = *tensor.storage().unsafeGetStorageImpl();
    // A storage that torch_npu has not made has no format. (That of torch_npu cannot be asked for by its type: the
    // library keeps the type to itself.)
    const aclFormat format = typeid(storage) == typeid(c10::StorageImpl)
                                 ? ACL_FORMAT_ND
                                 : static_cast<const torch_npu::NPUStorageImpl&>(storage).npu_desc_.npu_format_;
    const bool plain = format == ACL_FORMAT_ND || format == ACL_FORMAT_NCHW || format == ACL_FORMAT_NHWC ||
                       format == ACL_FORMAT_NCDHW || format == ACL_FORMAT_NDHWC || format == ACL_FORMAT_NCL ||
                       format == ACL_FORMAT_UNDEFINED;
    CHECK_CALL(call, plain, "expected ", (Item{list, index}), " to be in a plain format such as ND, got format ",
               static_cast<int>(format), "; torch_npu.npu_format_cast(tensor, 2) makes it ND");
    ++index;
  }
}

bool all_pinned(at::ITensorListRef tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) { return tensor.is_pinned(); });
}

void refuse_pageable_capture(const Call& call, const char* list) {
  // Its bytes are read, or written, by the host when the copy is called: a replay could not do it again.
  CHECK_CALL(call, c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, "expected ", list,
             " to be in pinned memory, as a graph is being captured; got pageable memory");
}

at::Tensor host_buffer(int64_t bytes) {
  at::Tensor buffer = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
  if (buffer.const_data_ptr() == nullptr) {
    // What torch_npu hands out where the host has no more memory to pin. Other memory is slower, and as good.
    buffer = at::empty({bytes}, at::kByte);
  }
  return buffer;
}

}  // namespace

Submission::~Submission() {
  const std::lock_guard lock(retired().mutex);
  std::move(owned.begin(), owned.end(), std::back_inserter(retired().tensors));
}

void Submission::enqueue(aclrtStream stream) const {
  for (const Step& step : plan.steps) {
    enqueue_copies(call, step, kind, device.index(), stream);
  }
}

std::shared_ptr<Submission> prepare(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, CopyPlan plan,
                                    const Deadline& deadline) {
  const at::Device dst_device = dst.front().device();
  const at::Device src_device = src.front().device();
  const at::Device device = dst_device.is_cpu() ? src_device : dst_device;
  CHECK_CALL(call, dst_device.is_cpu() || src_device.is_cpu() || dst_device == src_device, "expected dst and src on ",
             "one NPU, or one of them on the CPU, got ", dst_device, " and ", src_device,
             "; copy through a host cache");
  check_format(call, "dst", dst);
  check_format(call, "src", src);
  const c10::DeviceGuard guard(device);
  if (plan.steps.empty()) {
    return nullptr;
  }

  const aclrtMemcpyKind kind = src_device.is_cpu()   ? ACL_MEMCPY_HOST_TO_DEVICE
                               : dst_device.is_cpu() ? ACL_MEMCPY_DEVICE_TO_HOST
                                                     : ACL_MEMCPY_DEVICE_TO_DEVICE;
  auto submission = std::make_shared<Submission>(call, device, kind, std::move(plan));
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE && !all_pinned(src)) {
    // The caller may write to pageable memory as soon as the op returns, and the task reads it later.
    refuse_pageable_capture(call, "src");
    for (Step& step : submission->plan.steps) {
      const at::Tensor buffer = host_buffer(step.bytes);
      submission->late = submission->late || !copy_on_host(through_buffer(step, buffer), deadline);
      submission->buffers.push_back(buffer);
    }
  } else if (kind == ACL_MEMCPY_DEVICE_TO_HOST && !all_pinned(dst)) {
    refuse_pageable_capture(call, "dst");
    if (!deadline) {
      submission->owned.assign(dst.begin(), dst.end());
      return submission;
    }
    // The runtime holds up whoever asks for a copy to pageable memory until it is done, and that is torch_npu's thread.
    for (Step& step : submission->plan.steps) {
      const at::Tensor buffer = host_buffer(step.bytes);
      Step to_buffer = through_buffer(step, buffer);
      submission->afterwards.push_back(std::exchange(step, std::move(to_buffer)));
      submission->buffers.push_back(buffer);
    }
  }
  return submission;
}

void release_retired() {
  std::vector<at::Tensor> tensors;
  const std::lock_guard lock(retired().mutex);
  tensors.swap(retired().tensors);
}

}  // namespace llm_datadist
