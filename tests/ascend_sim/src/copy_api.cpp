// SPDX-License-Identifier: Apache-2.0
#include "call.h"
#include "capture.h"
#include "copy.h"
#include "device.h"

using namespace ascend_sim;

namespace {

constexpr std::size_t kMaxWidth = 5000000;
constexpr std::size_t kMaxHeight = 5 * 1024 * 1024;

Copy Plain(const char* name, void* dst, const void* src, std::size_t count, aclrtMemcpyKind kind) {
  return {name, kind, dst, count, src, count, count, 1};
}

aclError CheckCount(const char* name, std::size_t dest_max, std::size_t count) {
  if (count <= dest_max) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(name) + ": " + std::to_string(count) +
                                                " bytes are more than destMax, " + std::to_string(dest_max));
}

aclError CheckStrided(const Copy& copy) {
  const std::string name = copy.name;
  const bool to_device_from_device = copy.kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (copy.kind != ACL_MEMCPY_HOST_TO_DEVICE && copy.kind != ACL_MEMCPY_DEVICE_TO_HOST && !to_device_from_device)
    return Refuse(ACL_ERROR_INVALID_PARAM, name + ": kind " + std::to_string(copy.kind) + " is not supported");
  if (to_device_from_device && !IsA2OrLater())
    return Refuse(ACL_ERROR_INVALID_PARAM, name + ": " + GetMachine().soc + " has no strided device to device copy");
  if (copy.width > kMaxWidth || copy.width > copy.dpitch || copy.width > copy.spitch)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID,
                  name + ": width " + std::to_string(copy.width) + " is over " + std::to_string(kMaxWidth) +
                      " or over a pitch (" + std::to_string(copy.dpitch) + ", " + std::to_string(copy.spitch) + ")");
  if (copy.height > kMaxHeight)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID,
                  name + ": height " + std::to_string(copy.height) + " is over " + std::to_string(kMaxHeight));
  return ACL_SUCCESS;
}

aclError CopyOnHost(const Copy& copy) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (const aclError error = CheckUnsafeCallAllowed(copy.name)) return error;
  return CopyNow(copy, device);
}

}  // namespace

extern "C" {

aclError aclrtMemcpy(void* dst, size_t dest_max, const void* src, size_t count, aclrtMemcpyKind kind) {
  ACL_CALL();
  if (const aclError error = CheckCount(__func__, dest_max, count)) return error;
  return CopyOnHost(Plain(__func__, dst, src, count, kind));
}

aclError aclrtMemcpyAsync(void* dst, size_t dest_max, const void* src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream handle) {
  ACL_CALL();
  if (const aclError error = CheckCount(__func__, dest_max, count)) return error;
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  return stream ? SubmitCopies(*stream, {Plain(__func__, dst, src, count, kind)}) : error;
}

aclError aclrtMemcpy2d(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width, size_t height,
                       aclrtMemcpyKind kind) {
  ACL_CALL();
  const Copy copy{__func__, kind, dst, dpitch, src, spitch, width, height};
  if (const aclError error = CheckStrided(copy)) return error;
  return CopyOnHost(copy);
}

#ifndef ASCEND_SIM_OLD_CANN
aclError aclrtMemcpy2dAsync(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width, size_t height,
                            aclrtMemcpyKind kind, aclrtStream handle) {
  ACL_CALL();
  const Copy copy{__func__, kind, dst, dpitch, src, spitch, width, height};
  if (const aclError error = CheckStrided(copy)) return error;
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  return stream ? SubmitCopies(*stream, {copy}) : error;
}
#endif

aclError aclrtMemset(void* ptr, size_t max_count, int32_t value, size_t count) {
  ACL_CALL();
  if (const aclError error = CheckUnsafeCallAllowed(__func__)) return error;
  if (const aclError error = CheckFill(ptr, max_count, count)) return error;
  return Fill(ptr, value, count);
}

aclError aclrtMemsetAsync(void* ptr, size_t max_count, int32_t value, size_t count, aclrtStream handle) {
  ACL_CALL();
  if (const aclError error = CheckFill(ptr, max_count, count)) return error;
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  return stream ? stream->Submit({__func__, [=] { return Fill(ptr, value, count); }}) : error;
}

}  // extern "C"
