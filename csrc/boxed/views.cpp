// SPDX-License-Identifier: Apache-2.0
//
// Copies into views, as llm_datadist_torch/compile.py writes them into graphs: `dst` holds whole tensors, and `views`,
// the last argument, says which part of them each destination is. Calls the public op with these parts.

#include <algorithm>

#include "../plan/checks.h"
#include "call.h"

namespace llm_datadist {
namespace {

// Takes numbers from the front of `views`.
int64_t take(const CallContext& call, c10::ArrayRef<int64_t>& views) {
  CHECK_CALL(call, !views.empty(), "expected views to have more numbers");
  const int64_t number = views.front();
  views = views.slice(1);
  return number;
}

c10::ArrayRef<int64_t> take(const CallContext& call, c10::ArrayRef<int64_t>& views, int64_t count) {
  CHECK_CALL(call, count <= static_cast<int64_t>(views.size()), "expected views to have more numbers");
  const c10::ArrayRef<int64_t> numbers = views.slice(0, count);
  views = views.slice(count);
  return numbers;
}

// The next destination. A copy needs equal dtypes, so src gives that of the view. Whether the view lies inside its
// storage is checked with all other tensors, by the op.
at::Tensor next_view(const CallContext& call, const c10::List<at::Tensor>& whole, caffe2::TypeMeta dtype,
                     c10::ArrayRef<int64_t>& views) {
  const int64_t index = take(call, views);
  CHECK_CALL(call, 0 <= index && index < static_cast<int64_t>(whole.size()), "views: ", index, " out of range [0, ",
             whole.size(), "), the tensors of dst");
  const at::Tensor tensor = whole.get(index);
  const int64_t dim = take(call, views);
  if (dim < 0) {
    return tensor;
  }
  const int64_t begin = tensor.storage_offset() * tensor.itemsize();
  const int64_t offset = take(call, views);
  const int64_t itemsize = std::max<int64_t>(1, dtype.itemsize());  // 0 if src is undefined, which the op refuses
  int64_t at = 0;
  CHECK_CALL(call, !__builtin_add_overflow(begin, offset, &at) && at >= 0 && at % itemsize == 0,
             "views: a view cannot begin ", offset, " bytes after byte ", begin, " of the storage of ",
             (TensorName{"dst", index}), ", as its elements have ", itemsize, " bytes");
  const c10::ArrayRef<int64_t> sizes = take(call, views, dim);
  const c10::ArrayRef<int64_t> strides = take(call, views, dim);
  at::Tensor view = at::detail::make_tensor<at::TensorImpl>(at::TensorImpl::VIEW, c10::Storage(tensor.storage()),
                                                            tensor.key_set(), dtype);
  view.unsafeGetTensorImpl()->set_storage_offset(at / itemsize);
  view.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides);
  return view;
}

c10::OperatorHandle public_op(const c10::OperatorHandle& op) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(c10::str("llm_datadist::", public_name(op)).c_str(), "");
}

void copy_into_views(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const CallContext call = context_of(op, *stack);
  const std::vector<int64_t> numbers = torch::jit::pop(*stack).toIntVector();
  c10::ArrayRef<int64_t> views = numbers;
  const size_t arguments = op.schema().arguments().size() - 1;
  c10::IValue& dst = torch::jit::peek(*stack, 0, arguments);
  const c10::List<at::Tensor> whole = dst.toTensorList();
  const c10::List<at::Tensor> src = torch::jit::peek(*stack, 1, arguments).toTensorList();
  c10::List<at::Tensor> parts;
  while (!views.empty()) {
    CHECK_CALL(call, parts.size() < src.size(), "expected dst and src to have one length, got ", src.size(),
               " tensors in src, and more views");
    parts.push_back(next_view(call, whole, src.get(parts.size()).dtype(), views));
  }
  dst = parts;
  public_op(op).callBoxed(stack);
}

// What the op checks of fake tensors was checked when the program called it with them.
void no_checks(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
}

}  // namespace
}  // namespace llm_datadist

TORCH_LIBRARY_IMPL(llm_datadist, CompositeExplicitAutograd, m) {
  llm_datadist::register_boxed<&llm_datadist::copy_into_views>(m, llm_datadist::kViewOps);
}

TORCH_LIBRARY_IMPL(llm_datadist, Meta, m) {
  llm_datadist::register_boxed<&llm_datadist::no_checks>(m, llm_datadist::kViewOps);
}
