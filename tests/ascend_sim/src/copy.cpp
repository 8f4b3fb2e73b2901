// SPDX-License-Identifier: Apache-2.0
#include "copy.h"

#include <algorithm>
#include <cstring>

#include "capture.h"
#include "memory.h"

namespace ascend_sim {
namespace {

// Of strided copies.
constexpr std::size_t kMaxWidth = 5000000;
constexpr std::size_t kMaxHeight = 5 * 1024 * 1024;

// One end of a copy.
struct Side {
  const char* name;
  const void* ptr;
  std::size_t pitch;
  bool on_device;
};

Side Destination(const Copy& copy) {
  const bool on_device = copy.kind == ACL_MEMCPY_HOST_TO_DEVICE || copy.kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  return {"dst", copy.dst, copy.dpitch, on_device};
}

Side Source(const Copy& copy) {
  const bool on_device = copy.kind == ACL_MEMCPY_DEVICE_TO_HOST || copy.kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  return {"src", copy.src, copy.spitch, on_device};
}

std::byte* BytesAt(const std::optional<Region>& region, uintptr_t address) {
  return region ? region->At(address) : reinterpret_cast<std::byte*>(address);
}

bool IsDevice(const std::optional<Region>& region) { return region && region->place == Place::kDevice; }

// Checks that all bytes of a side lie in one live allocation of the right place, or in no allocation at all when they
// are pageable host memory.
aclError CheckSide(const Side& side, const Copy& copy, int device, std::optional<Region>* region) {
  std::size_t extent;
  if (__builtin_mul_overflow(copy.height - 1, side.pitch, &extent) ||
      __builtin_add_overflow(extent, copy.width, &extent))
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, copy.name, ": the rows of ", side.name,
                  " do not fit in the address space");
  *region = FindRegion(side.ptr);
  const auto refuse = [&](const auto&... why) {
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, copy.name, ": ", side.name, " ", side.ptr, " + ", extent, why...);
  };
  if (side.on_device != IsDevice(*region))
    return refuse(" is ", side.on_device ? "not " : "", "device memory, which kind ", copy.kind,
                  side.on_device ? " needs" : " forbids", " there");
  if (!*region) return ACL_SUCCESS;
  if (!(*region)->live) return refuse(" is freed memory");
  if (extent > (*region)->end() - reinterpret_cast<uintptr_t>(side.ptr))
    return refuse(" runs past the allocation of ", (*region)->size, " bytes at 0x", std::hex, (*region)->base);
  if (side.on_device && (*region)->device != device)
    return refuse(" is memory of device ", (*region)->device, ", not of device ", device);
  return ACL_SUCCESS;
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

aclError RunCopy(const Copy& copy, int device) {
  std::optional<Region> to, from;  // hold the memory while it is read and written
  aclError error = CheckSide(Destination(copy), copy, device, &to);
  if (!error) error = CheckSide(Source(copy), copy, device, &from);
  if (error) return Refuse(ACL_ERROR_RT_SYS_DMA, "at execution, ", TakeErrorText());
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
aclError RunCopies(const std::vector<Copy>& copies, int device) {
  for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
    if (const aclError error = RunCopy(*copy, device)) return error;
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

aclError RunTaskOf(const Copy& whole, int device, std::size_t index) {
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
  return RunCopy(part, device);
}

void LogCopy(const Copy& copy, aclrtStream stream, int device) {
  const auto number = [](const void* ptr) { return reinterpret_cast<uintptr_t>(ptr); };
  std::ostringstream line;
  line << "copy " << copy.name << ' ' << copy.kind << ' ' << number(copy.dst) << ' ' << copy.dpitch << ' '
       << number(copy.src) << ' ' << copy.spitch << ' ' << copy.width << ' ' << copy.height << ' ' << number(stream)
       << ' ' << device;
  Log(line.str());
}

// See Note [Pageable memory].
bool CopiedInCall(const Copy& copy) {
  return GetMachine().cann >= 805 && (!FindRegion(copy.dst) || !FindRegion(copy.src));
}

aclError CopyInCall(Stream& stream, const std::vector<Copy>& copies) {
  const char* name = copies.front().name;
  if (stream.graph()) return Refuse(ACL_ERROR_RT_PARAM_INVALID, name, ": pageable memory while the stream is captured");
  if (const aclError error = stream.Synchronize(-1)) return error;
  if (CheckUnsafeCallAllowed(name)) return Refuse(ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC, TakeErrorText());
  for (const Copy& copy : copies) LogCopy(copy, stream.handle(), stream.device());
  Command command{name, [&](std::size_t) { return RunCopies(copies, stream.device()); }};
  command.fault = TakeTaskFault(name, 1);
  Throttle(stream);
  return RunTask(command, 0);
}

// Checks the copy against the allocation table.
aclError CheckCopy(const Copy& copy, int device) {
  if (!copy.dst || !copy.src || copy.width == 0 || copy.height == 0)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, copy.name, ": a null pointer or a copy of 0 bytes");
  if (copy.kind < ACL_MEMCPY_HOST_TO_HOST || copy.kind > ACL_MEMCPY_DEVICE_TO_DEVICE)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, copy.name, ": kind ", copy.kind);
  std::optional<Region> region;
  if (const aclError error = CheckSide(Destination(copy), copy, device, &region)) return error;
  return CheckSide(Source(copy), copy, device, &region);
}

aclError CheckCount(const char* name, std::size_t dest_max, std::size_t count) {
  if (count <= dest_max) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, name, ": ", count, " bytes are more than destMax, ", dest_max);
}

aclError CheckStrided(const Copy& copy) {
  const bool within_device = copy.kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (copy.kind != ACL_MEMCPY_HOST_TO_DEVICE && copy.kind != ACL_MEMCPY_DEVICE_TO_HOST && !within_device)
    return Refuse(ACL_ERROR_INVALID_PARAM, copy.name, ": kind ", copy.kind, " is not supported");
  if (within_device && (!GetMachine().a2_or_later || GetMachine().cann < 900))
    return Refuse(ACL_ERROR_INVALID_PARAM, copy.name, ": ", GetMachine().soc,
                  " with this CANN has no strided device to device copy");
  if (copy.width > copy.dpitch || copy.width > copy.spitch)
    return Refuse(ACL_ERROR_INVALID_PARAM, copy.name, ": width ", copy.width, " is over a pitch (", copy.dpitch, ", ",
                  copy.spitch, ")");
  if (copy.width > kMaxWidth)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, copy.name, ": width ", copy.width, " is over ", kMaxWidth);
  if (copy.height > kMaxHeight)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, copy.name, ": height ", copy.height, " is over ", kMaxHeight);
  return ACL_SUCCESS;
}

// 107000 unless `count` bytes from `ptr` lie in one live allocation and are at most `max_count`.
aclError CheckFill(void* ptr, std::size_t max_count, std::size_t count) {
  const std::optional<Region> region = FindRegion(ptr);
  if (region && region->live && count <= max_count && count <= region->end() - reinterpret_cast<uintptr_t>(ptr))
    return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_PARAM_INVALID, "a memset of ", count, " bytes (at most ", max_count, ") at ", ptr,
                " is not inside one live allocation");
}

aclError Fill(void* ptr, int value, std::size_t count) {
  const std::optional<Region> region = FindRegion(ptr);
  if (CheckFill(ptr, count, count)) return Refuse(ACL_ERROR_RT_SYS_DMA, "at execution, ", TakeErrorText());
  std::memset(BytesAt(region, reinterpret_cast<uintptr_t>(ptr)), value, count);
  return ACL_SUCCESS;
}

}  // namespace

aclError CheckCopyOn(Stream& stream, const Copy& copy) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (device != stream.device())
    return Refuse(ACL_ERROR_RT_STREAM_CONTEXT, "a stream of device ", stream.device(), " is used while device ", device,
                  " is current");
  if (const aclError error = CheckCopy(copy, device)) return error;
  if (copy.kind != ACL_MEMCPY_HOST_TO_HOST) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, copy.name, ": host to host is not supported");
}

aclError SubmitCopies(Stream& stream, std::vector<Copy> copies) {
  std::size_t work_elements = 0;
  for (const Copy& copy : copies) {
    if (const aclError error = CheckCopyOn(stream, copy)) return error;
    if (GetMachine().unified_bus && copy.kind != ACL_MEMCPY_DEVICE_TO_DEVICE) work_elements += copy.height;
  }
  if (std::any_of(copies.begin(), copies.end(), CopiedInCall)) return CopyInCall(stream, copies);
  for (const Copy& copy : copies) LogCopy(copy, stream.handle(), stream.device());
  const bool single = copies.size() == 1;
  Command command{copies.front().name, nullptr, single ? TasksOf(copies.front()) : 1};
  command.run = [single, device = stream.device(), copies = std::move(copies)](std::size_t index) {
    return single ? RunTaskOf(copies.front(), device, index) : RunCopies(copies, device);
  };
  command.work_elements = work_elements;
  return stream.Submit(std::move(command));
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtMemcpy(void* dst, size_t dest_max, const void* src, size_t count, aclrtMemcpyKind kind) {
  ACL_CALL();
  const Copy copy{__func__, kind, dst, count, src, count, count, 1};
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (const aclError error = CheckCount(__func__, dest_max, count)) return error;
  if (const aclError error = CheckUnsafeCallAllowed(__func__)) return error;
  if (const aclError error = CheckCopy(copy, device)) return error;
  LogCopy(copy, nullptr, device);
  return RunCopy(copy, device);
}

aclError aclrtMemcpyAsync(void* dst, size_t dest_max, const void* src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  if ((error = CheckCount(__func__, dest_max, count))) return error;
  // The documentation asks for it up to 8.1, and does not say what happens otherwise.
  if (GetMachine().cann <= 801 && (reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src)) % 64 != 0)
    return Refuse(ACL_ERROR_RT_ADDR_UNALIGNED, __func__, ": addresses must be aligned to 64 bytes");
  CountWork(__func__, 0, 6);
  return SubmitCopies(*stream, {{__func__, kind, dst, count, src, count, count, 1}});
}

aclError aclrtMemcpy2dAsync(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width, size_t height,
                            aclrtMemcpyKind kind, aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  const Copy copy{__func__, kind, dst, dpitch, src, spitch, width, height};
  if ((error = CheckStrided(copy))) return error;
  CountWork(__func__, 0, 2);
  return SubmitCopies(*stream, {copy});
}

aclError aclrtMemsetAsync(void* ptr, size_t max_count, int32_t value, size_t count, aclrtStream handle) {
  ACL_CALL_ON(stream, handle);
  if ((error = CheckFill(ptr, max_count, count))) return error;
  return stream->Submit({__func__, [=](std::size_t) { return Fill(ptr, value, count); }});
}

}  // extern "C"
