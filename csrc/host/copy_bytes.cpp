// SPDX-License-Identifier: Apache-2.0
#include "copy_bytes.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
// Compiled once for each target. The loader picks the best one that the processor supports.
#define MULTIVERSIONED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MULTIVERSIONED
#endif

namespace llm_datadist {
namespace {

// A cache line at any address, with any contents. The compiler holds it in as many vector registers as it needs.
// The attributes are before the =: after it, clang ignores the alignment.
using Line __attribute__((vector_size(64), aligned(1), may_alias)) = char;
constexpr int64_t kLine = sizeof(Line);
static_assert(kLine == 64 && alignof(Line) == 1);

// From about 1 KiB on, memcpy uses rep movsb, which on AMD's processors takes up to 20 times as long for some addresses
// (docs/measurements.md).
constexpr int64_t kSmall = 1024;
bool memcpy_is_slow() {
#if defined(__x86_64__)
  static const bool amd = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return amd;
#else
  return false;
#endif
}

// Copies kSmall bytes or more.
MULTIVERSIONED void copy_lines(char* dst, const char* src, int64_t bytes) {
  // Whole lines of dst, aligned; then the first and the last line, which overlap them.
  const Line first = *reinterpret_cast<const Line*>(src);
  const Line last = *reinterpret_cast<const Line*>(src + bytes - kLine);
  int64_t at = kLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(dst) % kLine);
  for (; at + 2 * kLine <= bytes; at += 2 * kLine) {
    const Line one = *reinterpret_cast<const Line*>(src + at);
    const Line two = *reinterpret_cast<const Line*>(src + at + kLine);
    *reinterpret_cast<Line*>(dst + at) = one;
    *reinterpret_cast<Line*>(dst + at + kLine) = two;
  }
  if (at + kLine <= bytes) {
    *reinterpret_cast<Line*>(dst + at) = *reinterpret_cast<const Line*>(src + at);
  }
  *reinterpret_cast<Line*>(dst) = first;
  *reinterpret_cast<Line*>(dst + bytes - kLine) = last;
}

}  // namespace

void copy_cached(char* dst, const char* src, int64_t bytes) {
  if (bytes >= kSmall && memcpy_is_slow()) {
    copy_lines(dst, src, bytes);
  } else {
    std::memcpy(dst, src, bytes);
  }
}

#if defined(__x86_64__)
void copy_streaming(char* dst, const char* src, int64_t bytes) {
  // Streaming stores need an aligned destination, and write whole lines.
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(dst) % kLine);
  std::memcpy(dst, src, head);
  int64_t at = head;
  for (; at + kLine <= bytes; at += kLine) {
    const auto* from = reinterpret_cast<const __m128i*>(src + at);
    auto* to = reinterpret_cast<__m128i*>(dst + at);
    const __m128i part[] = {_mm_loadu_si128(from), _mm_loadu_si128(from + 1), _mm_loadu_si128(from + 2),
                            _mm_loadu_si128(from + 3)};
    for (int i = 0; i < 4; ++i) {
      _mm_stream_si128(to + i, part[i]);
    }
  }
  std::memcpy(dst + at, src + at, bytes - at);
}

void finish_streaming() { _mm_sfence(); }
#else
void copy_streaming(char* dst, const char* src, int64_t bytes) { std::memcpy(dst, src, bytes); }

void finish_streaming() {}
#endif

}  // namespace llm_datadist
