// SPDX-License-Identifier: Apache-2.0
//
// Note [Copies by a kernel]
// Within the device the runtime makes a task of every row. One launch of the kernel `copy_pieces`
// (llm_datadist_torch/_native/kernel.py, which defines the tables) copies all rows of a phase instead. The tables are
// part of the arguments of the launch: the runtime copies them to the device during the call, and keeps them for as
// long as the task or the captured graph needs them. So there is no upload to wait for, and nothing to keep alive.
//
// The pieces of one launch run in any order. A phase whose order matters is gathered in a buffer, then scattered.

#pragma once

#include <acl/acl.h>

#include <array>
#include <vector>

#include "../plan/plan.h"

namespace llm_datadist {

using Table = std::vector<int64_t>;

// The place of the address of a table in the arguments of a launch, and where the table is in them. In bytes.
struct PlaceHolder {
  uint32_t address;
  uint32_t table;
};

// A launch of a function of the kernel, with its arguments as triton-ascend lays them out.
struct KernelLaunch {
  // The arguments of the function are numbers and addresses. `tables` take the places of the numbers after the two
  // bases.
  KernelLaunch(void* function, int64_t programs, std::array<Address, 2> bases, std::initializer_list<Table> tables,
               std::initializer_list<int64_t> numbers = {});

  void* function;
  int64_t programs;
  Table block;
  c10::SmallVector<PlaceHolder, 3> place_holders;
};

// The loaded kernel of a device.
struct Kernel {
  void* of_words = nullptr;  // functions: `copy_pieces` of elements of 4 bytes and of 1 byte
  void* of_bytes = nullptr;
  void* of_rows = nullptr;  // `copy_rows`
  int64_t cores = 0;
  int64_t tile_bytes = 0;
  // int32, on the device: how many rows `copy_rows` has skipped, and a place for what is counted a second time.
  at::Tensor skipped = {};
};

// The kernel of a device, if this thread may use it.
const Kernel* kernel_in_use(c10::Device device);

struct KernelPlan {
  std::vector<KernelLaunch> launches;  // one after the other; none: the kernel is not used
  at::Tensor buffer = {};
};

// Turns a plan of copies within a device into launches, if the device has a kernel that is expected to be faster.
KernelPlan plan_for_kernel(const Plan& plan, c10::Device device);

// Puts a launch on a stream. Raises RuntimeError if the runtime refuses it.
void enqueue(const CallContext& call, const KernelLaunch& launch, aclrtStream stream);

// The launches that the runtime has accepted.
uint64_t accepted_launches();

}  // namespace llm_datadist
