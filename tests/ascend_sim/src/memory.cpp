// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "call.h"
#include "device.h"

namespace ascend_sim {
namespace {

constexpr int kPoison = 0xA5;
constexpr std::size_t kPoisonFileBytes = 16 << 20;
constexpr std::size_t kDeviceBytes = std::size_t{64} << 30;

struct Table {
  std::mutex mutex;
  std::map<uintptr_t, Region> regions;  // by base
};

std::size_t PageRound(std::size_t size) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

int MakePoisonFile() {
  const int file = memfd_create("ascend_sim_poison", MFD_CLOEXEC);
  const std::vector<unsigned char> poison(kPoisonFileBytes, kPoison);
  if (file < 0 || write(file, poison.data(), poison.size()) != static_cast<ssize_t>(poison.size())) {
    std::perror("ascend_sim: cannot make the poison file");
    std::abort();
  }
  return file;
}

// Maps one file of poison over and over, copy-on-write: memory that is never written costs no RAM, so a test can
// allocate many gigabytes.
std::shared_ptr<std::byte> MapPoisoned(std::size_t size) {
  static const int file = MakePoisonFile();
  size = PageRound(size);
  void* start = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  // Gives the memory back but keeps the address range, see Note [Stale pointers].
  std::shared_ptr<std::byte> storage(static_cast<std::byte*>(start), [size](std::byte* at) {
    mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  });
  for (std::size_t offset = 0; offset < size; offset += kPoisonFileBytes) {
    const std::size_t length = std::min(kPoisonFileBytes, size - offset);
    if (mmap(storage.get() + offset, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED)
      return nullptr;
  }
  return storage;
}

void Insert(Region region) {
  const Locked<Table> table;
  table->regions.insert_or_assign(region.base, std::move(region));
}

// Freed memory stays in the table, marked dead; see Note [Stale pointers].
aclError Remove(const void* ptr, Place place, const char* what) {
  const Locked<Table> table;
  const auto found = table->regions.find(reinterpret_cast<uintptr_t>(ptr));
  if (found == table->regions.end() || !found->second.live || found->second.place != place)
    return Refuse(ACL_ERROR_RT_PARAM_INVALID, ptr, " is not the start of live ", what);
  found->second.live = false;
  found->second.storage.reset();
  return ACL_SUCCESS;
}

std::size_t UsedBytes(int device) {
  const Locked<Table> table;
  std::size_t bytes = 0;
  for (const auto& [base, region] : table->regions) {
    if (region.live && region.place == Place::kDevice && region.device == device) bytes += region.size;
  }
  return bytes;
}

aclError AllocateDevice(void** ptr, std::size_t size) {
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (size == 0) return Refuse(ACL_ERROR_RT_PARAM_INVALID, "an allocation of 0 bytes");
  const std::size_t used = UsedBytes(device);
  if (size > kDeviceBytes - used)
    return Refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, size, " bytes do not fit on device ", device, ", ", used, " of its ",
                  kDeviceBytes, " bytes are in use");
  void* address = mmap(nullptr, PageRound(size), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  std::shared_ptr<std::byte> storage = MapPoisoned(size);
  if (address == MAP_FAILED || !storage) return Refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, "this machine is out of memory");
  Insert({reinterpret_cast<uintptr_t>(address), size, Place::kDevice, device, true, std::move(storage)});
  *ptr = address;
  return ACL_SUCCESS;
}

aclError AllocatePinned(void** ptr, std::size_t size) {
  if (size == 0) return Refuse(ACL_ERROR_RT_PARAM_INVALID, "an allocation of 0 bytes");
  std::shared_ptr<std::byte> storage = MapPoisoned(size);
  if (!storage) return Refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, "this machine is out of memory");
  *ptr = storage.get();
  Insert({reinterpret_cast<uintptr_t>(*ptr), size, Place::kPinnedHost, -1, true, std::move(storage)});
  return ACL_SUCCESS;
}

}  // namespace

std::optional<Region> FindRegion(const void* ptr) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  const Locked<Table> table;
  auto next = table->regions.upper_bound(address);
  if (next == table->regions.begin()) return std::nullopt;
  const Region& region = std::prev(next)->second;
  if (address >= region.end()) return std::nullopt;
  return region;
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclrtMalloc(void** ptr, size_t size, aclrtMemMallocPolicy) {
  ACL_CALL();
  return AllocateDevice(ptr, size);
}

aclError aclrtMallocAlign32(void** ptr, size_t size, aclrtMemMallocPolicy) {
  ACL_CALL();
  return AllocateDevice(ptr, size);
}

aclError aclrtFree(void* ptr) {
  ACL_CALL();
  return Remove(ptr, Place::kDevice, "device memory");
}

aclError aclrtMallocHost(void** ptr, size_t size) {
  ACL_CALL();
  return AllocatePinned(ptr, size);
}

aclError aclrtMallocHostWithCfg(void** ptr, uint64_t size, aclrtMallocConfig*) {
  ACL_CALL();
  return AllocatePinned(ptr, size);
}

aclError aclrtFreeHost(void* ptr) {
  ACL_CALL();
  return Remove(ptr, Place::kPinnedHost, "pinned host memory");
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  ACL_CALL();
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  *total = kDeviceBytes;
  *free = *total - UsedBytes(device);
  return ACL_SUCCESS;
}

aclError aclrtPointerGetAttributes(const void* ptr, aclrtPtrAttributes* attributes) {
  ACL_CALL();
  const std::optional<Region> region = FindRegion(ptr);
  *attributes = {};
  if (!region || !region->live) {
    attributes->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  } else if (region->place == Place::kDevice) {
    attributes->location = {static_cast<uint32_t>(region->device), ACL_MEM_LOCATION_TYPE_DEVICE};
  } else {
    attributes->location.type = ACL_MEM_LOCATION_TYPE_HOST;
  }
  return ACL_SUCCESS;
}

}  // extern "C"
