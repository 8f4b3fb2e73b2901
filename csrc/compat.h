// SPDX-License-Identifier: Apache-2.0
//
// What differs between the versions of torch and torch_npu that one source is built against, and nothing else. A
// difference is asked for by what the headers declare, so that no version number has to be kept up to date.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/enum_tag.h>

#include <type_traits>
#include <vector>

namespace llm_datadist::compat {

// torch 2.7 has no tag for "exactly the strides of the program". The one it has keeps the order of the strides, and
// what Inductor then passes on are the caller's tensors themselves.
template <typename Tag = at::Tag>
std::vector<Tag> op_tags() {
  if constexpr (requires { Tag::needs_exact_strides; }) {
    return {Tag::pt2_compliant_tag, Tag::needs_exact_strides};
  } else {
    return {Tag::pt2_compliant_tag, Tag::needs_fixed_stride_order};
  }
}

// Keeps a pinned block from being used again before the stream has done what was queued so far. `record` is torch_npu's
// CachingHostAllocator_recordEvent. From 2.9 on it asks for the context of the allocation. Up to 2.8 it asks for the
// kind of copy, and where the address is not one of its blocks it waits for the task queue and the stream instead.
template <typename Result, typename ContextOrKind, typename Stream>
void record_event(Result (*record)(void*, ContextOrKind, Stream), const at::Tensor& tensor, const Stream& stream) {
  const at::DataPtr& data = tensor.storage().data_ptr();
  if constexpr (std::is_pointer_v<ContextOrKind>) {
    record(data.get(), data.get_context(), stream);
  } else if (tensor.is_pinned()) {
    record(data.get(), ContextOrKind{}, stream);
  }
}

}  // namespace llm_datadist::compat
