// SPDX-License-Identifier: Apache-2.0
//
// Refuses tensors that have no kernel: sparse layouts, nested tensors, empty lists, devices that are not built in. The
// dispatcher would refuse them too, but with a text about dispatch keys instead of about the argument.

#include <ATen/core/IListRef.h>

#include "../plan/checks.h"
#include "call.h"

namespace llm_datadist {
namespace {

c10::DispatchKey kernel_of(const at::Tensor& tensor) { return c10::legacyExtractDispatchKey(tensor.key_set()); }

void unsupported(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const CallContext call = context_of(op, *stack);
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  const c10::List<at::Tensor> dst = arguments[0].toTensorList();
  const c10::List<at::Tensor> src = arguments[1].toTensorList();
  check_lists(call, tensors_of(dst), tensors_of(src));
  if (const std::optional<int> copies = op.schema().argumentIndexWithName("copies")) {
    check_copies(call, arguments[*copies].toTensor());
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, call, "no kernel for ", kernel_of(dst.get(0)), " and ", kernel_of(src.get(0)),
                              " tensors on ", dst.get(0).device(), " and ", src.get(0).device(),
                              "; loaded are those for the CPU and, if torch_npu was imported before ",
                              "llm_datadist_torch, the NPU", call.request());
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CompositeExplicitAutograd, m) {
  llm_datadist::register_boxed<&llm_datadist::unsupported>(m, llm_datadist::kOps);
}

// CompositeExplicitAutograd does not include nested tensors.
TORCH_LIBRARY_IMPL(llm_datadist, CompositeImplicitAutogradNestedTensor, m) {
  llm_datadist::register_boxed<&llm_datadist::unsupported>(m, llm_datadist::kOps);
}
