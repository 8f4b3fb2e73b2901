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

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/ScopeExit.h>
#include <torch/library.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <algorithm>
#include <future>
#include <string>

#include "../plan/profiler_range.h"
#include "acl_check.h"
#include "side_stream.h"
#include "submission.h"

namespace llm_datadist {
namespace {

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
  release_retired();
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
  record_pinned(submission->buffers, stream);
}

// Puts copies on a side stream, between what is on the caller's stream before and what comes there after.
void enqueue_aside(const Submission& submission, const SideStream& side, aclrtStream current) {
  const Call& call = submission.call;
  CHECK_ACL(call, aclrtRecordEvent(side.before, current), "aclrtRecordEvent", "before a blocking copy");
  CHECK_ACL(call, aclrtStreamWaitEvent(side.stream, side.before), "aclrtStreamWaitEvent", "before a blocking copy");
  submission.enqueue(side.stream);
  CHECK_ACL(call, aclrtRecordEvent(side.after, side.stream), "aclrtRecordEvent", "after a blocking copy");
  CHECK_ACL(call, aclrtStreamWaitEvent(current, side.after), "aclrtStreamWaitEvent", "after a blocking copy");
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
  std::vector<at::Tensor> in_use = submission->buffers;
  in_use.insert(in_use.end(), dst.begin(), dst.end());
  in_use.insert(in_use.end(), src.begin(), src.end());

  const int device = submission->device.index();
  const auto side = borrow_side_stream(call, device, deadline);
  release_retired();
  if (side == nullptr) {
    return false;
  }
  std::shared_future<void> enqueued;
  {
    // Owned by the task alone: a queue that has failed drops it, which is how that is noticed.
    const auto promise = std::make_shared<std::promise<void>>();
    enqueued = promise->get_future().share();
    const auto task = [submission, side, promise,
                       current = c10_npu::getCurrentNPUStream(device).stream(false)]() -> int {
      try {
        enqueue_aside(*submission, *side, current);
        promise->set_value();
      } catch (...) {
        promise->set_exception(std::current_exception());
      }
      return ACL_SUCCESS;
    };
    at_npu::native::OpCommand::RunOpApiV2(std::string("llm_datadist::") + call.op, task);
  }

  auto leave_it = c10::make_scope_exit([&] { leave(device, {enqueued, side, std::move(in_use)}); });
  if (enqueued.wait_until(deadline) != std::future_status::ready) {
    return false;
  }
  try {
    enqueued.get();
  } catch (const std::future_error&) {
    TORCH_CHECK(false, call.op, ": torch_npu's task queue has failed before, and runs nothing any more",
                call.request());
  } catch (...) {
    synchronize_until(side->stream, deadline);  // the commands before the one that failed: whoever is told may look
    throw;
  }
  const aclError code = synchronize_until(side->stream, deadline);
  if (code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT) {
    return false;
  }
  CHECK_ACL(call, code, "aclrtSynchronizeStreamWithTimeout", "after a blocking copy");
  leave_it.release();
  give_back(device, side);
  return std::all_of(submission->afterwards.begin(), submission->afterwards.end(),
                     [&](const Step& step) { return copy_on_host(step, deadline); });
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
