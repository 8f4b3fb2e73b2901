// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "acl/acl_rt.h"
#include "objects.h"

/// An operator and its arguments, between the two calls that it takes to run it.
///
/// Everything is kept by value: the caller may destroy the arguments before the task runs.
struct aclOpExecutor {
  std::vector<aclTensor> tensors;
  std::set<std::size_t> of_any_shape;                     // which of them may become smaller
  std::function<void(std::vector<at::Tensor>&)> compute;  // called with `tensors`, their memory within reach
};

namespace ascend_sim {

/// The first call, but for the arguments. Counts it, and sets what it returns to its caller.
aclError Prepare(const char* name, aclOpExecutor prepared, uint64_t* workspace_size, aclOpExecutor** executor);

/// The second call: puts the operator on the stream, and frees the executor.
aclError Submit(const char* name, aclOpExecutor* executor, aclrtStream stream);

/// How a parameter of an operator arrives (Acl), is kept (Keep), and is handed over when the task runs (Give). Numbers
/// are themselves.
template <typename T>
struct Argument {
  using Acl = T;
  static T Keep(aclOpExecutor&, Acl value) { return value; }
  static T Give(std::vector<at::Tensor>&, T kept) { return kept; }
};

template <>
struct Argument<at::Tensor&> {
  using Acl = const aclTensor*;
  static std::size_t Keep(aclOpExecutor& executor, Acl tensor) {
    executor.tensors.push_back(tensor ? *tensor : aclTensor{});
    return executor.tensors.size() - 1;
  }
  static at::Tensor& Give(std::vector<at::Tensor>& tensors, std::size_t kept) { return tensors[kept]; }
};

template <>
struct Argument<const at::Tensor&> : Argument<at::Tensor&> {};

/// A result whose shape depends on the data. It is described with the largest shape that it may have.
struct DynamicTensor {
  at::Tensor& tensor;

  void Set(const at::Tensor& result) {
    tensor = tensor.flatten().narrow(0, 0, result.numel()).view(result.sizes()).copy_(result);
  }
};

template <>
struct Argument<DynamicTensor> {
  using Acl = const aclTensor*;
  static std::size_t Keep(aclOpExecutor& executor, Acl tensor) {
    const std::size_t kept = Argument<at::Tensor&>::Keep(executor, tensor);
    executor.of_any_shape.insert(kept);
    return kept;
  }
  static DynamicTensor Give(std::vector<at::Tensor>& tensors, std::size_t kept) { return {tensors[kept]}; }
};

template <>
struct Argument<at::TensorList> {
  using Acl = const aclTensorList*;
  struct Range {
    std::size_t begin, size;
  };
  static Range Keep(aclOpExecutor& executor, Acl list) {
    const Range kept{executor.tensors.size(), list->tensors.size()};
    executor.tensors.insert(executor.tensors.end(), list->tensors.begin(), list->tensors.end());
    return kept;
  }
  static at::TensorList Give(std::vector<at::Tensor>& tensors, Range kept) {
    return at::TensorList(tensors).slice(kept.begin, kept.size);
  }
};

template <>
struct Argument<const at::Scalar&> {
  using Acl = const aclScalar*;
  static at::Scalar Keep(aclOpExecutor&, Acl scalar) { return scalar->value; }
  static const at::Scalar& Give(std::vector<at::Tensor>&, const at::Scalar& kept) { return kept; }
};

template <>
struct Argument<at::IntArrayRef> {
  using Acl = const aclIntArray*;
  static std::vector<int64_t> Keep(aclOpExecutor&, Acl array) { return array ? array->values : std::vector<int64_t>{}; }
  static at::IntArrayRef Give(std::vector<at::Tensor>&, const std::vector<int64_t>& kept) { return kept; }
};

template <>
struct Argument<const std::string&> {
  using Acl = const char*;
  static std::string Keep(aclOpExecutor&, Acl text) { return text; }
  static const std::string& Give(std::vector<at::Tensor>&, const std::string& kept) { return kept; }
};

template <>
struct Argument<at::ScalarType> {
  using Acl = aclDataType;
  static at::ScalarType Keep(aclOpExecutor&, Acl dtype) { return TorchType(dtype); }
  static at::ScalarType Give(std::vector<at::Tensor>&, at::ScalarType kept) { return kept; }
};

/// The first call, aclnnXxxGetWorkspaceSize, of the operator that `compute` computes.
template <const char* name, auto compute>
struct FirstCall;

template <const char* name, typename... Parameters, void (*compute)(Parameters...)>
struct FirstCall<name, compute> {
  static aclError Run(typename Argument<Parameters>::Acl... arguments, uint64_t* workspace_size,
                      aclOpExecutor** executor) {
    aclOpExecutor prepared;
    std::tuple kept{Argument<Parameters>::Keep(prepared, arguments)...};  // in order, as the braces demand
    prepared.compute = [kept = std::move(kept)](std::vector<at::Tensor>& tensors) {
      std::apply([&](const auto&... each) { compute(Argument<Parameters>::Give(tensors, each)...); }, kept);
    };
    return Prepare(name, std::move(prepared), workspace_size, executor);
  }
};

}  // namespace ascend_sim

/// Defines an operator: its name, its parameters in the order of CANN's documentation, outputs too, without workspace
/// and executor, and then, as the body of a function, how torch computes it.
///
/// torch_npu looks functions up by name, so an instance of a template needs a plain symbol: an indirect function, which
/// the loader asks for its address.
#define OPERATOR(name, ...)                                                                          \
  static void name##OnHost(__VA_ARGS__);                                                             \
  static constexpr char name##FirstCall[] = #name "GetWorkspaceSize";                                \
  extern "C" void (*name##Resolve())() {                                                             \
    return reinterpret_cast<void (*)()>(&ascend_sim::FirstCall<name##FirstCall, name##OnHost>::Run); \
  }                                                                                                  \
  extern "C" void name##GetWorkspaceSize() __attribute__((ifunc(#name "Resolve")));                  \
  extern "C" aclError name(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {           \
    return ascend_sim::Submit(#name, executor, stream);                                              \
  }                                                                                                  \
  static void name##OnHost(__VA_ARGS__)
