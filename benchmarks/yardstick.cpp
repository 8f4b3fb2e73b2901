// SPDX-License-Identifier: Apache-2.0
//
// What bounds the op from below: the same bytes moved by code that checks nothing, with all threads torch has; and an
// op of the same schema that does nothing.

#include <ATen/Parallel.h>
#include <ATen/core/IListRef.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace {

void copy_stored(char* dst, const char* src, int64_t bytes) { std::memcpy(dst, src, bytes); }

#if defined(__x86_64__)
// With stores that go past the cache. Both sides of a yardstick are aligned, and lengths are whole lines.
void copy_streamed(char* dst, const char* src, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    for (int64_t part = at; part < at + 64; part += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(dst + part),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(src + part)));
    }
  }
  _mm_sfence();
}
#else
constexpr auto copy_streamed = copy_stored;
#endif

// Copies one row of each tensor in a stack [tensors, batch, elements], split evenly by bytes among the threads.
void copy_rows(const at::Tensor& dst, const at::Tensor& src, int64_t dst_index, int64_t src_index, bool streamed) {
  const int64_t row = dst.stride(1) * dst.itemsize();
  char* const to = static_cast<char*>(dst.mutable_data_ptr()) + dst_index * row;
  const char* const from = static_cast<const char*>(src.const_data_ptr()) + src_index * row;
  const int64_t to_pitch = dst.stride(0) * dst.itemsize();
  const int64_t from_pitch = src.stride(0) * src.itemsize();
  constexpr int64_t kLine = 64;
  at::parallel_for(0, dst.size(0) * row / kLine, 1, [&](int64_t first, int64_t last) {
    for (int64_t at = first * kLine; at < last * kLine;) {
      const int64_t bytes = std::min(row - at % row, last * kLine - at);
      const auto copy = streamed ? copy_streamed : copy_stored;
      copy(to + at / row * to_pitch + at % row, from + at / row * from_pitch + at % row, bytes);
      at += bytes;
    }
  });
}

void nothing(at::ITensorListRef, at::ITensorListRef, int64_t, int64_t, int64_t, int64_t, std::optional<int64_t>,
             int64_t) {}

}  // namespace

TORCH_LIBRARY(yardstick, m) {
  m.def("copy_rows(Tensor(a!) dst, Tensor src, int dst_index, int src_index, bool streamed) -> ()");
  m.def(
      "nothing(Tensor(a!)[] dst, Tensor[] src, SymInt dst_batch_index=0, SymInt src_batch_index=0, SymInt offset=0, "
      "SymInt size=-1, SymInt? req_id=None, *, int batch_dim=0) -> ()");
}

TORCH_LIBRARY_IMPL(yardstick, CPU, m) {
  m.impl("copy_rows", &copy_rows);
  m.impl("nothing", &nothing);
}
