// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "call.h"
#include "stream.h"

namespace ascend_sim {
namespace {

constexpr std::size_t kEvents = 65536;

thread_local int current_device = -1;
std::atomic<int> default_device = -1;  // of threads that have set none

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

aclError CheckDevice(int device) {
  if (device >= 0 && device < kDevices) return ACL_SUCCESS;
  return Refuse(ACL_ERROR_RT_INVALID_DEVICEID, "device ", device, " does not exist, there are ", kDevices);
}

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

Context& Context::Of(int device) {
  static Context* const contexts[kDevices] = {new Context(0), new Context(1)};
  return *contexts[device];
}

void Context::Lose(aclError error, const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    if (lost_) return;
    error_ = error;
    why_ = why;
    lost_ = true;
    ++losses_;
    event_returned_.notify_all();
  }
  for (const auto& stream : Stream::AllOf(device_)) stream->Abandon();
}

aclError Context::Check() {
  std::lock_guard lock(mutex_);
  if (!lost_) return ACL_SUCCESS;
  return Refuse(error_, "the context of device ", device_, " is lost since a task failed: ", why_);
}

void Context::Revive() {
  if (!lost_) return;
  for (const auto& stream : Stream::AllOf(device_)) stream->WaitUntilIdle();
  std::lock_guard lock(mutex_);
  lost_ = false;
}

aclError Context::TakeStreams(std::size_t count) {
  const std::size_t limit = GetMachine().streams;
  std::lock_guard lock(mutex_);
  if (count > limit - streams_)
    return Refuse(ACL_ERROR_RT_RESOURCE_ALLOC_FAIL, streams_, " of the ", limit, " streams of the device are in use, ",
                  count, " more are needed");
  streams_ += count;
  return ACL_SUCCESS;
}

void Context::ReturnStreams(std::size_t count) {
  std::lock_guard lock(mutex_);
  streams_ -= count;
}

aclError Context::TakeEvent() {
  {
    std::unique_lock lock(mutex_);
    if (events_ == kEvents) {
      const BlockedSubmitter blocked;
      event_returned_.wait(lock, [this] { return events_ < kEvents || lost_; });
    }
    if (!lost_) {
      ++events_;
      return ACL_SUCCESS;
    }
  }
  return Check();
}

void Context::ReturnEvent() {
  std::lock_guard lock(mutex_);
  --events_;
  event_returned_.notify_all();
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

aclError aclrtSetDevice(int32_t device) {
  ACL_CALL();
  if (const aclError error = CheckDevice(device)) return error;
  current_device = device;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t device) {
  ACL_CALL();
  return CheckDevice(device);
}

aclError aclrtGetDevice(int32_t* device) {
  ACL_CALL();
  return CurrentDevice(device);
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  ACL_CALL();
  *count = kDevices;
  return ACL_SUCCESS;
}

const char* aclrtGetSocName() {
  EnterCall(__func__);
  return GetMachine().soc.c_str();
}

// A context is only ever compared and handed back: device n is represented by the pointer n + 1.
aclError aclrtGetCurrentContext(aclrtContext* context) {
  ACL_CALL();
  int device;
  if (const aclError error = CurrentDevice(&device)) return error;
  *context = reinterpret_cast<aclrtContext>(static_cast<intptr_t>(device) + 1);
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  ACL_CALL();
  const int device = static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1;
  if (const aclError error = CheckDevice(device)) return error;
  current_device = device;
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t*, int32_t* active) {
  ACL_CALL();
  *active = 1;
  return CheckDevice(device);
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

aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr attribute, int64_t* value) {
  ACL_CALL();
  if (attribute != ACL_DEV_ATTR_VECTOR_CORE_NUM)
    return Refuse(ACL_ERROR_INVALID_PARAM, "aclrtGetDeviceInfo: only the number of vector cores is simulated");
  *value = 40;  // of an Ascend910B3
  return ACL_SUCCESS;
}

// For tests, through ../__init__.py.
int ascend_sim_blocked_submitters() { return BlockedSubmitter::count; }

void ascend_sim_reset() {
  ResetCalls();
  ResetThrottle();
  for (int device = 0; device < kDevices; ++device) Context::Of(device).Revive();
}

}  // extern "C"
