// SPDX-License-Identifier: Apache-2.0
#include "operator.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>

#include <memory>

#include "../call.h"
#include "../memory.h"
#include "../stream.h"

namespace ascend_sim {
namespace {

bool IsBaseFormat(aclFormat format) {
  switch (format) {
    case ACL_FORMAT_ND:
    case ACL_FORMAT_NCHW:
    case ACL_FORMAT_NHWC:
    case ACL_FORMAT_NCDHW:
    case ACL_FORMAT_NDHWC:
    case ACL_FORMAT_NC:
    case ACL_FORMAT_NCL:
      return true;
    default:
      return false;
  }
}

// A tensor over the bytes in device memory. Throws unless they lie in one live allocation of the device.
at::Tensor OnHost(const aclTensor& tensor, int device) {
  if (tensor.dtype == ACL_DT_UNDEFINED) return {};
  TORCH_CHECK(IsBaseFormat(tensor.format), "format ", static_cast<int>(tensor.format), " is not simulated");
  const auto options = at::TensorOptions(TorchType(tensor.dtype));
  int64_t elements = 1, last = tensor.offset;
  for (std::size_t i = 0; i < tensor.sizes.size(); ++i) {
    elements *= tensor.sizes[i];
    last += (tensor.sizes[i] - 1) * tensor.strides[i];
  }
  if (elements == 0) return at::empty_strided(tensor.sizes, tensor.strides, options);
  const std::optional<Region> region = FindRegion(tensor.data);
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
  const auto end = begin + static_cast<std::size_t>(last + 1) * options.dtype().itemsize();
  TORCH_CHECK(region && region->place == Place::kDevice && region->device == device, Hex(tensor.data),
              " is not memory of device ", device);
  TORCH_CHECK(region->live, Hex(tensor.data), " is freed memory");
  TORCH_CHECK(end <= region->end(), "a tensor at ", Hex(tensor.data), " + ", end - begin,
              " runs past the allocation of ", region->size, " bytes at ", Hex(reinterpret_cast<void*>(region->base)));
  return at::from_blob(
      region->At(begin), tensor.sizes, tensor.strides, tensor.offset, [storage = region->storage](void*) {}, options);
}

std::vector<at::Tensor> AllOnHost(const std::vector<aclTensor>& tensors, int device) {
  std::vector<at::Tensor> on_host;
  for (const aclTensor& tensor : tensors) on_host.push_back(OnHost(tensor, device));
  return on_host;
}

// torch gives an output of the wrong shape the right one; a device cannot.
void CheckShapes(const aclOpExecutor& executor, const std::vector<at::Tensor>& tensors) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined()) continue;
    if (executor.of_any_shape.count(i) > 0) {
      *executor.tensors[i].actual_sizes = tensors[i].sizes().vec();
      continue;
    }
    const at::IntArrayRef described = executor.tensors[i].sizes;
    TORCH_CHECK(tensors[i].sizes() == described, "tensor ", i, " of its arguments is described as ", described,
                " and has to be ", tensors[i].sizes());
  }
}

std::string Text(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch ? of_torch->what_without_backtrace() : error.what();
}

aclError Compute(const char* name, const aclOpExecutor& executor, int device) {
  const c10::InferenceMode no_autograd;
  const at::DisableRecordFunctionGuard not_in_the_hosts_traces;
  try {
    auto tensors = AllOnHost(executor.tensors, device);
    executor.compute(tensors);
    CheckShapes(executor, tensors);
  } catch (const std::exception& error) {
    return Refuse(ACL_ERROR_RT_AICORE_EXCEPTION, std::string(name) + ": at execution, " + Text(error));
  }
  return ACL_SUCCESS;
}

}  // namespace

aclError Prepare(const char* name, aclOpExecutor prepared, uint64_t* workspace_size, aclOpExecutor** executor) {
  if (const aclError injected = EnterCall(name)) return injected;
  *workspace_size = 0;
  *executor = new aclOpExecutor(std::move(prepared));
  return ACL_SUCCESS;
}

aclError Submit(const char* name, aclOpExecutor* executor, aclrtStream handle) {
  const std::shared_ptr<const aclOpExecutor> owned(executor);
  if (const aclError injected = EnterCall(name)) return injected;
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  const int device = stream->device();
  try {
    AllOnHost(owned->tensors, device);
  } catch (const std::exception& error) {
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(name) + ": " + Text(error));
  }
  return stream->Submit({name, [name, owned, device] { return Compute(name, *owned, device); }});
}

}  // namespace ascend_sim
