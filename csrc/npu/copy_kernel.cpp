// SPDX-License-Identifier: Apache-2.0
//
// Note [Stream ordering]
// torch_npu does not call the runtime where an op is called. It queues tasks, and a second thread makes the ACL calls.
// A kernel that makes ACL calls itself either overtakes what is queued, or has to wait until the queue is empty, which
// costs the overlap of host and device that the queue is there for. So the copies are a task of that queue
// (RunOpApiV2), and their stream is asked for with stream(false), which does not wait. The task owns what it uses: the
// plan, host memory that nothing else keeps alive, staging buffers. Device memory needs no owner: the caching allocator
// hands a freed block only to work that is queued later.
//
// A task that fails is an error of the queue: torch_npu raises it at its next synchronisation and takes no task after
// it, as for its own ops. The blocking op carries its errors to its caller itself, and leaves the queue in order.

#include <ATen/ATen.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/IListRef.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/NPUStorageImpl.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <future>

#include "../plan/copy_plan.h"
#include "../plan/host_copy.h"
#include "../plan/profiler_range.h"
#include "../plan/staging.h"
#include "acl_check.h"
#include "copy_commands.h"
#include "side_stream.h"

namespace llm_datadist {
namespace {

// One call, ready for the runtime.
struct Submission {
  Call call;
  at::Device device;
  aclrtMemcpyKind kind;
  CopyPlan plan;
  std::vector<at::Tensor> owned = {};
  bool late = false;  // the deadline passed while host memory was gathered

  void enqueue(aclrtStream stream) const {
    for (const Step& step : plan.steps) {
      enqueue_copies(call, step, kind, device.index(), stream);
    }
  }
};

// The rows of a tensor in an internal format (FRACTAL_NZ, ...) are not plain byte ranges.
void check_format(const Call& call, const char* list, at::ITensorListRef tensors) {
  int64_t index = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_cpu()) {
      return;
    }
    const auto* storage = static_cast<torch_npu::NPUStorageImpl*>(tensor.storage().unsafeGetStorageImpl());
    const aclFormat format = storage->npu_desc_.npu_format_;
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

// Makes a plan ready. Returns nothing if there is nothing to move.
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
  auto submission = std::make_shared<Submission>(Submission{call, device, kind, std::move(plan)});
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE && !all_pinned(src)) {
    // The caller may write to pageable memory as soon as the op returns, and the task reads it later.
    refuse_pageable_capture(call, "src");
    for (Step& step : submission->plan.steps) {
      at::Tensor buffer = at::empty({step.bytes}, at::TensorOptions(at::kByte).pinned_memory(true));
      if (buffer.const_data_ptr() == nullptr) {
        // What torch_npu hands out where the host has no more memory to pin. Other memory is slower, and as good.
        buffer = at::empty({step.bytes}, at::kByte);
      }
      submission->late = submission->late || !copy_on_host(through_buffer(step, buffer), deadline);
      submission->owned.push_back(buffer);
    }
  } else if (kind == ACL_MEMCPY_DEVICE_TO_HOST && !all_pinned(dst)) {
    refuse_pageable_capture(call, "dst");
    submission->owned.assign(dst.begin(), dst.end());
  }
  return submission;
}

// Keeps pinned memory from being used again before the stream has done what was queued so far.
void record_pinned(at::ITensorListRef tensors, const c10_npu::NPUStream& stream) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_cpu()) {
      const at::DataPtr& data = tensor.storage().data_ptr();
      at::getHostAllocator(at::kPrivateUse1)->record_event(data.get(), data.get_context(), stream.unwrap());
    }
  }
}

void enqueue(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, CopyPlan plan) {
  const ProfilerRange range(call, plan);
  const auto submission = prepare(call, dst, src, std::move(plan), std::nullopt);
  if (submission == nullptr) {
    return;
  }
  const c10::DeviceGuard guard(submission->device);
  const c10_npu::NPUStream stream = c10_npu::getCurrentNPUStream(submission->device.index());
  const auto task = [submission, handle = stream.stream(false)]() -> int {
    submission->enqueue(handle);
    return ACL_SUCCESS;
  };
  at_npu::native::OpCommand::RunOpApiV2(std::string("llm_datadist::") + call.op, task);
  record_pinned(dst, stream);
  record_pinned(src, stream);
  record_pinned(submission->owned, stream);
}

// At least one: for 0, versions of the runtime differ between "look once" and refusing it.
int milliseconds_until(Clock::time_point deadline) {
  return std::max<int64_t>(1, std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count());
}

// Returns whether the copies were done before the deadline.
bool enqueue_and_wait(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, CopyPlan plan,
                      Clock::time_point deadline) {
  const ProfilerRange range(call, plan);
  const auto submission = prepare(call, dst, src, std::move(plan), deadline);
  if (submission == nullptr) {
    return true;
  }
  const c10::DeviceGuard guard(submission->device);
  TORCH_CHECK(c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, call.op,
              ": a blocking copy cannot be captured in a graph; use torch.ops.llm_datadist.", call.op, call.request());
  if (submission->late) {
    return false;
  }
  // The caller may free a cache after a timeout, with the copy still to run.
  submission->owned.insert(submission->owned.end(), dst.begin(), dst.end());
  submission->owned.insert(submission->owned.end(), src.begin(), src.end());

  const int device = submission->device.index();
  const auto side = borrow_side_stream(call, device);
  side->in_use = submission;
  const auto enqueued = std::make_shared<std::promise<void>>();
  const auto task = [submission, side, enqueued,
                     current = c10_npu::getCurrentNPUStream(device).stream(false)]() -> int {
    try {
      const Call& call = submission->call;
      CHECK_ACL(call, aclrtRecordEvent(side->ready, current), "aclrtRecordEvent", "before a blocking copy");
      CHECK_ACL(call, aclrtStreamWaitEvent(side->stream, side->ready), "aclrtStreamWaitEvent",
                "before a blocking copy");
      submission->enqueue(side->stream);
      enqueued->set_value();
    } catch (...) {
      enqueued->set_exception(std::current_exception());
    }
    return ACL_SUCCESS;
  };
  at_npu::native::OpCommand::RunOpApiV2(std::string("llm_datadist::") + call.op, task);

  auto outcome = enqueued->get_future();
  if (outcome.wait_until(deadline) != std::future_status::ready) {
    return false;
  }
  outcome.get();
  const aclError code = aclrtSynchronizeStreamWithTimeout(side->stream, milliseconds_until(deadline));
  if (code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {
    return false;
  }
  CHECK_ACL(call, code, "aclrtSynchronizeStreamWithTimeout", "after a blocking copy");
  side->in_use = nullptr;
  return true;
}

void copy_cache_npu(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index, int64_t src_batch_index,
                    int64_t offset, int64_t size, std::optional<int64_t> req_id, int64_t batch_dim) {
  const Call call{"copy_cache", req_id};
  const Slice slice{dst_batch_index, src_batch_index, offset, size};
  enqueue(call, dst, src, plan_copy(call, dst, src, slice, batch_dim));
}

void copy_cache_batch_npu(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                          std::optional<int64_t> req_id, int64_t batch_dim) {
  const Call call{"copy_cache_batch", req_id};
  enqueue(call, dst, src, plan_batch(call, dst, src, copies, batch_dim));
}

bool copy_cache_blocking_npu(at::ITensorListRef dst, at::ITensorListRef src, int64_t dst_batch_index,
                             int64_t src_batch_index, int64_t offset, int64_t size, std::optional<int64_t> req_id,
                             int64_t batch_dim, int64_t timeout_ms) {
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  const Call call{"copy_cache", req_id};
  const Slice slice{dst_batch_index, src_batch_index, offset, size};
  return enqueue_and_wait(call, dst, src, plan_copy(call, dst, src, slice, batch_dim), deadline);
}

bool copy_cache_batch_blocking_npu(at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                                   std::optional<int64_t> req_id, int64_t batch_dim, int64_t timeout_ms) {
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  const Call call{"copy_cache_batch", req_id};
  return enqueue_and_wait(call, dst, src, plan_batch(call, dst, src, copies, batch_dim), deadline);
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, PrivateUse1, m) {
  m.impl("copy_cache", &llm_datadist::copy_cache_npu);
  m.impl("copy_cache_batch", &llm_datadist::copy_cache_batch_npu);
  m.impl("_copy_cache_blocking", &llm_datadist::copy_cache_blocking_npu);
  m.impl("_copy_cache_batch_blocking", &llm_datadist::copy_cache_batch_blocking_npu);
}
