// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>

#include "call.h"
#include "memory.h"

namespace ascend_sim {
namespace {

thread_local int current_device = -1;

struct Peers {
  std::mutex mutex;
  std::set<std::pair<int, int>> enabled;
};

Peers& GetPeers() {
  static Peers& peers = *new Peers;
  return peers;
}

std::string FromEnvironment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
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
  static const Machine& machine = *new Machine{FromEnvironment("ASCEND_SIM_SOC", "Ascend910B3"),
                                               std::stoi(FromEnvironment("ASCEND_SIM_DEVICES", "2")),
                                               std::stoull(FromEnvironment("ASCEND_SIM_MEMORY", "68719476736"))};
  return machine;
}

bool IsA2OrLater() {
  const std::string& soc = GetMachine().soc;
  const auto starts_with = [&soc](const char* prefix) { return soc.rfind(prefix, 0) == 0; };
  return starts_with("Ascend910B") || starts_with("Ascend910_93") || starts_with("Ascend950");
}

aclError CurrentDevice(int* device) {
  if (current_device < 0) return Refuse(ACL_ERROR_RT_CONTEXT_NULL, "this thread has not called aclrtSetDevice");
  *device = current_device;
  return ACL_SUCCESS;
}

bool CanReach(int device, int peer) {
  if (device == peer) return true;
  Peers& peers = GetPeers();
  std::lock_guard lock(peers.mutex);
  return peers.enabled.count({device, peer}) > 0;
}

}  // namespace ascend_sim

using namespace ascend_sim;

extern "C" {

aclError aclInit(const char*) { return EnterCall(__func__); }
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
  Peers& peers = GetPeers();
  std::lock_guard lock(peers.mutex);
  peers.enabled.insert({device, peer});
  return ACL_SUCCESS;
}

// torch_npu 2.7 refuses to copy without it. The oldest versions that it accepts: torch_npu uses functions of a newer
// CANN where the version says that they are there.
aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion* version) {
  ACL_CALL();
  *version = {};
  std::snprintf(version->version, sizeof version->version, name == ACL_PKG_NAME_DRIVER ? "24.1.0" : "8.1.RC1");
  return ACL_SUCCESS;
}

}  // extern "C"
