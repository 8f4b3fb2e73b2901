// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <acl/acl.h>

#include <memory>
#include <optional>

#include "../host/host_copy.h"
#include "device_kernel.h"

namespace llm_datadist {

// A plan with everything that the runtime needs to run it.
struct Submission {
  CallContext call;
  at::Device device;
  aclrtMemcpyKind kind;
  Plan plan = {};
  KernelPlan by_kernel = {};                   // instead of the plan, if it has launches
  at::Tensor buffer = {};                      // pinned, between the device and pageable memory
  std::optional<Phase> host_phase_after = {};  // from the buffer to pageable memory, for when the device is done
  bool timed_out = false;                      // the deadline passed while pageable memory was gathered

  void enqueue(aclrtStream stream) const;
};

// Refuses tensors of the list dst or src whose rows are no plain byte ranges: those in an internal format.
void check_format(const CallContext& call, const char* list, at::ITensorListRef tensors);

// Checks what only the NPU can know (devices, formats, capture) and puts pinned buffers between the device and pageable
// memory: the runtime may read or write that at any time. A pageable source is gathered here. Returns nothing if there
// is nothing to copy.
std::shared_ptr<Submission> make_submission(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src,
                                            Plan plan, const Deadline& deadline);

}  // namespace llm_datadist
