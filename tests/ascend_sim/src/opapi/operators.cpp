// SPDX-License-Identifier: Apache-2.0
// The table of operators: those that the decoder of transformers' Llama needs, and its generation loop. Each has the
// parameters that CANN's documentation of aclnnXxx gives it, and is computed by torch. Parameters without a name choose
// between ways to compute the same.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ScalarOps.h>

#include <cmath>

#include "operator.h"

using ascend_sim::DynamicTensor;
using at::IntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;
using at::TensorList;

// Fill and copy.
OPERATOR(aclnnInplaceCopy, Tensor& self, const Tensor& source) { self.copy_(source); }
// How older versions of torch_npu convert, where newer ones copy.
OPERATOR(aclnnCast, const Tensor& self, int32_t, Tensor& out) { out.copy_(self); }
OPERATOR(aclnnInplaceZero, Tensor& self) { self.zero_(); }
OPERATOR(aclnnInplaceOne, Tensor& self) { self.fill_(1); }
OPERATOR(aclnnInplaceFillScalar, Tensor& self, const Scalar& value) { self.fill_(value); }
OPERATOR(aclnnInplaceFillTensor, Tensor& self, const Tensor& value) { self.fill_(value); }
OPERATOR(aclnnInplaceMaskedFillScalar, Tensor& self, const Tensor& mask, const Scalar& value) {
  self.masked_fill_(mask, value);
}
OPERATOR(aclnnArange, const Scalar& start, const Scalar& end, const Scalar& step, Tensor& out) {
  at::arange_out(out, start, end, step);
}
OPERATOR(aclnnInplaceRandom, Tensor& self, int64_t from, int64_t to, int64_t seed, int64_t offset) {
  self.random_(from, to, at::make_generator<at::CPUGeneratorImpl>(seed + offset));
}

// One tensor.
#define UNARY(name, function) \
  OPERATOR(aclnn##name, const Tensor& self, Tensor& out) { at::function##_out(out, self); }
UNARY(Abs, abs)
UNARY(Ceil, ceil)
UNARY(BitwiseNot, bitwise_not)
UNARY(Cos, cos)
UNARY(LogicalNot, logical_not)
UNARY(Max, max)
UNARY(Min, min)
UNARY(Neg, neg)
UNARY(Reciprocal, reciprocal)
UNARY(Rsqrt, rsqrt)
UNARY(Silu, silu)
UNARY(Sin, sin)
OPERATOR(aclnnInplaceCos, Tensor& self) { self.cos_(); }
OPERATOR(aclnnInplaceLogicalNot, Tensor& self) { self.logical_not_(); }
OPERATOR(aclnnInplacePowTensorScalar, Tensor& self, const Scalar& exponent) { self.pow_(exponent); }
OPERATOR(aclnnInplaceRsqrt, Tensor& self) { self.rsqrt_(); }
OPERATOR(aclnnInplaceSin, Tensor& self) { self.sin_(); }
OPERATOR(aclnnIsFinite, const Tensor& self, Tensor& out) { out.copy_(at::isfinite(self)); }

// Two tensors, or a tensor and a number.
#define WITH_TENSOR(name, function) \
  OPERATOR(aclnn##name, const Tensor& self, const Tensor& other, Tensor& out) { at::function##_out(out, self, other); }
#define WITH_SCALAR(name, function) \
  OPERATOR(aclnn##name, const Tensor& self, const Scalar& other, Tensor& out) { at::function##_out(out, self, other); }
WITH_TENSOR(Mul, mul)
WITH_SCALAR(Muls, mul)
WITH_TENSOR(Div, div)
WITH_SCALAR(Divs, div)
WITH_TENSOR(FloorDivide, floor_divide)
WITH_TENSOR(RemainderTensorTensor, remainder)
WITH_SCALAR(RemainderTensorScalar, remainder)
WITH_SCALAR(PowTensorScalar, pow)
WITH_TENSOR(EqTensor, eq)
WITH_SCALAR(EqScalar, eq)
WITH_TENSOR(NeTensor, ne)
WITH_SCALAR(NeScalar, ne)
WITH_TENSOR(LtTensor, lt)
WITH_SCALAR(LtScalar, lt)
WITH_TENSOR(LeTensor, le)
WITH_SCALAR(LeScalar, le)
WITH_TENSOR(GtTensor, gt)
WITH_SCALAR(GtScalar, gt)
WITH_TENSOR(GeTensor, ge)
WITH_SCALAR(GeScalar, ge)
WITH_TENSOR(BitwiseAndTensor, bitwise_and)
WITH_SCALAR(BitwiseAndScalar, bitwise_and)
WITH_TENSOR(BitwiseOrTensor, bitwise_or)
WITH_SCALAR(BitwiseOrScalar, bitwise_or)
WITH_TENSOR(LogicalAnd, logical_and)
WITH_TENSOR(LogicalOr, logical_or)
OPERATOR(aclnnFloorDivides, const Tensor& self, const Scalar& other, Tensor& out) {
  at::floor_divide_out(out, self, at::native::wrapped_scalar_tensor(other));
}
OPERATOR(aclnnPowScalarTensor, const Scalar& self, const Tensor& exponent, Tensor& out) {
  at::pow_out(out, self, exponent);
}
OPERATOR(aclnnEqual, const Tensor& self, const Tensor& other, Tensor& out) { out.fill_(at::equal(self, other)); }
OPERATOR(aclnnIsClose, const Tensor& self, const Tensor& other, double rtol, double atol, bool equal_nan, Tensor& out) {
  out.copy_(at::isclose(self, other, rtol, atol, equal_nan));
}
#define IN_PLACE(tensor, scalar, function)                                                       \
  OPERATOR(aclnnInplace##tensor, Tensor& self, const Tensor& other) { self.function##_(other); } \
  OPERATOR(aclnnInplace##scalar, Tensor& self, const Scalar& other) { self.function##_(other); }
IN_PLACE(Mul, Muls, mul)
IN_PLACE(Div, Divs, div)
IN_PLACE(BitwiseAndTensor, BitwiseAndScalar, bitwise_and)
#define SUM(name, function)                                                                             \
  OPERATOR(aclnn##name, const Tensor& self, const Tensor& other, const Scalar& alpha, Tensor& out) {    \
    at::function##_out(out, self, other, alpha);                                                        \
  }                                                                                                     \
  OPERATOR(aclnn##name##s, const Tensor& self, const Scalar& other, const Scalar& alpha, Tensor& out) { \
    at::function##_out(out, self, other, alpha);                                                        \
  }                                                                                                     \
  OPERATOR(aclnnInplace##name, Tensor& self, const Tensor& other, const Scalar& alpha) {                \
    self.function##_(other, alpha);                                                                     \
  }                                                                                                     \
  OPERATOR(aclnnInplace##name##s, Tensor& self, const Scalar& other, const Scalar& alpha) {             \
    self.function##_(other, alpha);                                                                     \
  }
SUM(Add, add)
SUM(Sub, sub)
OPERATOR(aclnnSWhere, const Tensor& condition, const Tensor& self, const Tensor& other, Tensor& out) {
  at::where_out(out, condition, self, other);
}

// Along dimensions.
OPERATOR(aclnnAll, const Tensor& self, IntArrayRef dim, bool keepdim, Tensor& out) {
  at::all_out(out, self, dim, keepdim);
}
OPERATOR(aclnnAny, const Tensor& self, IntArrayRef dim, bool keepdim, Tensor& out) {
  at::any_out(out, self, dim, keepdim);
}
OPERATOR(aclnnArgMax, const Tensor& self, int64_t dim, bool keepdim, Tensor& out) {
  at::argmax_out(out, self, dim, keepdim);
}
OPERATOR(aclnnMaxDim, const Tensor& self, int64_t dim, bool keepdim, Tensor& out, Tensor& indices) {
  at::max_out(out, indices, self, dim, keepdim);
}
OPERATOR(aclnnMinDim, const Tensor& self, int64_t dim, bool keepdim, Tensor& out, Tensor& indices) {
  at::min_out(out, indices, self, dim, keepdim);
}
OPERATOR(aclnnMean, const Tensor& self, IntArrayRef dim, bool keepdim, ScalarType dtype, Tensor& out) {
  at::mean_out(out, self, dim, keepdim, dtype);
}
OPERATOR(aclnnReduceSum, const Tensor& self, IntArrayRef dim, bool keepdim, ScalarType dtype, Tensor& out) {
  at::sum_out(out, self, dim, keepdim, dtype);
}
OPERATOR(aclnnCumsum, const Tensor& self, int64_t dim, ScalarType dtype, Tensor& out) {
  at::cumsum_out(out, self, dim, dtype);
}
OPERATOR(aclnnSoftmax, const Tensor& self, int64_t dim, Tensor& out) { at::softmax_out(out, self, dim); }
OPERATOR(aclnnLogSoftmax, const Tensor& self, int64_t dim, Tensor& out) { at::log_softmax_out(out, self, dim); }
OPERATOR(aclnnTopk, const Tensor& self, int64_t k, int64_t dim, bool largest, bool sorted, Tensor& values,
         Tensor& indices) {
  at::topk_out(values, indices, self, k, dim, largest, sorted);
}
OPERATOR(aclnnTriu, const Tensor& self, int64_t diagonal, Tensor& out) { at::triu_out(out, self, diagonal); }

// Parts of tensors. An index without elements stands for all of a dimension.
static c10::List<std::optional<Tensor>> Optional(TensorList indices) {
  c10::List<std::optional<Tensor>> list;
  for (const Tensor& index : indices) list.push_back(index.numel() == 0 ? std::nullopt : std::optional(index));
  return list;
}
OPERATOR(aclnnCat, TensorList tensors, int64_t dim, Tensor& out) { at::cat_out(out, tensors, dim); }
OPERATOR(aclnnStack, TensorList tensors, int64_t dim, Tensor& out) { at::stack_out(out, tensors, dim); }
OPERATOR(aclnnEmbedding, const Tensor& weight, const Tensor& indices, Tensor& out) {
  at::embedding_out(out, weight, indices);
}
OPERATOR(aclnnGather, const Tensor& self, int64_t dim, const Tensor& index, Tensor& out) {
  at::gather_out(out, self, dim, index);
}
OPERATOR(aclnnIndex, const Tensor& self, TensorList indices, Tensor& out) {
  out.copy_(at::index(self, Optional(indices)));
}
OPERATOR(aclnnIndexPutImpl, Tensor& self, TensorList indices, const Tensor& values, bool accumulate, bool) {
  self.index_put_(Optional(indices), values, accumulate);
}
OPERATOR(aclnnMaskedSelect, const Tensor& self, const Tensor& mask, DynamicTensor out) {
  out.Set(at::masked_select(self, mask));
}
OPERATOR(aclnnNonzero, const Tensor& self, DynamicTensor out) { out.Set(at::nonzero(self)); }
OPERATOR(aclnnNonzeroV2, const Tensor& self, DynamicTensor out) { out.Set(at::nonzero(self).t()); }
OPERATOR(aclnnIndexSelect, const Tensor& self, int64_t dim, const Tensor& index, Tensor& out) {
  at::index_select_out(out, self, dim, index);
}
OPERATOR(aclnnIndexCopy, const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source, Tensor& out) {
  at::index_copy_out(out, self, dim, index, source);
}
OPERATOR(aclnnInplaceIndexCopy, Tensor& self, int64_t dim, const Tensor& index, const Tensor& source) {
  self.index_copy_(dim, index, source);
}
OPERATOR(aclnnRepeatInterleaveIntWithDim, const Tensor& self, int64_t repeats, int64_t dim, int64_t size, Tensor& out) {
  out.copy_(at::repeat_interleave(self, repeats, dim, size));
}

// Products.
OPERATOR(aclnnMatmul, const Tensor& self, const Tensor& other, Tensor& out, int8_t) {
  at::matmul_out(out, self, other);
}
OPERATOR(aclnnMm, const Tensor& self, const Tensor& other, Tensor& out, int8_t) { at::mm_out(out, self, other); }
OPERATOR(aclnnBatchMatMul, const Tensor& self, const Tensor& other, Tensor& out, int8_t) {
  at::bmm_out(out, self, other);
}
// torch_npu calls this for torch's scaled_dot_product_attention. The mask is true where a token is hidden.
OPERATOR(aclnnFlashAttentionScore, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& shift,
         const Tensor& drop_mask, const Tensor& padding_mask, const Tensor& mask, IntArrayRef prefix, double scale,
         double keep_probability, int64_t, int64_t, int64_t, const std::string& layout, int64_t, int64_t sparse_mode,
         Tensor& softmax_max, Tensor& softmax_sum, Tensor&, Tensor& out) {
  const bool causal = sparse_mode == 2;
  TORCH_CHECK(layout == "BNSD" && !shift.defined() && !drop_mask.defined() && !padding_mask.defined() &&
                  prefix.empty() && keep_probability == 1 && (causal || sparse_mode == 0),
              "simulated for layout BNSD, sparse mode 0 or 2, and no dropout, shift, padding or prefix");
  const auto visible = mask.defined() && !causal ? std::optional(mask.logical_not()) : std::nullopt;
  out.copy_(at::scaled_dot_product_attention(query, key, value, visible, 0, causal, scale, /*enable_gqa=*/true));
  softmax_max.fill_(NAN);  // read by the backward pass alone, which is not simulated
  softmax_sum.fill_(NAN);
}
