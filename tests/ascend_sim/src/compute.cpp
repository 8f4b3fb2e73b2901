// SPDX-License-Identifier: Apache-2.0
// What is not simulated: most compute, kernels, virtual memory. Each refuses and says so on stderr, because silence
// would make wrong tests pass. The signatures are left out: nothing looks at the arguments.
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

/// Where torch_npu goes with every operator that it finds no aclnn function for. Named, since the name is what the
/// reader needs; the name of the function that was missing is in torch_npu's log alone.
extern "C" aclError aclopCompileAndExecute(const char* op) {
  ACL_CALL();
  const std::string why = std::string("the compute operator ") + op +
                          " is not simulated; run with ASCEND_GLOBAL_LOG_LEVEL=2 to see the aclnn function it wants";
  std::fprintf(stderr, "ascend_sim: %s\n", why.c_str());
  return ascend_sim::Refuse(ACL_ERROR_FEATURE_UNSUPPORTED, why);
}
