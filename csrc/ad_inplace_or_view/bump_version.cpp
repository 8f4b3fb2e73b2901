// SPDX-License-Identifier: Apache-2.0
//
// In-place writes must bump the version counters of what they write, or autograd would use saved values that are gone;
// and what autograd itself would have to follow is refused. Done once here, under the key PyTorch has for it, for every
// op and every device, and above tensors that wrap others, whose inner ones do not require grad. A refused call bumps
// nothing.

#include <ATen/core/IListRef.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "../boxed_call.h"
#include "../plan/row_layout.h"

namespace llm_datadist {
namespace {

void bump_version(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  // The kernel takes the arguments off the stack. dst is the first one of every op.
  const c10::List<at::Tensor> dst = torch::jit::peek(*stack, 0, op.schema().arguments().size()).toTensorList();
  check_grad(call_of(op, *stack), tensors_of(dst));
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const at::Tensor& tensor : dst) {
    if (!tensor.is_inference()) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, ADInplaceOrView, m) {
  for (const char* op : {"copy_cache", "copy_cache_batch", "_copy_cache_blocking", "_copy_cache_batch_blocking"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&llm_datadist::bump_version>());
  }
}
