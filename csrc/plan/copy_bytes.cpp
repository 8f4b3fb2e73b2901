// SPDX-License-Identifier: Apache-2.0
#include "copy_bytes.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
// Compiled once for each of these, and the best one that the processor has is picked when the library is loaded.
#define FOR_EVERY_X86 __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_X86
#endif

namespace llm_datadist {
namespace {

// A cache line that may lie anywhere and holds anything. One register, or as many as the processor takes for it.
using Line = char __attribute__((vector_size(64), aligned(1), may_alias));
constexpr int64_t kLine = sizeof(Line);

// Where memcpy may be slow: from about 1 KiB on it uses an instruction (rep movsb) that on AMD's processors takes up to
// 20 times as long for some addresses (docs/measurements.md).
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
FOR_EVERY_X86 void copy_lines(char* dst, const char* src, int64_t bytes) {
  // The first line at any address, then whole lines of dst, then the last line, over bytes that are there already.
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
  // Streaming stores want an aligned destination, and whole lines.
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
