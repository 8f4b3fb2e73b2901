// SPDX-License-Identifier: Apache-2.0
// What is not simulated: compute, kernels, virtual memory. Each refuses and says so on stderr, because silence would
// make wrong tests pass. The signatures are left out: nothing looks at the arguments.
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

/// The way of every operator that torch_npu has no other way for: named, since the name is what the reader needs.
extern "C" aclError aclopCompileAndExecute(const char* op) {
  ACL_CALL();
  std::fprintf(stderr, "ascend_sim: the compute operator %s is not simulated\n", op);
  return ascend_sim::Refuse(ACL_ERROR_FEATURE_UNSUPPORTED,
                            std::string("the compute operator ") + op + " is not simulated");
}
