// SPDX-License-Identifier: Apache-2.0
//
// Where tensors go that no kernel is for: sparse layouts, empty lists, devices that are not built in. Without this the
// dispatcher would refuse them too, but with a text about dispatch keys instead of about the argument.

#include <ATen/core/IListRef.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "../plan/row_layout.h"
#include "../plan/slice.h"

namespace llm_datadist {
namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  const c10::List<at::Tensor> dst = arguments[0].toTensorList();
  const c10::List<at::Tensor> src = arguments[1].toTensorList();
  const std::string name = op.schema().name().substr(sizeof("llm_datadist::") - 1);
  const Call call{name.c_str(), std::nullopt};
  check_lists(call, tensors_of(dst), tensors_of(src));
  if (arguments[2].isTensor()) {
    check_copies(call, arguments[2].toTensor());
  }
  TORCH_CHECK_NOT_IMPLEMENTED(false, call.op, ": no kernel for tensors on ", dst.get(0).device(), " and ",
                              src.get(0).device(),
                              "; loaded are those for the CPU and, where torch_npu is installed, the NPU");
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CompositeExplicitAutograd, m) {
  for (const char* op : {"copy_cache", "copy_cache_batch", "_copy_cache_blocking", "_copy_cache_batch_blocking"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&llm_datadist::refuse>());
  }
}
