// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "acl/acl_rt.h"

namespace ascend_sim {

enum class Place { kDevice, kPinnedHost };

/// One entry of the allocation table.
///
/// Note [Device addresses]
/// The address handed out for device memory is a reserved range that the CPU cannot touch; the bytes live elsewhere,
/// in `storage`. So code that dereferences a device pointer on the host crashes here as it does on a real machine.
///
/// Note [Stale pointers]
/// The address range of an allocation, pinned host memory too, is never handed out again after a free and its entry
/// stays in the table. So a use after free is always recognised, and never reaches another allocation.
struct Region {
  uintptr_t base;
  std::size_t size;
  Place place;
  int device;  // -1 for host memory
  bool live;
  std::shared_ptr<std::byte> storage;  // null when freed

  uintptr_t end() const { return base + size; }
  /// Where the bytes of `address` really are.
  std::byte* At(uintptr_t address) const { return storage.get() + (address - base); }
};

/// The region that holds `ptr`, freed ones included; nothing for pageable host memory.
std::optional<Region> FindRegion(const void* ptr);

}  // namespace ascend_sim
