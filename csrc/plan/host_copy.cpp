// SPDX-License-Identifier: Apache-2.0
#include "host_copy.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "copy_bytes.h"
#include "extent.h"

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

bool late(const Deadline& deadline) { return deadline && Clock::now() >= *deadline; }

auto copy_function(const Step& step) { return step.bytes < kStreamingBytes ? copy_cached : copy_streaming; }

// Separate tensors and rows lie where the processor cannot guess: it has the first lines of the next range fetched
// while it copies.
void prefetch(const Base& base, const Span& span) {
  for (int64_t at = 0; at < std::min<int64_t>(span.width, kPrefetchBytes); at += 64) {
    __builtin_prefetch(base.src + span.src + at);
    __builtin_prefetch(base.dst + span.dst + at, 1);
  }
}

// Copies bytes [begin, end) of a step whose order does not matter, counted through its bases, their places, and the
// spans of each place.
void copy_bytes(const Step& step, int64_t begin, int64_t end) {
  const auto copy = copy_function(step);
  int64_t base_begin = 0;
  for (const Base& base : step.bases) {
    const int64_t place_bytes = step.lists[base.spans].bytes;
    const int64_t base_end = base_begin + place_bytes * base.height;
    int64_t at = std::max(begin, base_begin) - base_begin;
    const int64_t stop = std::min(end, base_end) - base_begin;
    if (at < stop) {
      const c10::ArrayRef<Span> spans = step.spans_of(base);
      const Base* const next_base = &base + 1 == step.bases.end() ? nullptr : &base + 1;
      int64_t place = 0;
      const Span* span = spans.begin();
      int64_t column = 0;
      if (at > 0) {
        place = at / place_bytes;
        column = at % place_bytes;
        span = std::upper_bound(spans.begin(), spans.end(), column,
                                [](int64_t byte, const Span& other) { return byte < other.before; }) -
               1;
        column -= span->before;
      }
      while (at < stop) {
        if (span + 1 != spans.end()) {
          prefetch(base, span[1]);
        } else if (next_base != nullptr) {
          prefetch(*next_base, step.spans_of(*next_base).front());
        }
        const int64_t bytes = std::min(span->width - column, stop - at);
        copy(base.dst + place * base.dst_pitch + span->dst + column,
             base.src + place * base.src_pitch + span->src + column, bytes);
        at += bytes;
        column = 0;
        if (++span == spans.end()) {
          span = spans.begin();
          ++place;
        }
      }
    }
    base_begin = base_end;
    if (base_begin >= end) {
      return;
    }
  }
}

void copy_piece(const Step& step, int64_t begin, int64_t end) {
  if (end - begin < kParallelBytes) {
    copy_bytes(step, begin, end);
    return;
  }
  const int64_t units = (end - begin + kUnitBytes - 1) / kUnitBytes;
  at::parallel_for(0, units, kParallelBytes / 2 / kUnitBytes, [&](int64_t first, int64_t last) {
    copy_bytes(step, begin + first * kUnitBytes, std::min(end, begin + last * kUnitBytes));
  });
}

// Copies the spans of one place one after the other.
bool copy_place(const Step& step, const Base& base, int64_t place, const Deadline& deadline) {
  const auto copy = copy_function(step);
  int64_t next_look = 0;
  for (const Span& span : step.spans_of(base)) {
    if (span.before >= next_look) {
      if (late(deadline)) {
        return false;
      }
      next_look = span.before + kPieceBytes;
    }
    char* const dst = base.dst + place * base.dst_pitch + span.dst;
    const char* const src = base.src + place * base.src_pitch + span.src;
    if (disjoint(extent_of(dst, span.width), extent_of(src, span.width))) {
      copy(dst, src, span.width);
    } else {
      std::memmove(dst, src, span.width);
    }
  }
  return true;
}

// Places are independent of one another, so they are what threads share.
bool copy_in_order(const Step& step, const Deadline& deadline) {
  int64_t places = 0;
  for (const Base& base : step.bases) {
    places += base.height;
  }
  std::atomic<bool> done{true};
  const int64_t places_worth_a_thread = std::max<int64_t>(1, kParallelBytes / 2 / (step.bytes / places));
  at::parallel_for(0, places, places_worth_a_thread, [&](int64_t first, int64_t last) {
    int64_t base_begin = 0;
    for (const Base& base : step.bases) {
      const int64_t base_end = base_begin + base.height;
      for (int64_t place = std::max(first, base_begin); place < std::min(last, base_end) && done; ++place) {
        if (!copy_place(step, base, place - base_begin, deadline)) {
          done = false;
        }
      }
      base_begin = base_end;
    }
  });
  return done;
}

}  // namespace

bool copy_on_host(const Step& step, const Deadline& deadline) {
  if (step.in_order) {
    return copy_in_order(step, deadline);
  }
  const int64_t piece = deadline ? kPieceBytes : step.bytes;
  for (int64_t begin = 0; begin < step.bytes; begin += piece) {
    if (late(deadline)) {
      return false;
    }
    copy_piece(step, begin, std::min(step.bytes, begin + piece));
  }
  return true;
}

bool copy_on_host(const CopyPlan& plan, const Deadline& deadline) {
  return std::all_of(plan.steps.begin(), plan.steps.end(),
                     [&](const Step& step) { return copy_on_host(step, deadline); });
}

}  // namespace llm_datadist
