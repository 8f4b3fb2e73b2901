// SPDX-License-Identifier: Apache-2.0
// libhccl.so. torch_npu up to 2.9 binds these collectives when it is loaded; newer versions look them up when they are
// used. None is simulated, and each says so.
#include <cstdio>

#define NOT_SIMULATED(name)                                           \
  extern "C" int name() {                                             \
    std::fprintf(stderr, "ascend_sim: " #name " is not simulated\n"); \
    return 5; /* HCCL_E_NOT_SUPPORT */                                \
  }

NOT_SIMULATED(HcclAllGather)
NOT_SIMULATED(HcclAllReduce)
NOT_SIMULATED(HcclBroadcast)
NOT_SIMULATED(HcclCommDestroy)
NOT_SIMULATED(HcclCommInitAll)
NOT_SIMULATED(HcclCommInitRootInfo)
NOT_SIMULATED(HcclGetRootInfo)
NOT_SIMULATED(HcclRecv)
NOT_SIMULATED(HcclReduceScatter)
NOT_SIMULATED(HcclSend)
