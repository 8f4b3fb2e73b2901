// SPDX-License-Identifier: Apache-2.0
#include "overlap.h"

#include <algorithm>
#include <cstdlib>

#include "address_range.h"
#include "byte_copy.h"

namespace llm_datadist {
namespace {

// Whether the ranges of one base are apart, or copied onto themselves. Decided by distances alone: both sides have the
// same pitch, and the sources lie in the gaps between the destinations.
bool apart_by_pitch(const Base& base, int64_t width) {
  if (base.dst == base.src) {
    return base.height == 1 || base.dst_pitch == base.src_pitch;
  }
  if (base.height == 1 || base.dst_pitch != base.src_pitch) {
    return false;
  }
  const int64_t gap = std::abs(distance(base.src, base.dst)) % base.dst_pitch;
  return gap >= width && base.dst_pitch - gap >= width;
}

// A quick test in one pass without sorting: true for the layouts of most caches (tensors at ascending addresses, rows
// of one stacked tensor). If it returns false, only sorting can tell.
bool clearly_apart(const Step& step) {
  AddressRange last_dst{0, 0};
  AddressRange last_pair{0, 0};
  AddressRange all_src{UINTPTR_MAX, 0};
  bool dst_ascends = true;
  bool pairs_ascend = true;
  for (const Base& base : step.bases) {
    const int64_t width = step.span_list_of(base).bytes;
    const AddressRange dst = range_of(base.dst, (base.height - 1) * base.dst_pitch + width);
    const AddressRange src = range_of(base.src, (base.height - 1) * base.src_pitch + width);
    const AddressRange pair = hull(dst, src);
    dst_ascends = dst_ascends && dst.begin >= last_dst.end;
    pairs_ascend = pairs_ascend && pair.begin >= last_pair.end && (disjoint(dst, src) || apart_by_pitch(base, width));
    all_src = hull(all_src, src);
    last_dst = dst;
    last_pair = pair;
  }
  const AddressRange all_dst = hull(range_of(step.bases.front().dst, 0), last_dst);
  return pairs_ascend || (dst_ascends && disjoint(all_dst, all_src));
}

int64_t places_of(const at::Tensor& tensor, int64_t batch_dim) {
  return c10::multiply_integers(tensor.sizes().slice(0, batch_dim));
}

void refuse(const CallContext& call, const ByteCopy& written, const char* verb, TensorName other) {
  CHECK_CALL(call, false, "the range to write in ", (TensorName{"dst", written.tensor}), " overlaps the range to ",
             verb, " in ", other, ": the result would depend on the order of the copies");
}

}  // namespace

bool check_overlap(const CallContext& call, const Step& step, const Tensors& dst, int64_t batch_dim) {
  if (clearly_apart(step)) {
    return false;
  }
  std::vector<ByteCopy> copies;
  copies.reserve(step.bases.size());
  const char* const origin = step.bases.front().dst;
  // Places come in the order of the tensors. A base may hold those of several.
  int64_t tensor = 0;
  int64_t left = places_of(dst.front(), batch_dim);
  for_each_place(step, [&](const Base& base, const char* to, const char* from) {
    if (left == 0) {
      left = places_of(dst[++tensor], batch_dim);
    }
    --left;
    copies.push_back({distance(origin, to), distance(origin, from), step.span_list_of(base).bytes, tensor});
  });
  if (const auto twice = find_double_write(copies)) {
    refuse(call, twice->second, "write", {"dst", twice->first.tensor});
  }
  std::erase_if(copies, [](const ByteCopy& copy) { return copy.onto_itself(); });
  const std::vector<Writers> writers = find_writers(copies);
  bool self_overlap = false;
  for (size_t copy = 0; copy < copies.size(); ++copy) {
    for (int64_t writer = writers[copy].begin; writer < writers[copy].end; ++writer) {
      if (writer != static_cast<int64_t>(copy)) {
        refuse(call, copies[writer], "read", {"src", copies[copy].tensor});
      }
      self_overlap = true;
    }
  }
  return self_overlap;
}

}  // namespace llm_datadist
