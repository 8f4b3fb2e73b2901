// SPDX-License-Identifier: Apache-2.0
#include "copy.h"

#include <algorithm>
#include <cstring>

#include "call.h"
#include "capture.h"
#include "device.h"
#include "memory.h"
#include "throttle.h"

namespace ascend_sim {
namespace {

// One end of a copy.
struct Side {
  const char* name;
  const void* ptr;
  std::size_t pitch;
  bool on_device;

  uintptr_t begin() const { return reinterpret_cast<uintptr_t>(ptr); }
};

bool SourceOnDevice(aclrtMemcpyKind kind) {
  return kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
}

bool DestinationOnDevice(aclrtMemcpyKind kind) {
  return kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
}

Side Destination(const Copy& copy) { return {"dst", copy.dst, copy.dpitch, DestinationOnDevice(copy.kind)}; }
Side Source(const Copy& copy) { return {"src", copy.src, copy.spitch, SourceOnDevice(copy.kind)}; }

std::byte* BytesAt(const std::optional<Region>& region, uintptr_t address) {
  return region ? region->At(address) : reinterpret_cast<std::byte*>(address);
}

bool IsDevice(const std::optional<Region>& region) { return region && region->place == Place::kDevice; }

// Checks that all bytes of a side lie in one live allocation of the right place, or in no allocation at all when they
// are pageable host memory.
aclError CheckSide(const Side& side, const Copy& copy, std::optional<Region>* region) {
  std::size_t extent;
  if (__builtin_mul_overflow(copy.height - 1, side.pitch, &extent) ||
      __builtin_add_overflow(extent, copy.width, &extent)) {
    return Refuse(ACL_ERROR_RT_PARAM_INVALID,
                  std::string(copy.name) + ": the rows of " + side.name + " do not fit in the address space");
  }
  *region = FindRegion(side.ptr);
  const std::string what =
      std::string(copy.name) + ": " + side.name + " " + Hex(side.ptr) + " + " + std::to_string(extent);
  if (side.on_device != IsDevice(*region)) {
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, what + " is " + (side.on_device ? "not " : "") +
                                                  "device memory, which kind " + std::to_string(copy.kind) +
                                                  (side.on_device ? " needs" : " forbids") + " there");
  }
  if (!*region) return ACL_SUCCESS;
  if (!(*region)->live) return Refuse(ACL_ERROR_RT_PARAM_INVALID, what + " is freed memory");
  if (extent > (*region)->end() - side.begin()) {
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, what + " runs past the allocation of " + std::to_string((*region)->size) +
                                                  " bytes at " + Hex(reinterpret_cast<void*>((*region)->base)));
  }
  return ACL_SUCCESS;
}

aclError CheckDevices(const Copy& copy, int device) {
  const bool to_device = DestinationOnDevice(copy.kind);
  const bool from_device = SourceOnDevice(copy.kind);
  const int to = to_device ? FindRegion(copy.dst)->device : device;
  const int from = from_device ? FindRegion(copy.src)->device : device;
  if (to == device && from == device) return ACL_SUCCESS;
  const bool peers = to_device && from_device && (to == device || from == device);
  if (peers && (CanReach(to, from) || CanReach(from, to))) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(copy.name) + ": a copy from device " + std::to_string(from) +
                                                " to device " + std::to_string(to) + " for device " +
                                                std::to_string(device) + (peers ? " without peer access" : ""));
}

void CopyRange(std::byte* dst, const std::byte* src, std::size_t bytes, bool last_first) {
  if (dst + bytes <= src || src + bytes <= dst) {
    std::memcpy(dst, src, bytes);
    return;
  }
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::size_t at = last_first ? bytes - 1 - i : i;
    dst[at] = src[at];
  }
}

aclError RunCopy(const Copy& copy) {
  std::optional<Region> to, from;  // hold the memory while it is read and written
  aclError error = CheckSide(Destination(copy), copy, &to);
  if (!error) error = CheckSide(Source(copy), copy, &from);
  if (error) return Refuse(ACL_ERROR_RT_SYS_DMA, "at execution, " + TakeErrorText());
  const auto dst = reinterpret_cast<uintptr_t>(copy.dst);
  const auto src = reinterpret_cast<uintptr_t>(copy.src);
  // ACL leaves overlapping copies undefined. This starts at the end that overwrites bytes before they are read, so that
  // a test of code that relies on another order fails.
  const bool last_first = dst < src;
  for (std::size_t i = 0; i < copy.height; ++i) {
    const std::size_t row = last_first ? copy.height - 1 - i : i;
    CopyRange(BytesAt(to, dst + row * copy.dpitch), BytesAt(from, src + row * copy.spitch), copy.width, last_first);
  }
  return ACL_SUCCESS;
}

// Copies of one task are unordered. The last one runs first, so that a test of code that relies on their order fails.
aclError RunCopies(const std::vector<Copy>& copies) {
  for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
    if (const aclError error = RunCopy(*copy)) return error;
  }
  return ACL_SUCCESS;
}

// Rows of a strided copy, or bytes of a plain one. See Note [Tasks of a copy].
std::size_t UnitsOf(const Copy& copy) { return copy.height > 1 ? copy.height : copy.width; }

std::size_t UnitsPerTask(const Copy& copy) {
  const bool within_device = copy.kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (copy.height > 1) return within_device ? 1 : 0x8000;
  return within_device ? std::size_t{4} << 30 : std::size_t{GetMachine().unified_bus ? 256u : 64u} << 20;
}

std::size_t TasksOf(const Copy& copy) { return (UnitsOf(copy) - 1) / UnitsPerTask(copy) + 1; }

aclError RunTaskOf(const Copy& whole, std::size_t index) {
  // As in RunCopy, the order is the one that exposes an overlap.
  if (whole.height > 1 && whole.dst < whole.src) index = TasksOf(whole) - 1 - index;
  const std::size_t begin = index * UnitsPerTask(whole);
  const std::size_t units = std::min(UnitsPerTask(whole), UnitsOf(whole) - begin);
  Copy part = whole;
  part.dst = static_cast<std::byte*>(whole.dst) + begin * (whole.height > 1 ? whole.dpitch : 1);
  part.src = static_cast<const std::byte*>(whole.src) + begin * (whole.height > 1 ? whole.spitch : 1);
  (whole.height > 1 ? part.height : part.width) = units;
  // The length of a task on the device has 32 bits, in which 4 GiB is 0.
  if (whole.kind == ACL_MEMCPY_DEVICE_TO_DEVICE) part.width = static_cast<uint32_t>(part.width);
  return RunCopy(part);
}

std::size_t WorkElementsOf(const Copy& copy) {
  return GetMachine().unified_bus && copy.kind != ACL_MEMCPY_DEVICE_TO_DEVICE ? copy.height : 0;
}

// See Note [Pageable memory].
bool CopiedInCall(const Copy& copy) {
  return GetMachine().cann >= 805 && (!FindRegion(copy.dst) || !FindRegion(copy.src));
}

aclError CopyInCall(Stream& stream, const std::vector<Copy>& copies) {
  const char* name = copies.front().name;
  if (stream.graph())
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(name) + ": pageable memory while the stream is captured");
  if (const aclError error = stream.Synchronize(-1)) return error;
  if (CheckUnsafeCallAllowed(name)) return Refuse(ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC, TakeErrorText());
  for (const Copy& copy : copies) LogCopy(copy, stream.handle(), stream.device());
  Command command{name, [&copies](std::size_t) { return RunCopies(copies); }};
  command.fault = TakeTaskFault(name, 1);
  Throttle(stream);
  return RunTask(command, 0);
}

// Checks the copy against the allocation table, and turns ACL_MEMCPY_DEFAULT into the kind the pointers mean.
aclError CheckCopy(Copy* copy, int device) {
  if (!copy->dst || !copy->src || copy->width == 0 || copy->height == 0)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(copy->name) + ": a null pointer or a copy of 0 bytes");
  if (copy->kind == ACL_MEMCPY_DEFAULT) {
    const bool to_device = IsDevice(FindRegion(copy->dst));
    const bool from_device = IsDevice(FindRegion(copy->src));
    copy->kind = to_device ? (from_device ? ACL_MEMCPY_DEVICE_TO_DEVICE : ACL_MEMCPY_HOST_TO_DEVICE)
                           : (from_device ? ACL_MEMCPY_DEVICE_TO_HOST : ACL_MEMCPY_HOST_TO_HOST);
  }
  if (copy->kind < ACL_MEMCPY_HOST_TO_HOST || copy->kind > ACL_MEMCPY_DEVICE_TO_DEVICE)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, std::string(copy->name) + ": kind " + std::to_string(copy->kind));
  std::optional<Region> to, from;
  if (const aclError error = CheckSide(Destination(*copy), *copy, &to)) return error;
  if (const aclError error = CheckSide(Source(*copy), *copy, &from)) return error;
  return CheckDevices(*copy, device);
}

}  // namespace

aclError CopyNow(Copy copy, int device) {
  if (const aclError error = CheckCopy(&copy, device)) return error;
  LogCopy(copy, nullptr, device);
  return RunCopy(copy);
}

aclError CheckCopyOn(Stream& stream, Copy* copy) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (device != stream.device()) {
    return Refuse(ACL_ERROR_RT_STREAM_CONTEXT, "a stream of device " + std::to_string(stream.device()) +
                                                   " is used while device " + std::to_string(device) + " is current");
  }
  if (const aclError error = CheckCopy(copy, device)) return error;
  if (copy->kind != ACL_MEMCPY_HOST_TO_HOST) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, std::string(copy->name) + ": host to host is not supported");
}

aclError SubmitCopies(Stream& stream, std::vector<Copy> copies) {
  std::size_t work_elements = 0;
  for (Copy& copy : copies) {
    if (const aclError error = CheckCopyOn(stream, &copy)) return error;
    work_elements += WorkElementsOf(copy);
  }
  if (std::any_of(copies.begin(), copies.end(), CopiedInCall)) return CopyInCall(stream, copies);
  for (const Copy& copy : copies) LogCopy(copy, stream.handle(), stream.device());
  const bool single = copies.size() == 1;
  Command command{copies.front().name, nullptr, single ? TasksOf(copies.front()) : 1};
  command.run = [single, copies = std::move(copies)](std::size_t index) {
    return single ? RunTaskOf(copies.front(), index) : RunCopies(copies);
  };
  command.work_elements = work_elements;
  return stream.Submit(std::move(command));
}

aclError CheckFill(void* ptr, std::size_t max_count, std::size_t count) {
  const std::optional<Region> region = FindRegion(ptr);
  if (region && region->live && count <= max_count && count <= region->end() - reinterpret_cast<uintptr_t>(ptr))
    return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, "a memset of " + std::to_string(count) + " bytes (at most " +
                                                std::to_string(max_count) + ") at " + Hex(ptr) +
                                                " is not inside one live allocation");
}

aclError Fill(void* ptr, int value, std::size_t count) {
  if (CheckFill(ptr, count, count)) return Refuse(ACL_ERROR_RT_SYS_DMA, "at execution, " + TakeErrorText());
  const std::optional<Region> region = FindRegion(ptr);
  std::memset(BytesAt(region, reinterpret_cast<uintptr_t>(ptr)), value, count);
  return ACL_SUCCESS;
}

}  // namespace ascend_sim
