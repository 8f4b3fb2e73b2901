// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Scalar.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "acl/acl_base_rt.h"

// What a caller describes an operator's arguments with. The types are opaque to it.

/// A view of device memory. Sizes, strides and offset count elements, and `data` is where the storage begins.
struct aclTensor {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  int64_t offset = 0;
  aclDataType dtype = ACL_DT_UNDEFINED;  // stays so for an optional tensor that is not there
  aclFormat format = ACL_FORMAT_ND;
  void* data = nullptr;
  // What the sizes have become, where they depend on the data. Shared with copies, for aclGetViewShape.
  std::shared_ptr<std::vector<int64_t>> actual_sizes = nullptr;
};

struct aclScalar {
  c10::Scalar value;
};

struct aclIntArray {
  std::vector<int64_t> values;
};

struct aclTensorList {
  std::vector<aclTensor> tensors;
};

namespace ascend_sim {

/// torch's type for a data type of ACL; throws where there is none.
c10::ScalarType TorchType(aclDataType dtype);

}  // namespace ascend_sim
