// SPDX-License-Identifier: Apache-2.0
// Batches of host-device copies: in CANN from 8.5 on, so that a plugin looks them up at run time.
#include <algorithm>
#include <cstdint>

#include "call.h"
#include "copy.h"
#include "device.h"

using namespace ascend_sim;

namespace {

struct Batch {
  const char* name;
  void** dsts;
  size_t* dest_maxs;
  void** srcs;
  size_t* sizes;
  size_t count;
  aclrtMemcpyBatchAttr* attrs;
  size_t* attr_starts;
  size_t attr_count;
};

// The first entry of attr_starts must be 0 and each must be larger than the one before.
bool AttributesCoverBatch(const Batch& batch) {
  if (batch.attr_count == 0 || batch.attr_count > batch.count || batch.attr_starts[0] != 0) return false;
  for (size_t i = 1; i < batch.attr_count; ++i) {
    if (batch.attr_starts[i] <= batch.attr_starts[i - 1] || batch.attr_starts[i] >= batch.count) return false;
  }
  return true;
}

bool ReservedBytesAreZero(const aclrtMemcpyBatchAttr& attr) {
  return std::all_of(std::begin(attr.rsv), std::end(attr.rsv), [](uint8_t byte) { return byte == 0; });
}

aclrtMemcpyKind KindOf(const aclrtMemcpyBatchAttr& attr) {
  const bool to_device = attr.dstLoc.type == ACL_MEM_LOCATION_TYPE_DEVICE;
  const bool from_device = attr.srcLoc.type == ACL_MEM_LOCATION_TYPE_DEVICE;
  if (to_device) return from_device ? ACL_MEMCPY_DEVICE_TO_DEVICE : ACL_MEMCPY_HOST_TO_DEVICE;
  return from_device ? ACL_MEMCPY_DEVICE_TO_HOST : ACL_MEMCPY_HOST_TO_HOST;
}

aclError CheckParameters(const Batch& batch) {
  const std::string name = batch.name;
  if (!IsA2OrLater())
    return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, name + ": " + GetMachine().soc + " has no batch copies");
  if (batch.count == 0 || !AttributesCoverBatch(batch))
    return Refuse(ACL_ERROR_INVALID_PARAM, name + ": attrsIndexes must start at 0 and rise within the batch");
  for (size_t i = 0; i < batch.count; ++i) {
    if (batch.sizes[i] > batch.dest_maxs[i])
      return Refuse(ACL_ERROR_INVALID_PARAM, name + ": copy " + std::to_string(i) + " is larger than its destMax");
  }
  if (!std::all_of(batch.attrs, batch.attrs + batch.attr_count, ReservedBytesAreZero))
    return Refuse(ACL_ERROR_INVALID_PARAM, name + ": the rsv bytes of attrs must be zero");
  return ACL_SUCCESS;
}

aclError Submit(const Batch& batch, size_t* fail_index, aclrtStream handle) {
  *fail_index = SIZE_MAX;
  aclError error = CheckParameters(batch);
  if (error) return error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  std::vector<Copy> copies;
  for (size_t i = 0, attr = 0; i < batch.count; ++i) {
    if (attr + 1 < batch.attr_count && batch.attr_starts[attr + 1] == i) ++attr;
    const aclrtMemcpyKind kind = KindOf(batch.attrs[attr]);
    const bool host_and_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_HOST;
    if (!host_and_device || (i > 0 && kind != copies.front().kind)) {
      *fail_index = i;
      return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, std::string(batch.name) + ": copy " + std::to_string(i) +
                                                          " has kind " + std::to_string(kind) +
                                                          ", a batch is all host to device or all device to host");
    }
    copies.push_back(
        {batch.name, kind, batch.dsts[i], batch.sizes[i], batch.srcs[i], batch.sizes[i], batch.sizes[i], 1});
  }
  return SubmitCopies(*stream, std::move(copies));
}

}  // namespace

extern "C" {

aclError aclrtMemcpyBatchAsync(void** dsts, size_t* dest_maxs, void** srcs, size_t* sizes, size_t count,
                               aclrtMemcpyBatchAttr* attrs, size_t* attr_starts, size_t attr_count, size_t* fail_index,
                               aclrtStream stream) {
  ACL_CALL();
  if (!fail_index) return Refuse(ACL_ERROR_INVALID_PARAM, std::string(__func__) + ": failIndex is null");
  return Submit({__func__, dsts, dest_maxs, srcs, sizes, count, attrs, attr_starts, attr_count}, fail_index, stream);
}

}  // extern "C"
