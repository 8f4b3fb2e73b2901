// SPDX-License-Identifier: Apache-2.0
//
// Note [Copies by a kernel]
// Within the device the runtime makes a task of every row. One launch of the kernel `copy_pieces`
// (llm_datadist_torch/_native/kernel.py, which defines the tables) copies all rows of a phase instead. The tables are
// part of the arguments of the launch: the runtime copies them to the device during the call, and keeps them for as
// long as the task or the captured graph needs them. So there is no upload to wait for, and nothing to keep alive.
//
// The pieces of one launch run in any order. A phase whose order matters is gathered in a buffer, then scattered.

#pragma once

#include <acl/acl.h>

#include <vector>

#include "../plan/plan.h"

namespace llm_datadist {

struct Kernel;

struct KernelLaunch {
  const Kernel* kernel;
  int64_t unit;  // bytes that an element has: 4 or 1
  Address dst_base;
  Address src_base;
  std::vector<int64_t> shares;  // of each program: base, piece, count
  std::vector<int64_t> bases;   // dst, src, first piece, end of its pieces
  std::vector<int64_t> pieces;  // dst, src, length
};

struct KernelPlan {
  std::vector<KernelLaunch> launches;  // one after the other; none: the kernel is not used
  at::Tensor buffer = {};
};

// Turns a plan of copies within a device into launches, if the device has a kernel that is expected to be faster.
KernelPlan plan_for_kernel(const Plan& plan, c10::Device device);

// Puts a launch on a stream. Raises RuntimeError if the runtime refuses it.
void enqueue(const CallContext& call, const KernelLaunch& launch, aclrtStream stream);

// The launches that the runtime has accepted.
uint64_t accepted_launches();

}  // namespace llm_datadist
