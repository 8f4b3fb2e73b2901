// SPDX-License-Identifier: Apache-2.0
#include "objects.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <memory>

#define ACL_SCALAR_TYPES(_)      \
  _(ACL_FLOAT, Float)            \
  _(ACL_FLOAT16, Half)           \
  _(ACL_BF16, BFloat16)          \
  _(ACL_DOUBLE, Double)          \
  _(ACL_BOOL, Bool)              \
  _(ACL_INT8, Char)              \
  _(ACL_INT16, Short)            \
  _(ACL_INT32, Int)              \
  _(ACL_INT64, Long)             \
  _(ACL_UINT8, Byte)             \
  _(ACL_COMPLEX64, ComplexFloat) \
  _(ACL_COMPLEX128, ComplexDouble)

namespace ascend_sim {

c10::ScalarType TorchType(aclDataType dtype) {
  switch (dtype) {
#define CASE(acl, torch) \
  case acl:              \
    return c10::ScalarType::torch;
    ACL_SCALAR_TYPES(CASE)
#undef CASE
    default:
      TORCH_CHECK(false, "aclDataType ", static_cast<int>(dtype), " is not simulated");
  }
}

}  // namespace ascend_sim

namespace {

c10::Scalar Read(const void* value, aclDataType dtype) {
  switch (dtype) {
#define CASE(acl, torch)                                          \
  case acl: {                                                     \
    c10::impl::ScalarTypeToCPPTypeT<c10::ScalarType::torch> read; \
    std::memcpy(&read, value, sizeof read);                       \
    return c10::Scalar(read);                                     \
  }
    ACL_SCALAR_TYPES(CASE)
#undef CASE
    default:
      TORCH_CHECK(false, "aclDataType ", static_cast<int>(dtype), " is not simulated");
  }
}

template <typename Object>
int Destroy(const Object* object) {
  delete object;
  return ACL_SUCCESS;
}

}  // namespace

extern "C" {

aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dims, aclDataType dtype, const int64_t* strides,
                           int64_t offset, aclFormat format, const int64_t*, uint64_t, void* data) {
  const std::vector<int64_t> all(sizes, sizes + dims);
  return new aclTensor{
      all, {strides, strides + dims}, offset, dtype, format, data, std::make_shared<std::vector<int64_t>>(all)};
}

aclScalar* aclCreateScalar(void* value, aclDataType dtype) { return new aclScalar{Read(value, dtype)}; }

aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t size) {
  return new aclIntArray{{values, values + size}};
}

// The list owns its tensors from here on.
aclTensorList* aclCreateTensorList(const aclTensor* const* tensors, uint64_t size) {
  auto list = std::make_unique<aclTensorList>();
  for (uint64_t i = 0; i < size; ++i) {
    list->tensors.push_back(tensors[i] ? *tensors[i] : aclTensor{});
    delete tensors[i];
  }
  return list.release();
}

// Right once the stream is done. The caller deletes the array.
int aclGetViewShape(const aclTensor* tensor, int64_t** sizes, uint64_t* dims) {
  *dims = tensor->actual_sizes->size();
  *sizes = new int64_t[*dims];
  std::copy(tensor->actual_sizes->begin(), tensor->actual_sizes->end(), *sizes);
  return ACL_SUCCESS;
}

int aclDestroyTensor(const aclTensor* tensor) { return Destroy(tensor); }
int aclDestroyScalar(const aclScalar* scalar) { return Destroy(scalar); }
int aclDestroyIntArray(const aclIntArray* array) { return Destroy(array); }
int aclDestroyTensorList(const aclTensorList* list) { return Destroy(list); }

}  // extern "C"
