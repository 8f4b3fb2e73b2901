// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/IListRef.h>

#include <vector>

#include "device_kernel.h"

namespace llm_datadist {

// The launches of a copy_cache_batch whose `copies` are on the NPU. The kernel reads them when it runs, and skips rows
// that are not inside the caches. If the caches share memory, all sources go through a buffer with a slot, as large as
// a row, for each row of copies at each place.
//
// Raises:
//   ValueError: The device has no kernel, or an argument is refused, but for the numbers in `copies`.
KernelPlan plan_for_table(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src,
                          const at::Tensor& copies, int64_t batch_dim);

}  // namespace llm_datadist
