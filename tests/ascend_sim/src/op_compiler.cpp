// SPDX-License-Identifier: Apache-2.0
// libacl_op_compiler.so: what torch_npu looks up there.
#include <cstddef>

#include "call.h"

#define SUCCEEDS(name) \
  extern "C" int name() { return 0; }

SUCCEEDS(aclSetCompileopt)
SUCCEEDS(aclopSetCompileFlag)
SUCCEEDS(aclrtGetSysParamOpt)
SUCCEEDS(aclrtSetSysParamOpt)
SUCCEEDS(aclrtCtxGetSysParamOpt)
SUCCEEDS(aclrtCtxSetSysParamOpt)

// torch_npu allocates this many bytes for an option's value, and refuses 0.
extern "C" size_t aclGetCompileoptSize() { return 16; }

extern "C" int aclGetCompileopt(int, char* value, size_t) {
  value[0] = '\0';
  return 0;
}

// Operators whose result's shape depends on the data, where there is no aclnn function.
extern "C" aclError aclopCompileAndExecuteV2(const char* op) {
  ACL_CALL();
  return ascend_sim::RefuseOperator(op);
}
