// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <acl/acl.h>

#include <memory>
#include <vector>

#include "../plan/copy_plan.h"
#include "../plan/host_copy.h"

namespace llm_datadist {

// One call, ready for the runtime.
struct Submission {
  Call call;
  at::Device device;
  aclrtMemcpyKind kind;
  CopyPlan plan;
  // Host copies for when the device is done: of what it was given a buffer for.
  std::vector<Step> afterwards = {};
  // What the device reads and writes and nothing else may keep alive: buffers of ours, and tensors of the caller's. See
  // Note [Tensors of Python].
  std::vector<at::Tensor> buffers = {};
  std::vector<at::Tensor> owned = {};
  bool late = false;  // the deadline passed while host memory was gathered

  Submission(const Call& call, at::Device device, aclrtMemcpyKind kind, CopyPlan plan)
      : call(call), device(device), kind(kind), plan(std::move(plan)) {}
  ~Submission();

  void enqueue(aclrtStream stream) const;
};

// Makes a plan ready. Returns nothing if there is nothing to move. With a deadline somebody waits for the copies, so
// that none needs to touch pageable memory from the queue or the device.
std::shared_ptr<Submission> prepare(const Call& call, at::ITensorListRef dst, at::ITensorListRef src, CopyPlan plan,
                                    const Deadline& deadline);

// Lets go of what submissions have owned. Called where Python's threads come by, with no lock held.
void release_retired();

}  // namespace llm_datadist
