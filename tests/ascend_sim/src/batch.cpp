// SPDX-License-Identifier: Apache-2.0
// Batches of copies between host and device.
#include <algorithm>

#include "copy.h"

using namespace ascend_sim;

namespace {

constexpr auto kName = "aclrtMemcpyBatchAsync";

bool ReservedBytesAreZero(const aclrtMemcpyBatchAttr& attr) {
  return std::all_of(std::begin(attr.rsv), std::end(attr.rsv), [](uint8_t byte) { return byte == 0; });
}

aclrtMemcpyKind KindOf(const aclrtMemcpyBatchAttr& attr) {
  const bool to_device = attr.dstLoc.type == ACL_MEM_LOCATION_TYPE_DEVICE;
  const bool from_device = attr.srcLoc.type == ACL_MEM_LOCATION_TYPE_DEVICE;
  if (to_device) return from_device ? ACL_MEMCPY_DEVICE_TO_DEVICE : ACL_MEMCPY_HOST_TO_DEVICE;
  return from_device ? ACL_MEMCPY_DEVICE_TO_HOST : ACL_MEMCPY_HOST_TO_HOST;
}

// Unless UB connects host and device, this is a loop on the host: what comes before a wrong copy is on the stream when
// the call is refused. The parts are submitted last first, since a batch has no order.
aclError BatchAsync(void** dsts, size_t* dest_maxs, void** srcs, size_t* sizes, size_t count,
                    aclrtMemcpyBatchAttr* attrs, size_t* attr_starts, size_t attr_count, size_t* fail_index,
                    aclrtStream handle) {
  if (const aclError injected = EnterCall(kName)) return injected;
  if (!fail_index) return Refuse(ACL_ERROR_INVALID_PARAM, kName, ": failIndex is null");
  *fail_index = SIZE_MAX;
  if (!GetMachine().a2_or_later)
    return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, kName, ": ", GetMachine().soc, " has no batch copies");
  if (count == 0 || attr_count != 1 || attr_starts[0] != 0)
    return Refuse(ACL_ERROR_INVALID_PARAM, kName, ": here, one attribute must be that of all copies");
  for (size_t i = 0; i < count; ++i) {
    if (sizes[i] > dest_maxs[i])
      return Refuse(ACL_ERROR_INVALID_PARAM, kName, ": copy ", i, " is larger than its destMax");
  }
  if (!ReservedBytesAreZero(attrs[0]))
    return Refuse(ACL_ERROR_INVALID_PARAM, kName, ": the rsv bytes of attrs must be zero");

  aclError error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  const aclrtMemcpyKind kind = KindOf(attrs[0]);
  if (kind != ACL_MEMCPY_HOST_TO_DEVICE && kind != ACL_MEMCPY_DEVICE_TO_HOST)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, kName, ": the batch is not between host and device");
  std::vector<Copy> copies;  // up to the first one that is wrong
  for (size_t i = 0; i < count && !error; ++i) {
    const Copy copy{kName, kind, dsts[i], sizes[i], srcs[i], sizes[i], sizes[i], 1};
    error = CheckCopyOn(*stream, copy);
    if (!error) copies.push_back(copy);
  }
  const std::string why = TakeErrorText();
  const bool together = GetMachine().unified_bus;
  CountWork(kName, 0, (copies.size() + (error ? 1 : 0)) * (together ? 2 : 6));
  if (error) *fail_index = copies.size();
  if (together) return error ? Refuse(error, why) : SubmitCopies(*stream, std::move(copies));
  for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
    if (const aclError failed = SubmitCopies(*stream, {*copy})) return failed;
  }
  return error ? Refuse(error, why) : ACL_SUCCESS;
}

}  // namespace

// Note [Functions that come with a version]
// The linker asks these resolvers for the address of a function when somebody looks the function up. Null means that it
// is not there, which dlsym passes on.
extern "C" {

decltype(&BatchAsync) ascend_sim_find_batch() { return GetMachine().cann >= 803 ? &BatchAsync : nullptr; }

decltype(BatchAsync) aclrtMemcpyBatchAsync __attribute__((ifunc("ascend_sim_find_batch")));

}  // extern "C"
