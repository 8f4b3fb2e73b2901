// SPDX-License-Identifier: Apache-2.0
//
// Bumps the version counters of dst, so that autograd does not use saved values that were overwritten, and refuses what
// autograd would get wrong. Done here once, under the key that PyTorch has for it, for every op and device. The key is
// above tensors that wrap others, because only the outer ones require grad.

#include <ATen/core/IListRef.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>

#include "../plan/checks.h"
#include "call.h"

namespace llm_datadist {
namespace {

void bump_versions(const c10::List<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_inference()) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

void bump_version(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const CallContext call = context_of(op, *stack);
  // Holds the list, because the kernel pops the arguments. dst and src are the first arguments of every op.
  const c10::List<at::Tensor> dst = torch::jit::peek(*stack, 0, op.schema().arguments().size()).toTensorList();
  const c10::List<at::Tensor> src = torch::jit::peek(*stack, 1, op.schema().arguments().size()).toTensorList();
  check_derivatives(call, "dst", tensors_of(dst), /*written=*/true);
  check_derivatives(call, "src", tensors_of(src), /*written=*/false);
  // CacheManager, whose ops return a bool, copies memory in any mode.
  if (op.schema().returns().empty() && !c10::InferenceMode::is_enabled()) {
    check_inference(call, tensors_of(dst));
  }
  try {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  } catch (const c10::ValueError&) {
    throw;  // a refused call has written nothing
  } catch (const c10::NotImplementedError&) {
    throw;
  } catch (...) {
    bump_versions(dst);  // a kernel that fails may have written some of the bytes
    throw;
  }
  bump_versions(dst);
}

}  // namespace
}  // namespace llm_datadist

// The kernel below does all that autograd needs. PyTorch's default for ops without a formula would look at every tensor
// of the lists again.
TORCH_LIBRARY_IMPL(llm_datadist, Autograd, m) {
  for (const auto& ops : {c10::ArrayRef<const char*>(llm_datadist::kOps), c10::ArrayRef(llm_datadist::kViewOps)}) {
    for (const char* op : ops) {
      m.impl(op, torch::CppFunction::makeFallthrough());
    }
  }
}

TORCH_LIBRARY_IMPL(llm_datadist, ADInplaceOrView, m) {
  llm_datadist::register_boxed<&llm_datadist::bump_version>(m, llm_datadist::kOps);
  llm_datadist::register_boxed<&llm_datadist::bump_version>(m, llm_datadist::kViewOps);
}
