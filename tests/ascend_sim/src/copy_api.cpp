// SPDX-License-Identifier: Apache-2.0
#include "call.h"
#include "capture.h"
#include "copy.h"
#include "device.h"

using namespace ascend_sim;

namespace {

Copy Plain(const char* name, void* dst, const void* src, std::size_t count, aclrtMemcpyKind kind) {
  return {name, kind, dst, count, src, count, count, 1};
}

aclError CheckCount(const char* name, std::size_t dest_max, std::size_t count) {
  if (count <= dest_max) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(name) + ": " + std::to_string(count) +
                                                " bytes are more than destMax, " + std::to_string(dest_max));
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
  ACL_CALL_ON(stream, handle);
  if ((error = CheckCount(__func__, dest_max, count))) return error;
  // The documentation asks for it up to 8.1, and does not say what happens otherwise.
  if (GetMachine().cann <= 801 && (reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src)) % 64 != 0)
    return Refuse(ACL_ERROR_RT_ADDR_UNALIGNED, std::string(__func__) + ": addresses must be aligned to 64 bytes");
  CountWork(__func__, 0, 6);
  return SubmitCopies(*stream, {Plain(__func__, dst, src, count, kind)});
}

aclError aclrtMemset(void* ptr, size_t max_count, int32_t value, size_t count) {
  ACL_CALL();
  if (const aclError error = CheckUnsafeCallAllowed(__func__)) return error;
  if (const aclError error = CheckFill(ptr, max_count, count)) return error;
  return Fill(ptr, value, count);
}

aclError aclrtMemsetAsync(void* ptr, size_t max_count, int32_t value, size_t count, aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  if ((error = CheckFill(ptr, max_count, count))) return error;
  return stream->Submit({__func__, [=](std::size_t) { return Fill(ptr, value, count); }});
}

}  // extern "C"
