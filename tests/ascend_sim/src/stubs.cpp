// SPDX-License-Identifier: Apache-2.0
// Functions that only have to exist: the loader binds them, or torch_npu looks them up while it starts. Those that a
// test must not take for working are refused with a line on stderr. Parameters are left out where no caller needs them.
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "call.h"

#define SUCCEEDS(name) \
  extern "C" aclError name() { return ascend_sim::EnterCall(#name); }

#define NOT_SIMULATED(name)                                                              \
  extern "C" aclError name() {                                                           \
    ACL_CALL();                                                                          \
    std::fprintf(stderr, "ascend_sim: " #name " is not simulated\n");                    \
    return ascend_sim::Refuse(ACL_ERROR_FEATURE_UNSUPPORTED, #name " is not simulated"); \
  }

#define RETURNS_HANDLE(name)      \
  extern "C" const void* name() { \
    static const int handle = 0;  \
    return &handle;               \
  }

SUCCEEDS(aclmdlFinalizeDump)
SUCCEEDS(aclmdlInitDump)
SUCCEEDS(aclmdlSetDump)
SUCCEEDS(aclrtSetDeviceSatMode)
SUCCEEDS(aclrtSetOpExecuteTimeOut)
SUCCEEDS(aclrtSetStreamAttribute)
SUCCEEDS(aclrtSetStreamOverflowSwitch)

extern "C" aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t* value) {
  *value = 0;
  return ACL_SUCCESS;
}

extern "C" aclError aclrtGetStreamResLimit(void*, int, uint32_t* value) {
  ACL_CALL();
  *value = 1;
  return ACL_SUCCESS;
}

extern "C" aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  ACL_CALL();
  *pid = getpid();
  return ACL_SUCCESS;
}

// Descriptions of operators, which no simulated operator ever reads.
RETURNS_HANDLE(aclopCreateAttr)
SUCCEEDS(aclopDestroyAttr)
SUCCEEDS(aclopSetAttrBool)
SUCCEEDS(aclopSetAttrDataType)
SUCCEEDS(aclopSetAttrFloat)
SUCCEEDS(aclopSetAttrInt)
SUCCEEDS(aclopSetAttrListBool)
SUCCEEDS(aclopSetAttrListFloat)
SUCCEEDS(aclopSetAttrListInt)
SUCCEEDS(aclopSetAttrListListInt)
SUCCEEDS(aclopSetAttrString)
RETURNS_HANDLE(aclCreateTensorDesc)
extern "C" aclDataBuffer* aclCreateDataBuffer(void* data, size_t) { return static_cast<aclDataBuffer*>(data); }
extern "C" aclError aclDestroyDataBuffer(const aclDataBuffer*) { return ACL_SUCCESS; }
SUCCEEDS(aclDestroyTensorDesc)
SUCCEEDS(aclSetTensorDescName)
SUCCEEDS(aclSetTensorFormat)
SUCCEEDS(aclSetTensorShape)
SUCCEEDS(aclSetTensorPlaceMent)
SUCCEEDS(aclGetTensorDescType)
SUCCEEDS(aclGetTensorDescFormat)
SUCCEEDS(aclGetTensorDescDimV2)
extern "C" size_t aclGetTensorDescNumDims() { return 0; }

// torch_npu logs where ASCEND_GLOBAL_LOG_LEVEL says so; its warnings name the functions that it looks for in vain.
extern "C" void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

// Profiling.
extern "C" int32_t MsprofRegisterCallback() { return 0; }
extern "C" int32_t MsprofReportApi() { return 0; }
extern "C" int32_t MsprofReportAdditionalInfo() { return 0; }
extern "C" int32_t MsprofReportCompactInfo() { return 0; }
extern "C" uint64_t MsprofGetHashId() { return 0; }
extern "C" uint64_t MsprofSysCycleTime() { return 0; }

// Kernels, virtual memory.
NOT_SIMULATED(aclrtGetFunctionAddr)
NOT_SIMULATED(rtDevBinaryRegister)
NOT_SIMULATED(rtFunctionRegister)
NOT_SIMULATED(rtGetC2cCtrlAddr)
NOT_SIMULATED(rtKernelLaunch)

NOT_SIMULATED(aclrtReserveMemAddress)
NOT_SIMULATED(aclrtReleaseMemAddress)
NOT_SIMULATED(aclrtMallocPhysical)
NOT_SIMULATED(aclrtFreePhysical)
NOT_SIMULATED(aclrtMapMem)
NOT_SIMULATED(aclrtUnmapMem)
NOT_SIMULATED(aclrtMemExportToShareableHandle)
NOT_SIMULATED(aclrtMemImportFromShareableHandle)
NOT_SIMULATED(aclrtMemSetPidToShareableHandle)
NOT_SIMULATED(aclrtProcessReport)

// torch_npu calls these where it finds no aclnn function.
extern "C" aclError aclopCompileAndExecute(const char* op) {
  ACL_CALL();
  return ascend_sim::RefuseOperator(op);
}
