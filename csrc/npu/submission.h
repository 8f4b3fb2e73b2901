// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>
#include <acl/acl.h>

#include <memory>
#include <vector>

#include "../host/host_copy.h"

namespace llm_datadist {

// A plan with everything that the runtime needs to run it.
struct Submission {
  CallContext call;
  at::Device device;
  aclrtMemcpyKind kind;
  Plan plan;
  std::vector<Phase> host_phases_after = {};  // copies from our buffers to pageable memory, for when the device is done
  // Kept alive for the device: our buffers, and tensors of the caller. See Note [Tensors of Python].
  std::vector<at::Tensor> buffers = {};
  std::vector<at::Tensor> owned = {};
  bool timed_out = false;  // the deadline passed while pageable memory was gathered

  Submission(const CallContext& call, at::Device device, aclrtMemcpyKind kind, Plan plan)
      : call(call), device(device), kind(kind), plan(std::move(plan)) {}
  ~Submission();

  void enqueue(aclrtStream stream) const;
};

// Checks what only the NPU can know (devices, formats, capture) and gives pageable host memory pinned buffers. Returns
// nothing if there is nothing to copy. A deadline means that the caller waits for the copies: then copies to pageable
// memory go through a buffer too, and are finished by host_phases_after.
std::shared_ptr<Submission> make_submission(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src,
                                            Plan plan, const Deadline& deadline);

// Releases tensors of destroyed submissions. Call where the GIL may be taken; hold no lock.
void release_deferred();

}  // namespace llm_datadist
