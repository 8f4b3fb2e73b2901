// SPDX-License-Identifier: Apache-2.0
// Functions that are not simulated: most compute, kernels, virtual memory. Each is refused with a line on stderr,
// because silence would make wrong tests pass. Parameters are left out.
#include <cstdio>

#include "call.h"

#define NOT_SIMULATED(name)                                                              \
  extern "C" aclError name() {                                                           \
    ACL_CALL();                                                                          \
    std::fprintf(stderr, "ascend_sim: " #name " is not simulated\n");                    \
    return ascend_sim::Refuse(ACL_ERROR_FEATURE_UNSUPPORTED, #name " is not simulated"); \
  }

NOT_SIMULATED(aclrtBinaryGetFunction)
NOT_SIMULATED(aclrtBinaryLoadFromData)
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
