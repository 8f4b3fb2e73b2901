// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>

#include "call.h"
#include "memory.h"

namespace ascend_sim {
namespace {

thread_local int current_device = -1;
std::atomic<int> default_device = -1;  // of threads that have set none

struct Peers {
  std::mutex mutex;
  std::set<std::pair<int, int>> enabled;
};

std::string FromEnvironment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

struct Cann {
  const char* name;
  int number;
  const char* version;
};

Cann ReadCann() {
  const std::string name = FromEnvironment("ASCEND_SIM_CANN", "8.5");
  for (const Cann& known : {Cann{"8.1", 801, "8.1.RC1"},
                            {"8.3", 803, "8.3.RC1"},
                            {"8.5", 805, "8.5.0"},
                            {"9.0", 900, "9.0.0"},
                            {"9.1", 901, "9.1.0"}}) {
    if (name == known.name) return known;
  }
  std::fprintf(stderr, "ascend_sim: ASCEND_SIM_CANN is %s, known are 8.1, 8.3, 8.5, 9.0 and 9.1\n", name.c_str());
  std::abort();
}

Machine ReadMachine() {
  Machine machine;
  machine.soc = FromEnvironment("ASCEND_SIM_SOC", "Ascend910B3");
  machine.cann = ReadCann().number;
  machine.devices = std::stoi(FromEnvironment("ASCEND_SIM_DEVICES", "2"));
  machine.memory_bytes = std::stoull(FromEnvironment("ASCEND_SIM_MEMORY", "68719476736"));

  // A chip named Ascend910B, with nothing behind it, is of the first generation.
  const std::string a2 = "Ascend910B";
  const auto begins_with = [&machine](const std::string& prefix) { return machine.soc.rfind(prefix, 0) == 0; };
  const bool is_a2 = begins_with(a2) && machine.soc.size() > a2.size();
  const bool is_950 = begins_with("Ascend950");
  machine.a2_or_later = is_a2 || is_950 || begins_with("Ascend910_93");
  machine.unified_bus = is_950 && FromEnvironment("ASCEND_SIM_LINK", "pcie") == "ub";
  machine.streams = is_950 ? 2016 : 2038;
  machine.stream_depth = is_950 ? 2014 : 2013;
  return machine;
}

bool Exists(int device) { return device >= 0 && device < GetMachine().devices; }

aclError NoSuchDevice(int device) {
  return Refuse(ACL_ERROR_RT_INVALID_DEVICEID, "device " + std::to_string(device) + " does not exist, there are " +
                                                   std::to_string(GetMachine().devices));
}

// A context is only ever compared and handed back: device n is represented by the pointer n + 1.
aclrtContext ContextOf(int device) { return reinterpret_cast<aclrtContext>(static_cast<intptr_t>(device) + 1); }

}  // namespace

const Machine& GetMachine() {
  static const Machine& machine = *new Machine(ReadMachine());
  return machine;
}

aclError CurrentDevice(int* device) {
  if (current_device < 0) current_device = default_device;
  if (current_device < 0) return Refuse(ACL_ERROR_RT_CONTEXT_NULL, "this thread has not called aclrtSetDevice");
  *device = current_device;
  return ACL_SUCCESS;
}

bool CanReach(int device, int peer) {
  if (device == peer) return true;
  const Locked<Peers> peers;
  return peers->enabled.count({device, peer}) > 0;
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

// From CANN 8.3 on, torch_npu's file names device 0 as the default, and torch_npu sets a device only to have another
// one.
aclError aclInit(const char* path) {
  ACL_CALL();
  std::ifstream file(path ? path : "");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  if (text.find("\"default_device\"") != std::string::npos) default_device = 0;
  return ACL_SUCCESS;
}

aclError aclFinalize() { return EnterCall(__func__); }

aclError aclrtSetDevice(int32_t device) {
  ACL_CALL();
  if (!Exists(device)) return NoSuchDevice(device);
  current_device = device;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t device) {
  ACL_CALL();
  return Exists(device) ? ACL_SUCCESS : NoSuchDevice(device);
}

aclError aclrtGetDevice(int32_t* device) {
  ACL_CALL();
  return CurrentDevice(device);
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  ACL_CALL();
  *count = static_cast<uint32_t>(GetMachine().devices);
  return ACL_SUCCESS;
}

const char* aclrtGetSocName() {
  EnterCall(__func__);
  return GetMachine().soc.c_str();
}

aclError aclrtGetCurrentContext(aclrtContext* context) {
  ACL_CALL();
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  *context = ContextOf(device);
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  ACL_CALL();
  const int device = static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1;
  if (!Exists(device)) return NoSuchDevice(device);
  current_device = device;
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t*, int32_t* active) {
  ACL_CALL();
  if (!Exists(device)) return NoSuchDevice(device);
  *active = 1;
  return ACL_SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  ACL_CALL();
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  *total = GetMachine().memory_bytes;
  *free = *total - DeviceUsage(device).bytes;
  return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t* can_access, int32_t device, int32_t peer) {
  ACL_CALL();
  if (!Exists(device) || !Exists(peer)) return NoSuchDevice(Exists(device) ? peer : device);
  *can_access = device != peer;
  return ACL_SUCCESS;
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t) {
  ACL_CALL();
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  if (!Exists(peer)) return NoSuchDevice(peer);
  const Locked<Peers> peers;
  peers->enabled.insert({device, peer});
  return ACL_SUCCESS;
}

// torch_npu asks while it is imported. That must not settle the machine yet, so that a process that is forked later can
// choose another one.
aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion* version) {
  ACL_CALL();
  *version = {};
  std::snprintf(version->version, sizeof version->version, "%s",
                name == ACL_PKG_NAME_DRIVER ? "24.1.0" : ReadCann().version);
  return ACL_SUCCESS;
}

}  // extern "C"
