// SPDX-License-Identifier: Apache-2.0
#include "staging.h"

namespace llm_datadist {

Step through_buffer(Step& step, const at::Tensor& buffer) {
  Step gather = step;
  gather.in_order = false;
  step.in_order = false;
  for (size_t i = 0; i < step.spans.size(); ++i) {
    gather.spans[i].dst = step.spans[i].before;
    step.spans[i].src = step.spans[i].before;
  }
  auto* at = static_cast<char*>(buffer.mutable_data_ptr());
  for (size_t i = 0; i < step.bases.size(); ++i) {
    Base& base = step.bases[i];
    const int64_t pitch = step.lists[base.spans].bytes;
    gather.bases[i].dst = at;
    gather.bases[i].dst_pitch = pitch;
    base.src = at;
    base.src_pitch = pitch;
    at += pitch * base.height;
  }
  return gather;
}

}  // namespace llm_datadist
