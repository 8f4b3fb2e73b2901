// SPDX-License-Identifier: Apache-2.0
// libopapi.so: the few operators that tests run between copies. torch's CPU kernels compute them, as tasks of the
// stream.
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "memory.h"
#include "stream.h"

// What a caller describes an operator's arguments with; the types are opaque to it. Sizes, strides and offset count
// elements, and `data` is where the storage begins.
struct aclTensor {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t offset;
  aclDataType dtype;
  void* data;
};

struct aclScalar {
  at::Scalar value;
};

// An operator between its two calls. It owns its arguments: the caller may destroy them before the task runs.
struct aclOpExecutor {
  std::vector<aclTensor> tensors;
  std::function<void(std::vector<at::Tensor>&)> compute;  // called with `tensors`
};

using namespace ascend_sim;

namespace {

at::ScalarType TorchType(aclDataType dtype) {
  static const std::map<aclDataType, at::ScalarType> types = {
      {ACL_FLOAT, at::kFloat}, {ACL_FLOAT16, at::kHalf}, {ACL_BF16, at::kBFloat16}, {ACL_DOUBLE, at::kDouble},
      {ACL_BOOL, at::kBool},   {ACL_INT8, at::kChar},    {ACL_INT16, at::kShort},   {ACL_INT32, at::kInt},
      {ACL_INT64, at::kLong},  {ACL_UINT8, at::kByte},
  };
  const auto found = types.find(dtype);
  TORCH_CHECK(found != types.end(), "aclDataType ", static_cast<int>(dtype), " is not simulated");
  return found->second;
}

// A tensor over the bytes in device memory. Throws unless they lie in one live allocation of the device.
at::Tensor OnHost(const aclTensor& tensor, int device) {
  const auto options = at::TensorOptions(TorchType(tensor.dtype));
  int64_t elements = 1, last = tensor.offset;
  for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
    elements *= tensor.sizes[i];
    last += (tensor.sizes[i] - 1) * tensor.strides[i];
  }
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
  const auto end = begin + static_cast<std::size_t>(last + 1) * options.dtype().itemsize();
  const std::optional<Region> region = FindRegion(tensor.data);
  TORCH_CHECK(region && region->place == Place::kDevice && region->device == device, tensor.data,
              " is not memory of device ", device);
  TORCH_CHECK(region->live, tensor.data, " is freed memory");
  TORCH_CHECK(elements == 0 || end <= region->end(), "a tensor at ", tensor.data, " + ", end - begin,
              " runs past the allocation of ", region->size, " bytes");
  return at::from_blob(
      region->At(begin), tensor.sizes, tensor.strides, tensor.offset, [storage = region->storage](void*) {}, options);
}

aclError Compute(const char* name, const aclOpExecutor& executor, int device) {
  const c10::InferenceMode no_autograd;
  const at::DisableRecordFunctionGuard not_in_the_hosts_traces;
  try {
    std::vector<at::Tensor> tensors;
    for (const aclTensor& tensor : executor.tensors) tensors.push_back(OnHost(tensor, device));
    executor.compute(tensors);
  } catch (const c10::Error& error) {
    return Refuse(ACL_ERROR_RT_AICORE_EXCEPTION, name, ": at execution, ", error.what_without_backtrace());
  }
  return ACL_SUCCESS;
}

// The first call of an operator.
aclError Prepare(const char* name, aclOpExecutor prepared, uint64_t* workspace_size, aclOpExecutor** executor) {
  if (const aclError injected = EnterCall(name)) return injected;
  *workspace_size = 0;
  *executor = new aclOpExecutor(std::move(prepared));
  return ACL_SUCCESS;
}

// The second call: puts the operator on the stream, and frees the executor.
aclError Submit(const char* name, aclOpExecutor* executor, aclrtStream handle) {
  const std::shared_ptr<const aclOpExecutor> owned(executor);
  if (const aclError injected = EnterCall(name)) return injected;
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  const int device = stream->device();
  return stream->Submit({name, [name, owned, device](std::size_t) { return Compute(name, *owned, device); }});
}

}  // namespace

extern "C" {

aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dims, aclDataType dtype, const int64_t* strides,
                           int64_t offset, aclFormat, const int64_t*, uint64_t, void* data) {
  return new aclTensor{{sizes, sizes + dims}, {strides, strides + dims}, offset, dtype, data};
}

aclScalar* aclCreateScalar(void* value, aclDataType dtype) {
  return new aclScalar{at::from_blob(value, {}, at::TensorOptions(TorchType(dtype))).item()};
}

int aclDestroyTensor(const aclTensor* tensor) {
  delete tensor;
  return ACL_SUCCESS;
}

int aclDestroyScalar(const aclScalar* scalar) {
  delete scalar;
  return ACL_SUCCESS;
}

// Defines the second call of an operator; the first is the function after it.
#define SECOND_CALL(name)                                                       \
  aclError name(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) { \
    return Submit(__func__, executor, stream);                                  \
  }

SECOND_CALL(aclnnInplaceCopy)
aclError aclnnInplaceCopyGetWorkspaceSize(const aclTensor* self, const aclTensor* source, uint64_t* workspace_size,
                                          aclOpExecutor** executor) {
  return Prepare(__func__, {{*self, *source}, [](auto& t) { t[0].copy_(t[1]); }}, workspace_size, executor);
}

SECOND_CALL(aclnnInplaceFillScalar)
aclError aclnnInplaceFillScalarGetWorkspaceSize(const aclTensor* self, const aclScalar* value, uint64_t* workspace_size,
                                                aclOpExecutor** executor) {
  const auto fill = [value = value->value](auto& t) { t[0].fill_(value); };
  return Prepare(__func__, {{*self}, fill}, workspace_size, executor);
}

SECOND_CALL(aclnnInplaceZero)
aclError aclnnInplaceZeroGetWorkspaceSize(const aclTensor* self, uint64_t* workspace_size, aclOpExecutor** executor) {
  return Prepare(__func__, {{*self}, [](auto& t) { t[0].zero_(); }}, workspace_size, executor);
}

// torch_npu calls none of the sums unless it finds the one with a tensor and the one with a number.
SECOND_CALL(aclnnAdd)
aclError aclnnAddGetWorkspaceSize(const aclTensor* self, const aclTensor* other, const aclScalar* alpha,
                                  const aclTensor* out, uint64_t* workspace_size, aclOpExecutor** executor) {
  const auto add = [alpha = alpha->value](auto& t) { t[2].copy_(at::add(t[0], t[1], alpha)); };
  return Prepare(__func__, {{*self, *other, *out}, add}, workspace_size, executor);
}

SECOND_CALL(aclnnAdds)
aclError aclnnAddsGetWorkspaceSize(const aclTensor* self, const aclScalar* other, const aclScalar* alpha,
                                   const aclTensor* out, uint64_t* workspace_size, aclOpExecutor** executor) {
  const auto add = [other = other->value, alpha = alpha->value](auto& t) { t[1].copy_(at::add(t[0], other, alpha)); };
  return Prepare(__func__, {{*self, *out}, add}, workspace_size, executor);
}

SECOND_CALL(aclnnInplaceAdd)
aclError aclnnInplaceAddGetWorkspaceSize(const aclTensor* self, const aclTensor* other, const aclScalar* alpha,
                                         uint64_t* workspace_size, aclOpExecutor** executor) {
  return aclnnAddGetWorkspaceSize(self, other, alpha, self, workspace_size, executor);
}

SECOND_CALL(aclnnInplaceAdds)
aclError aclnnInplaceAddsGetWorkspaceSize(const aclTensor* self, const aclScalar* other, const aclScalar* alpha,
                                          uint64_t* workspace_size, aclOpExecutor** executor) {
  return aclnnAddsGetWorkspaceSize(self, other, alpha, self, workspace_size, executor);
}

}  // extern "C"
