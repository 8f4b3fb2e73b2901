// SPDX-License-Identifier: Apache-2.0
// Batches of copies between host and device.
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
  if (!GetMachine().a2_or_later)
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

// The copies up to the first one that is wrong; `error` is its code, and the index of that one is the number of copies.
std::vector<Copy> GoodCopies(Stream& stream, const Batch& batch, aclError* error) {
  std::vector<Copy> copies;
  for (size_t i = 0, attr = 0; i < batch.count; ++i) {
    if (attr + 1 < batch.attr_count && batch.attr_starts[attr + 1] == i) ++attr;
    const aclrtMemcpyKind kind = KindOf(batch.attrs[attr]);
    const std::string what = std::string(batch.name) + ": copy " + std::to_string(i) + " of the batch is ";
    if (kind != ACL_MEMCPY_HOST_TO_DEVICE && kind != ACL_MEMCPY_DEVICE_TO_HOST) {
      *error = Refuse(ACL_ERROR_RT_PARAM_INVALID, what + "not between host and device");
    } else if (i > 0 && kind != copies.front().kind) {
      *error = Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, what + "in another direction than the first");
    } else {
      Copy copy{batch.name, kind, batch.dsts[i], batch.sizes[i], batch.srcs[i], batch.sizes[i], batch.sizes[i], 1};
      *error = CheckCopyOn(stream, &copy);
      if (!*error) copies.push_back(copy);
    }
    if (*error) break;
  }
  return copies;
}

// Unless UB connects host and device, this is a loop on the host: what comes before a wrong copy is on the stream when
// the call is refused. The parts are submitted last first, since a batch has no order.
aclError Submit(const Batch& batch, size_t* fail_index, aclrtStream handle) {
  aclError error = CheckParameters(batch);
  if (error) return error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  const bool together = GetMachine().unified_bus;
  std::vector<Copy> copies = GoodCopies(*stream, batch, &error);
  const std::string why = TakeErrorText();
  CountWork(batch.name, 0, (copies.size() + (error ? 1 : 0)) * (together ? 2 : 6));
  if (error && fail_index) *fail_index = copies.size();
  if (together) return error ? Refuse(error, why) : SubmitCopies(*stream, std::move(copies));
  for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
    if (const aclError failed = SubmitCopies(*stream, {*copy})) return failed;
  }
  return error ? Refuse(error, why) : ACL_SUCCESS;
}

aclError BatchAsync(void** dsts, size_t* dest_maxs, void** srcs, size_t* sizes, size_t count,
                    aclrtMemcpyBatchAttr* attrs, size_t* attr_starts, size_t attr_count, size_t* fail_index,
                    aclrtStream stream) {
  constexpr auto name = "aclrtMemcpyBatchAsync";
  if (const aclError injected = EnterCall(name)) return injected;
  if (!fail_index) return Refuse(ACL_ERROR_INVALID_PARAM, std::string(name) + ": failIndex is null");
  *fail_index = SIZE_MAX;
  return Submit({name, dsts, dest_maxs, srcs, sizes, count, attrs, attr_starts, attr_count}, fail_index, stream);
}

aclError BatchAsyncV2(void** dsts, size_t* dest_maxs, void** srcs, size_t* sizes, size_t count,
                      aclrtMemcpyBatchAttr* attrs, size_t* attr_starts, size_t attr_count, aclrtStream stream) {
  constexpr auto name = "aclrtMemcpyBatchAsyncV2";
  if (const aclError injected = EnterCall(name)) return injected;
  return Submit({name, dsts, dest_maxs, srcs, sizes, count, attrs, attr_starts, attr_count}, nullptr, stream);
}

}  // namespace

// Note [Functions that come with a version]
// The linker asks these resolvers for the address of a function when somebody looks the function up. Null means that it
// is not there, which dlsym passes on.
extern "C" {

decltype(&BatchAsync) ascend_sim_find_batch() { return GetMachine().cann >= 803 ? &BatchAsync : nullptr; }
decltype(&BatchAsyncV2) ascend_sim_find_batch_v2() { return GetMachine().cann >= 901 ? &BatchAsyncV2 : nullptr; }

decltype(BatchAsync) aclrtMemcpyBatchAsync __attribute__((ifunc("ascend_sim_find_batch")));
decltype(BatchAsyncV2) aclrtMemcpyBatchAsyncV2 __attribute__((ifunc("ascend_sim_find_batch_v2")));

}  // extern "C"
