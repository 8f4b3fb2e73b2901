// SPDX-License-Identifier: Apache-2.0
#include "call.h"
#include "copy.h"
#include "device.h"

using namespace ascend_sim;

namespace {

constexpr std::size_t kMaxWidth = 5000000;
constexpr std::size_t kMaxHeight = 5 * 1024 * 1024;

aclError CheckStrided(const Copy& copy) {
  const std::string name = copy.name;
  const bool to_device_from_device = copy.kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (copy.kind != ACL_MEMCPY_HOST_TO_DEVICE && copy.kind != ACL_MEMCPY_DEVICE_TO_HOST && !to_device_from_device)
    return Refuse(ACL_ERROR_INVALID_PARAM, name + ": kind " + std::to_string(copy.kind) + " is not supported");
  if (to_device_from_device && (!GetMachine().a2_or_later || GetMachine().cann < 900))
    return Refuse(ACL_ERROR_INVALID_PARAM,
                  name + ": " + GetMachine().soc + " with this CANN has no strided device to device copy");
  if (copy.width > copy.dpitch || copy.width > copy.spitch)
    return Refuse(ACL_ERROR_INVALID_PARAM, name + ": width " + std::to_string(copy.width) + " is over a pitch (" +
                                               std::to_string(copy.dpitch) + ", " + std::to_string(copy.spitch) + ")");
  if (copy.width > kMaxWidth)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID,
                  name + ": width " + std::to_string(copy.width) + " is over " + std::to_string(kMaxWidth));
  if (copy.height > kMaxHeight)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID,
                  name + ": height " + std::to_string(copy.height) + " is over " + std::to_string(kMaxHeight));
  return ACL_SUCCESS;
}

}  // namespace

extern "C" aclError aclrtMemcpy2dAsync(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width,
                                       size_t height, aclrtMemcpyKind kind, aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  const Copy copy{__func__, kind, dst, dpitch, src, spitch, width, height};
  if ((error = CheckStrided(copy))) return error;
  CountWork(__func__, 0, 2);
  return SubmitCopies(*stream, {copy});
}
