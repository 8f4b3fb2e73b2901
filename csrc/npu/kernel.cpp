// SPDX-License-Identifier: Apache-2.0
//
// Note [Stream ordering]
// An op of torch_npu does not call the runtime itself. It queues a task, and a second thread makes the ACL calls. A
// kernel that made ACL calls on the caller's thread would overtake queued tasks, or would have to drain the queue and
// lose its overlap of host and device. So the copies are a task of the queue (RunOpApiV2), and the stream is taken with
// stream(false), which does not drain it. The task owns what it uses: the plan and its buffers. The tensors of the
// caller need no owner: the caching allocators give a freed block only to later work.
//
// A failed task is an error of the queue: torch_npu raises it from a later call and drops every later task,
// as for its own ops. An op that waits passes its errors to its caller itself, and does not fail the queue.

#include <c10/core/DeviceGuard.h>
#include <c10/util/ScopeExit.h>
#include <torch_npu/csrc/core/npu/CachingHostAllocator.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <future>
#include <memory>
#include <string>

#include "../compat.h"
#include "../kernels.h"
#include "acl_check.h"
#include "device_table.h"
#include "side_stream.h"
#include "submission.h"

namespace llm_datadist {
namespace {

// Keeps pinned memory from being reused before the work queued so far on the stream is done.
void record_pinned(at::ITensorListRef tensors, const c10_npu::NPUStream& stream) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_cpu()) {
      compat::record_event(&at_npu::native::CachingHostAllocator_recordEvent, tensor, stream);
    }
  }
}

std::string queue_name(const CallContext& call) { return c10::str("llm_datadist::", call.op); }

void submit_async(const std::shared_ptr<Submission>& submission, at::ITensorListRef dst, at::ITensorListRef src) {
  const c10_npu::NPUStream stream = c10_npu::getCurrentNPUStream(submission->device.index());
  const auto task = [submission, handle = stream.stream(false)]() -> int {
    submission->enqueue(handle);
    return ACL_SUCCESS;
  };
  at_npu::native::OpCommand::RunOpApiV2(queue_name(submission->call), task);
  record_pinned(dst, stream);
  record_pinned(src, stream);
  if (submission->buffer.defined()) {
    record_pinned(submission->buffer, stream);
  }
}

// Enqueues copies on a side stream, after the earlier and before the later work of the caller's stream.
void enqueue_on_side_stream(const Submission& submission, const SideStream& side, aclrtStream current) {
  const CallContext& call = submission.call;
  CHECK_ACL(call, aclrtRecordEvent(side.before, current), "aclrtRecordEvent", "before a blocking copy");
  CHECK_ACL(call, aclrtStreamWaitEvent(side.stream, side.before), "aclrtStreamWaitEvent", "before a blocking copy");
  submission.enqueue(side.stream);
  CHECK_ACL(call, aclrtRecordEvent(side.after, side.stream), "aclrtRecordEvent", "after a blocking copy");
  CHECK_ACL(call, aclrtStreamWaitEvent(current, side.after), "aclrtStreamWaitEvent", "after a blocking copy");
}

// Queues the copies on a side stream. A queue that has failed drops the task, and thereby breaks the promise.
BlockingCopy submit_blocking(const std::shared_ptr<Submission>& submission, std::shared_ptr<SideStream> side,
                             at::ITensorListRef dst, at::ITensorListRef src) {
  // After a timeout, the caller may free a cache before the copy has run.
  std::vector<at::Tensor> in_use{submission->buffer, submission->plan.staging, submission->by_kernel.buffer};
  in_use.insert(in_use.end(), dst.begin(), dst.end());
  in_use.insert(in_use.end(), src.begin(), src.end());
  auto promise = std::make_shared<std::promise<Ended>>();
  BlockingCopy copy{std::move(side), promise->get_future().share(), std::move(in_use)};
  const aclrtStream current = c10_npu::getCurrentNPUStream(submission->device.index()).stream(false);
  // The promise is owned by the task alone.
  const auto task = [submission, current, side = copy.side, promise = std::move(promise)]() -> int {
    std::exception_ptr not_issued;
    try {
      enqueue_on_side_stream(*submission, *side, current);
    } catch (...) {
      not_issued = std::current_exception();
    }
    side->tell_end(promise, not_issued);
    return ACL_SUCCESS;
  };
  at_npu::native::OpCommand::RunOpApiV2(queue_name(submission->call), task);
  return copy;
}

// Returns whether the copies were done before the deadline.
bool submit_and_wait(const std::shared_ptr<Submission>& submission, at::ITensorListRef dst, at::ITensorListRef src,
                     const Deadline& deadline) {
  const CallContext& call = submission->call;
  const int device = submission->device.index();
  auto side = acquire_side_stream(call, device, deadline);
  if (side == nullptr) {
    return false;
  }
  const BlockingCopy copy = submit_blocking(submission, std::move(side), dst, src);
  auto park_copy = c10::make_scope_exit([&] { park(copy); });
  if (!copy.wait(call, deadline)) {
    return false;
  }
  park_copy.release();
  Ended ended;
  try {
    ended = copy.ended.get();
  } catch (const std::future_error&) {
    release_side_stream(copy.side);
    TORCH_CHECK(false, call.op, ": torch_npu's task queue has failed before and runs no more tasks", call.request());
  }
  check_device(call, device, "aclrtSynchronizeStream", ended.code, ended.message);
  if (ended.not_issued) {
    std::rethrow_exception(ended.not_issued);
  }
  return !submission->host_phase_after || copy_on_host(*submission->host_phase_after, deadline);
}

bool run_npu(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, Plan plan,
             const Deadline& deadline) {
  const auto submission = make_submission(call, dst, src, std::move(plan), deadline);
  if (submission == nullptr) {
    return true;
  }
  const c10::DeviceGuard guard(submission->device);
  TORCH_CHECK(!deadline || c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, call.op,
              ": a blocking copy cannot be captured in a graph; use torch.ops.llm_datadist.", call.op, call.request());
  if (submission->timed_out) {
    return false;
  }
  // The host writes pageable memory, when the device is done. Later calls may read it at once, so this one waits.
  if (deadline || submission->host_phase_after) {
    return submit_and_wait(submission, dst, src, deadline);
  }
  submit_async(submission, dst, src);
  return true;
}

void run_npu_table(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                   int64_t batch_dim) {
  const c10::DeviceGuard guard(copies.device());
  check_format(call, "dst", dst);
  check_format(call, "src", src);
  auto submission = std::make_shared<Submission>(Submission{call, copies.device(), ACL_MEMCPY_DEVICE_TO_DEVICE});
  submission->by_kernel = plan_for_table(call, dst, src, copies, batch_dim);
  submit_async(submission, dst, src);
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, PrivateUse1, m) {
  llm_datadist::Kernels<&llm_datadist::run_npu, &llm_datadist::run_npu_table>::add_to(m);
}
