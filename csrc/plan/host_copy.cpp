// SPDX-License-Identifier: Apache-2.0
#include "host_copy.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "copy_bytes.h"

namespace llm_datadist {
namespace {

// Below this many bytes, waking the intra-op threads costs more than they save.
constexpr int64_t kParallelBytes = 384 * 1024;
// From this many bytes on, what is written is out of the cache before anybody reads it.
constexpr int64_t kStreamingBytes = 24 * 1024 * 1024;
// Threads share the bytes in whole units, so that no two of them write to one cache line more than need be.
constexpr int64_t kUnitBytes = 4 * 1024;
constexpr int64_t kPrefetchBytes = 512;
// A copy with a deadline looks at the clock between pieces of this size (about a millisecond each).
constexpr int64_t kPieceBytes = 8 * 1024 * 1024;

// Separate tensors lie where the processor cannot guess: it has the first lines of the next one fetched while it
// copies.
void prefetch(const StridedCopy& copy) {
  for (int64_t at = 0; at < std::min<int64_t>(copy.width, kPrefetchBytes); at += 64) {
    __builtin_prefetch(copy.src + at);
    __builtin_prefetch(copy.dst + at, 1);
  }
}

// Copies bytes [begin, end) of the plan, counted through its ranges in their order.
void copy_bytes(const CopyPlan& plan, int64_t begin, int64_t end) {
  const auto copy_range = plan.bytes < kStreamingBytes ? copy_cached : copy_streaming;
  int64_t entry_begin = 0;
  for (const StridedCopy& copy : plan.copies) {
    const int64_t entry_end = entry_begin + copy.width * copy.height;
    int64_t at = std::max(begin, entry_begin) - entry_begin;
    const int64_t stop = std::min(end, entry_end) - entry_begin;
    if (at < stop) {
      if (&copy + 1 != plan.copies.end()) {
        prefetch(*(&copy + 1));
      }
      int64_t row = at / copy.width;
      int64_t column = at % copy.width;
      while (at < stop) {
        const int64_t bytes = std::min(copy.width - column, stop - at);
        copy_range(copy.dst + row * copy.dst_pitch + column, copy.src + row * copy.src_pitch + column, bytes);
        at += bytes;
        ++row;
        column = 0;
      }
    }
    entry_begin = entry_end;
    if (entry_begin >= end) {
      return;
    }
  }
}

void copy_piece(const CopyPlan& plan, int64_t begin, int64_t end) {
  if (end - begin < kParallelBytes) {
    copy_bytes(plan, begin, end);
    return;
  }
  const int64_t units = (end - begin + kUnitBytes - 1) / kUnitBytes;
  at::parallel_for(0, units, kParallelBytes / 2 / kUnitBytes, [&](int64_t first, int64_t last) {
    copy_bytes(plan, begin + first * kUnitBytes, std::min(end, begin + last * kUnitBytes));
  });
}

}  // namespace

bool copy_on_host(const CopyPlan& plan, std::optional<Clock::time_point> deadline) {
  const auto late = [&] { return deadline && Clock::now() >= *deadline; };
  if (plan.shifts) {
    // A range that overlaps its own source must not be cut up: memmove is right only for the whole.
    for (const StridedCopy& copy : plan.copies) {
      for (int64_t row = 0; row < copy.height; ++row) {
        if (late()) {
          return false;
        }
        std::memmove(copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width);
      }
    }
    return true;
  }
  const int64_t piece = deadline ? kPieceBytes : plan.bytes;
  for (int64_t begin = 0; begin < plan.bytes; begin += piece) {
    if (late()) {
      return false;
    }
    copy_piece(plan, begin, std::min(plan.bytes, begin + piece));
  }
  return true;
}

}  // namespace llm_datadist
