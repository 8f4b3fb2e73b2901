// SPDX-License-Identifier: Apache-2.0
// Kernels that a plugin brings along.
//
// Note [Kernel binaries]
// No compiler for Ascend's cores is public, so a kernel binary is here a shared object of the host. Its function runs
// one block of a launch:
//
//   int kernel(unsigned block, const void* arguments, void* (*reach)(const void* address, size_t bytes));
//
// `reach` gives the bytes behind an address of the device, or null where they do not lie in one live allocation. The
// function returns 0, or the task fails. Blocks run one after the other, the last one first.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "memory.h"
#include "stream.h"

using namespace ascend_sim;

namespace {

using Reach = void* (*)(const void* address, size_t bytes);
using Function = int (*)(unsigned block, const void* arguments, Reach reach);

struct Kernels {
  std::mutex mutex;
  std::map<void*, std::string> names;  // of functions
};

// What a running block may reach: device memory, and the arguments of its launch.
thread_local const std::vector<std::byte>* running_arguments;

void* ReachBytes(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto arguments = reinterpret_cast<uintptr_t>(running_arguments->data());
  if (at >= arguments && at - arguments <= running_arguments->size())
    return bytes <= running_arguments->size() - (at - arguments) ? const_cast<void*>(address) : nullptr;
  const std::optional<Region> region = FindRegion(address);
  const bool inside = region && region->live && region->place == Place::kDevice && bytes <= region->end() - at;
  return inside ? region->At(at) : nullptr;
}

aclError Run(Function function, unsigned blocks, const std::vector<std::byte>& arguments) {
  running_arguments = &arguments;
  for (unsigned block = blocks; block-- > 0;) {
    if (function(block, arguments.data(), &ReachBytes) != 0)
      return Refuse(ACL_ERROR_RT_VECTOR_CORE_EXCEPTION, "block ", block,
                    " of a kernel reached outside of live device memory");
  }
  return ACL_SUCCESS;
}

void LogLaunch(const std::string& name, void* function, uint32_t blocks, const std::vector<std::byte>& arguments,
               const aclrtPlaceHolderInfo* holders, size_t count) {
  std::ostringstream line;
  line << "launch " << name << ' ' << reinterpret_cast<uintptr_t>(function) << ' ' << blocks << ' ' << std::hex;
  for (const std::byte byte : arguments) line << static_cast<int>(byte) / 16 << static_cast<int>(byte) % 16;
  line << std::dec;
  for (size_t i = 0; i < count; ++i) line << ' ' << holders[i].addrOffset << ' ' << holders[i].dataOffset;
  Log(line.str());
}

// The arguments are copied during the call. Data behind a place holder becomes memory of the device, and its address is
// written into the arguments.
aclError LaunchWithHostArgs(aclrtFuncHandle function, uint32_t blocks, aclrtStream handle, aclrtLaunchKernelCfg* config,
                            void* arguments, size_t size, aclrtPlaceHolderInfo* holders, size_t count) {
  constexpr auto name = "aclrtLaunchKernelWithHostArgs";
  if (const aclError injected = EnterCall(name)) return injected;
  aclError error;
  const auto stream = Stream::Find(handle, &error);
  if (!stream) return error;
  std::string kernel;
  {
    const Locked<Kernels> kernels;
    const auto found = kernels->names.find(function);
    if (found == kernels->names.end() || blocks == 0 || config || !arguments)
      return Refuse(ACL_ERROR_RT_PARAM_INVALID, name, ": no kernel, no blocks, or no arguments");
    kernel = found->second;
  }
  const auto* const begin = static_cast<const std::byte*>(arguments);
  auto copy = std::make_shared<std::vector<std::byte>>(begin, begin + size);
  LogLaunch(kernel, function, blocks, *copy, holders, count);
  for (size_t i = 0; i < count; ++i) {
    if (holders[i].addrOffset % 8 != 0 || holders[i].addrOffset + 8 > size || holders[i].dataOffset >= size)
      return Refuse(ACL_ERROR_RT_PARAM_INVALID, name, ": a place holder is outside of the arguments");
    const void* const data = copy->data() + holders[i].dataOffset;
    std::memcpy(copy->data() + holders[i].addrOffset, &data, sizeof data);
  }
  return stream->Submit({name, [run = reinterpret_cast<Function>(function), blocks, copy](std::size_t) {
                           return Run(run, blocks, *copy);
                         }});
}

}  // namespace

extern "C" {

// See Note [Functions that come with a version].
decltype(&LaunchWithHostArgs) ascend_sim_find_launch() {
  return GetMachine().cann >= 805 ? &LaunchWithHostArgs : nullptr;
}

decltype(LaunchWithHostArgs) aclrtLaunchKernelWithHostArgs __attribute__((ifunc("ascend_sim_find_launch")));

aclError aclrtBinaryLoadFromData(const void* data, size_t length, const aclrtBinaryLoadOptions*,
                                 aclrtBinHandle* binary) {
  ACL_CALL();
  // Stays open: dlopen takes a file of the same name for the same library.
  const int file = memfd_create("ascend_sim_kernel", MFD_CLOEXEC);
  const bool written = write(file, data, length) == static_cast<ssize_t>(length);
  *binary = written ? dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  return *binary ? ACL_SUCCESS : Refuse(ACL_ERROR_RT_PARAM_INVALID, __func__, ": no binary of a kernel: ", dlerror());
}

aclError aclrtBinaryGetFunction(const aclrtBinHandle binary, const char* kernel, aclrtFuncHandle* function) {
  ACL_CALL();
  *function = dlsym(binary, kernel);
  if (!*function) return Refuse(ACL_ERROR_RT_PARAM_INVALID, __func__, ": no kernel ", kernel);
  const Locked<Kernels> kernels;
  kernels->names[*function] = kernel;
  return ACL_SUCCESS;
}

}  // extern "C"
