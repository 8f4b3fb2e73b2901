// SPDX-License-Identifier: Apache-2.0
// Functions that only have to exist: the loader binds them, or torch_npu looks them up while it starts. Those that a
// test must not take for working are refused with a line on stderr. Parameters are left out where no caller needs them.
#include <cstdarg>
#include <cstdio>

#include "call.h"

using namespace ascend_sim;

#define SUCCEEDS(name) \
  extern "C" aclError name() { return EnterCall(#name); }

#define NOT_SIMULATED(name)                                                  \
  extern "C" aclError name() {                                               \
    ACL_CALL();                                                              \
    std::fprintf(stderr, "ascend_sim: " #name " is not simulated\n");        \
    return Refuse(ACL_ERROR_FEATURE_UNSUPPORTED, #name " is not simulated"); \
  }

#define RETURNS_HANDLE(name)      \
  extern "C" const void* name() { \
    static const int handle = 0;  \
    return &handle;               \
  }

extern "C" aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t* value) {
  *value = 0;
  return ACL_SUCCESS;
}

extern "C" aclError aclrtGetStreamResLimit(void*, int, uint32_t* value) {
  ACL_CALL();
  *value = 1;
  return ACL_SUCCESS;
}

// clang-format off
// Among them, all of the profiler.
SUCCEEDS(aclDestroyTensorDesc) SUCCEEDS(aclFinalize) SUCCEEDS(aclGetTensorDescDimV2) SUCCEEDS(aclGetTensorDescFormat)
SUCCEEDS(aclGetTensorDescType) SUCCEEDS(aclmdlFinalizeDump) SUCCEEDS(aclmdlInitDump) SUCCEEDS(aclmdlSetDump)
SUCCEEDS(aclopDestroyAttr) SUCCEEDS(aclopSetAttrBool) SUCCEEDS(aclopSetAttrDataType) SUCCEEDS(aclopSetAttrFloat)
SUCCEEDS(aclopSetAttrInt) SUCCEEDS(aclopSetAttrListBool) SUCCEEDS(aclopSetAttrListFloat) SUCCEEDS(aclopSetAttrListInt)
SUCCEEDS(aclopSetAttrListListInt) SUCCEEDS(aclopSetAttrString) SUCCEEDS(aclopSetCompileFlag)
SUCCEEDS(aclrtCtxGetSysParamOpt) SUCCEEDS(aclrtCtxSetSysParamOpt) SUCCEEDS(aclrtGetSysParamOpt)
SUCCEEDS(aclrtSetDeviceSatMode) SUCCEEDS(aclrtSetOpExecuteTimeOut) SUCCEEDS(aclrtSetStreamAttribute)
SUCCEEDS(aclrtSetStreamOverflowSwitch) SUCCEEDS(aclrtSetSysParamOpt) SUCCEEDS(aclSetCompileopt)
SUCCEEDS(aclSetTensorDescName) SUCCEEDS(aclSetTensorFormat) SUCCEEDS(aclSetTensorPlaceMent)
SUCCEEDS(aclSetTensorShape) SUCCEEDS(MsprofGetHashId) SUCCEEDS(MsprofRegisterCallback)
SUCCEEDS(MsprofReportAdditionalInfo) SUCCEEDS(MsprofReportApi) SUCCEEDS(MsprofReportCompactInfo)
SUCCEEDS(MsprofSysCycleTime)
// Collectives, which torch_npu up to 2.9 binds when it is loaded; other kernels, virtual memory, and what no test needs.
NOT_SIMULATED(aclrtDeviceCanAccessPeer)
NOT_SIMULATED(aclrtDeviceEnablePeerAccess) NOT_SIMULATED(aclrtDeviceGetBareTgid) NOT_SIMULATED(aclrtFreePhysical)
NOT_SIMULATED(aclrtGetFunctionAddr) NOT_SIMULATED(aclrtHostRegister) NOT_SIMULATED(aclrtHostRegisterV2)
NOT_SIMULATED(aclrtHostUnregister) NOT_SIMULATED(aclrtLaunchHostFunc) NOT_SIMULATED(aclrtMallocPhysical)
NOT_SIMULATED(aclrtMapMem) NOT_SIMULATED(aclrtMemExportToShareableHandle)
NOT_SIMULATED(aclrtMemImportFromShareableHandle) NOT_SIMULATED(aclrtMemset)
NOT_SIMULATED(aclrtMemSetPidToShareableHandle) NOT_SIMULATED(aclrtProcessReport) NOT_SIMULATED(aclrtReleaseMemAddress)
NOT_SIMULATED(aclrtReserveMemAddress) NOT_SIMULATED(aclrtResetEvent) NOT_SIMULATED(aclrtStreamGetId)
NOT_SIMULATED(aclrtUnmapMem) NOT_SIMULATED(HcclAllGather) NOT_SIMULATED(HcclAllReduce) NOT_SIMULATED(HcclBroadcast)
NOT_SIMULATED(HcclCommDestroy) NOT_SIMULATED(HcclCommInitAll) NOT_SIMULATED(HcclCommInitRootInfo)
NOT_SIMULATED(HcclGetRootInfo) NOT_SIMULATED(HcclRecv) NOT_SIMULATED(HcclReduceScatter) NOT_SIMULATED(HcclSend)
NOT_SIMULATED(rtDevBinaryRegister) NOT_SIMULATED(rtFunctionRegister) NOT_SIMULATED(rtGetC2cCtrlAddr)
NOT_SIMULATED(rtKernelLaunch)
    // clang-format on

    // Descriptions of operators, which no simulated operator ever reads.
    RETURNS_HANDLE(aclopCreateAttr)
        RETURNS_HANDLE(aclCreateTensorDesc) extern "C" aclDataBuffer* aclCreateDataBuffer(void* data, size_t) {
  return static_cast<aclDataBuffer*>(data);
}
extern "C" aclError aclDestroyDataBuffer(const aclDataBuffer*) { return ACL_SUCCESS; }
extern "C" size_t aclGetTensorDescNumDims() { return 0; }

// torch_npu logs where ASCEND_GLOBAL_LOG_LEVEL says so; its warnings name the functions that it looks for in vain.
extern "C" void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

// torch_npu allocates this many bytes for an option's value, and refuses 0.
extern "C" size_t aclGetCompileoptSize() { return 16; }

extern "C" int aclGetCompileopt(int, char* value, size_t) {
  value[0] = '\0';
  return 0;
}

// torch_npu calls these where it finds no aclnn function, and the second where the result's shape depends on the data.
// Only its log names the missing function.
#define NO_OPERATOR(name)                                                                           \
  extern "C" aclError name(const char* op) {                                                        \
    ACL_CALL();                                                                                     \
    std::fprintf(stderr,                                                                            \
                 "ascend_sim: the compute operator %s is not simulated; run with "                  \
                 "ASCEND_GLOBAL_LOG_LEVEL=2 to see the aclnn function it wants\n",                  \
                 op);                                                                               \
    return Refuse(ACL_ERROR_FEATURE_UNSUPPORTED, "the compute operator ", op, " is not simulated"); \
  }

NO_OPERATOR(aclopCompileAndExecute)
NO_OPERATOR(aclopCompileAndExecuteV2)
