// SPDX-License-Identifier: Apache-2.0
#include "submission.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch_npu/csrc/core/NPUStorageImpl.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>

#include <algorithm>
#include <cstring>
#include <typeinfo>
#include <utility>

#include "enqueue.h"

namespace llm_datadist {
namespace {

// Only a storage that torch_npu made has a format. libtorch_npu hides the type of its storages, so dynamic_cast does
// not link: the name tells.
aclFormat format_of(const c10::StorageImpl& storage) {
  return std::strcmp(typeid(storage).name(), "N9torch_npu14NPUStorageImplE") == 0
             ? static_cast<const torch_npu::NPUStorageImpl&>(storage).npu_desc_.npu_format_
             : ACL_FORMAT_ND;
}

// Takes the blocks whose memory on the host is pageable out of a phase. A block never belongs to several storages
// there.
Phase take_pageable(Phase& phase, const std::vector<bool>& pinned) {
  Phase pageable = phase;
  pageable.bytes = 0;
  pageable.blocks.clear();
  auto* last = phase.blocks.begin();
  for (const Block& block : phase.blocks) {
    if (pinned[block.tensor]) {
      *last++ = block;
    } else {
      pageable.blocks.push_back(block);
      pageable.bytes += block.moves.bytes * block.count;
    }
  }
  phase.blocks.erase(last, phase.blocks.end());
  phase.bytes -= pageable.bytes;
  return pageable;
}

at::Tensor pinned_buffer(const CallContext& call, int64_t bytes) {
  const auto allocate = [&] {
    at::Tensor buffer = at::empty({bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
    if (buffer.const_data_ptr() == nullptr) {
      // torch_npu found no memory to pin. From its cache the null pointer would go to others too, so it does not get
      // this tensor back. Emptying the cache is no way out: torch_npu 2.7 then frees memory that is in use.
      new at::Tensor(std::move(buffer));
    }
    return buffer;
  };
  at::Tensor buffer = allocate();
  if (!buffer.defined()) {  // it may have come from the cache
    buffer = allocate();
  }
  TORCH_CHECK_WITH(OutOfMemoryError, buffer.defined(), call.op, ": cannot allocate ", bytes,
                   " bytes of pinned memory, through which pageable memory is copied", call.request());
  return buffer;
}

}  // namespace

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

void Submission::enqueue(aclrtStream stream) const {
  if (!by_kernel.launches.empty()) {
    for (const KernelLaunch& launch : by_kernel.launches) {
      llm_datadist::enqueue(call, launch, stream);
    }
    return;
  }
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
  auto submission = std::make_shared<Submission>(Submission{call, device, kind, std::move(plan)});
  if (kind == ACL_MEMCPY_DEVICE_TO_DEVICE) {
    submission->by_kernel = plan_for_kernel(submission->plan, device);
    return submission;
  }
  std::vector<bool> pinned;
  for (const at::Tensor& tensor : src_device.is_cpu() ? src : dst) {
    pinned.push_back(tensor.is_pinned());
  }
  if (std::find(pinned.begin(), pinned.end(), false) == pinned.end()) {
    return submission;
  }
  // The host reads or writes pageable memory during the call, which a replay would not repeat.
  CHECK_CALL(call, c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, "expected ",
             src_device.is_cpu() ? "src" : "dst",
             " to be in pinned memory, as a graph is being captured; got pageable memory");
  auto& phases = submission->plan.phases;  // one, as memory of the host and of the device do not overlap
  Phase pageable = take_pageable(phases.front(), pinned);
  submission->buffer = pinned_buffer(call, pageable.bytes);
  Phase gather = gather_into(submission->buffer, pageable);
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE) {
    submission->timed_out = !copy_on_host(gather, deadline);
    phases.push_back(std::move(pageable));
  } else {
    phases.push_back(std::move(gather));
    submission->host_phase_after = std::move(pageable);
  }
  return submission;
}

}  // namespace llm_datadist
