// SPDX-License-Identifier: Apache-2.0
//
// Where tensors go that no kernel is for: sparse layouts, nested tensors, empty lists, devices that are not built in.
// Without this the dispatcher would refuse them too, but with a text about dispatch keys instead of about the argument.

#include <ATen/core/IListRef.h>
#include <torch/library.h>

#include "../boxed_call.h"
#include "../plan/row_layout.h"
#include "../plan/slice.h"

namespace llm_datadist {
namespace {

c10::DispatchKey kernel_of(const at::Tensor& tensor) { return c10::legacyExtractDispatchKey(tensor.key_set()); }

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Call call = call_of(op, *stack);
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  const c10::List<at::Tensor> dst = arguments[0].toTensorList();
  const c10::List<at::Tensor> src = arguments[1].toTensorList();
  check_lists(call, tensors_of(dst), tensors_of(src));
  if (arguments[2].isTensor()) {
    check_copies(call, arguments[2].toTensor());
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, call, "no kernel for ", kernel_of(dst.get(0)), " and ", kernel_of(src.get(0)),
                              " tensors on ", dst.get(0).device(), " and ", src.get(0).device(),
                              "; loaded are those for the CPU and, if torch_npu was imported before ",
                              "llm_datadist_torch, the NPU", call.request());
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CompositeExplicitAutograd, m) {
  for (const char* op : {"copy_cache", "copy_cache_batch", "_copy_cache_blocking", "_copy_cache_batch_blocking"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&llm_datadist::refuse>());
  }
}

// The other key does not stand for nested tensors.
TORCH_LIBRARY_IMPL(llm_datadist, CompositeImplicitAutogradNestedTensor, m) {
  for (const char* op : {"copy_cache", "copy_cache_batch", "_copy_cache_blocking", "_copy_cache_batch_blocking"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&llm_datadist::refuse>());
  }
}
