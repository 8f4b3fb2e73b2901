// SPDX-License-Identifier: Apache-2.0
//
// Note [Stream ordering]
// An op of torch_npu does not call the runtime itself. It queues a task, and a second thread makes the ACL calls. A
// kernel that made ACL calls on the caller's thread would overtake queued tasks, or would have to drain the queue and
// lose its overlap of host and device. So the copies are a task of the queue (RunOpApiV2), and the stream is taken with
// stream(false), which does not drain it. The task owns what it uses: the plan, staging buffers, and host memory that
// has no other owner. Device memory needs no owner: the caching allocator gives a freed block only to later work.
//
// A failed task is an error of the queue: torch_npu raises it from a later call and drops every later task,
// as for its own ops. The blocking op passes its errors to its caller itself, and does not fail the queue.

#include <c10/core/DeviceGuard.h>
#include <c10/util/ScopeExit.h>
#include <torch_npu/csrc/core/npu/CachingHostAllocator.h>
#include <torch_npu/csrc/core/npu/NPUGraphsUtils.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <algorithm>
#include <future>
#include <string>

#include "../compat.h"
#include "../kernels.h"
#include "acl_check.h"
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

void submit_async(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, Plan plan) {
  release_deferred();
  const auto submission = make_submission(call, dst, src, std::move(plan), std::nullopt);
  if (submission == nullptr) {
    return;
  }
  const c10::DeviceGuard guard(submission->device);
  const c10_npu::NPUStream stream = c10_npu::getCurrentNPUStream(submission->device.index());
  const auto task = [submission, handle = stream.stream(false)]() -> int {
    submission->enqueue(handle);
    return ACL_SUCCESS;
  };
  at_npu::native::OpCommand::RunOpApiV2(queue_name(call), task);
  record_pinned(dst, stream);
  record_pinned(src, stream);
  record_pinned(submission->buffers, stream);
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

// Returns whether the copies were done before the deadline.
bool submit_and_wait(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, Plan plan,
                     Clock::time_point deadline) {
  const auto submission = make_submission(call, dst, src, std::move(plan), deadline);
  if (submission == nullptr) {
    return true;
  }
  const c10::DeviceGuard guard(submission->device);
  TORCH_CHECK(c10_npu::currentStreamCaptureStatusMayInitCtx() == c10_npu::CaptureStatus::None, call.op,
              ": a blocking copy cannot be captured in a graph; use torch.ops.llm_datadist.", call.op, call.request());
  if (submission->timed_out) {
    return false;
  }
  // After a timeout, the caller may free a cache before the copy has run.
  std::vector<at::Tensor> in_use = submission->buffers;
  in_use.insert(in_use.end(), dst.begin(), dst.end());
  in_use.insert(in_use.end(), src.begin(), src.end());
  if (submission->plan.staging.defined()) {
    in_use.push_back(submission->plan.staging);
  }

  const int device = submission->device.index();
  const auto side = acquire_side_stream(call, device, deadline);
  release_deferred();
  if (side == nullptr) {
    return false;
  }
  std::shared_future<void> issued;
  {
    // Owned by the task alone: a queue that has failed drops the task, which breaks the promise.
    const auto promise = std::make_shared<std::promise<void>>();
    issued = promise->get_future().share();
    const auto task = [submission, side, promise,
                       current = c10_npu::getCurrentNPUStream(device).stream(false)]() -> int {
      try {
        enqueue_on_side_stream(*submission, *side, current);
        promise->set_value();
      } catch (...) {
        promise->set_exception(std::current_exception());
      }
      return ACL_SUCCESS;
    };
    at_npu::native::OpCommand::RunOpApiV2(queue_name(call), task);
  }

  auto park_copy = c10::make_scope_exit([&] { park(device, {issued, side, std::move(in_use)}); });
  if (issued.wait_until(deadline) != std::future_status::ready) {
    return false;
  }
  try {
    issued.get();
  } catch (const std::future_error&) {
    TORCH_CHECK(false, call.op, ": torch_npu's task queue has failed before and runs no more tasks", call.request());
  } catch (...) {
    synchronize_until(side->stream, deadline);  // so that the earlier copies have ended when the error is raised
    throw;
  }
  const aclError code = synchronize_until(side->stream, deadline);
  if (code == compat::kStreamSyncTimeout) {
    return false;
  }
  CHECK_ACL(call, code, "aclrtSynchronizeStreamWithTimeout", "after a blocking copy");
  park_copy.release();
  release_side_stream(device, side);
  return std::all_of(submission->host_phases_after.begin(), submission->host_phases_after.end(),
                     [&](const Phase& phase) { return copy_on_host(phase, deadline); });
}

bool run_npu(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, Plan plan,
             const Deadline& deadline) {
  if (deadline) {
    return submit_and_wait(call, dst, src, std::move(plan), *deadline);
  }
  submit_async(call, dst, src, std::move(plan));
  return true;
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, PrivateUse1, m) { llm_datadist::Kernels<&llm_datadist::run_npu>::add_to(m); }
