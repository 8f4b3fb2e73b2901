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
constexpr int64_t kParallelBytes = 256 * 1024;
// Threads share the bytes in whole units, so that no two of them write to one cache line more than need be.
constexpr int64_t kUnitBytes = 4 * 1024;
// From this many bytes on, what is written is out of the cache before anybody reads it; but a range must have lines
// enough of its own for that to pay.
constexpr int64_t kStreamingBytes = 24 * 1024 * 1024;
constexpr int64_t kStreamingRange = 512;
// How far ahead of the copy memory is fetched, and how much of each range: the processor guesses the rest of it.
constexpr int64_t kAheadBytes = 8 * 1024;
constexpr int64_t kPrefetchBytes = 512;
// A copy with a deadline looks at the clock between pieces of this size (about a millisecond each).
constexpr int64_t kPieceBytes = 8 * 1024 * 1024;

// Bytes to copy in one piece.
struct Range {
  char* dst;
  const char* src;
  int64_t bytes;
};

// Walks the ranges of a step: its bases, their places, the spans of each place.
class Ranges {
 public:
  // Begins at byte `skip` of the step, counted in this order.
  Ranges(const Step& step, int64_t skip) : step_(step), base_(step.bases.begin()) {
    for (; skip >= bytes_of(*base_); ++base_) {
      skip -= bytes_of(*base_);
    }
    const int64_t place_bytes = step.lists[base_->spans].bytes;
    enter(skip / place_bytes);
    skip %= place_bytes;
    span_ = std::upper_bound(span_, end_, skip, [](int64_t byte, const Span& span) { return byte < span.before; }) - 1;
    column_ = skip - span_->before;
  }

  bool done() const { return base_ == step_.bases.end(); }

  Range get() const { return {dst_ + span_->dst + column_, src_ + span_->src + column_, span_->width - column_}; }

  // Goes on by no more than the bytes of the range that it stands at.
  void advance(int64_t bytes) {
    column_ += bytes;
    if (column_ < span_->width) {
      return;
    }
    column_ = 0;
    if (++span_ != end_) {
      return;
    }
    if (place_ + 1 < base_->height) {
      enter(place_ + 1);
    } else if (++base_ != step_.bases.end()) {
      enter(0);
    }
  }

 private:
  int64_t bytes_of(const Base& base) const { return step_.lists[base.spans].bytes * base.height; }

  void enter(int64_t place) {
    place_ = place;
    dst_ = base_->dst + place * base_->dst_pitch;
    src_ = base_->src + place * base_->src_pitch;
    const c10::ArrayRef<Span> spans = step_.spans_of(*base_);
    span_ = spans.begin();
    end_ = spans.end();
  }

  const Step& step_;
  const Base* base_;
  int64_t place_ = 0;
  char* dst_ = nullptr;
  const char* src_ = nullptr;
  const Span* span_ = nullptr;
  const Span* end_ = nullptr;
  int64_t column_ = 0;
};

void prefetch(const Range& range, bool dst_too) {
  for (int64_t at = 0; at < std::min(range.bytes, kPrefetchBytes); at += 64) {
    __builtin_prefetch(range.src + at);
    if (dst_too) {
      __builtin_prefetch(range.dst + at, 1);
    }
  }
}

// Copies bytes [begin, end) of a step. Returns false if the deadline passes first.
bool copy_part(const Step& step, int64_t begin, int64_t end, const Deadline& deadline) {
  const bool large = step.bytes >= kStreamingBytes;
  const auto streams = [large](const Range& range) { return large && range.bytes >= kStreamingRange; };
  Ranges now(step, begin);
  // Rows and separate tensors lie where the processor cannot guess.
  Ranges ahead = now;
  int64_t fetched = begin;
  int64_t next_look = begin;
  while (begin < end) {
    if (deadline && begin >= next_look) {
      if (Clock::now() >= *deadline) {
        return false;
      }
      next_look = begin + kPieceBytes;
    }
    Range range = now.get();
    const bool overlaps =
        step.in_order && !disjoint(extent_of(range.dst, range.bytes), extent_of(range.src, range.bytes));
    if (!overlaps) {
      range.bytes = std::min({range.bytes, end - begin, kPieceBytes});
    }
    while (!ahead.done() && fetched <= begin + std::max(range.bytes, kAheadBytes)) {
      const Range next = ahead.get();
      prefetch(next, !streams(next));
      fetched += next.bytes;
      ahead.advance(next.bytes);
    }
    if (overlaps) {
      std::memmove(range.dst, range.src, range.bytes);
    } else if (streams(range)) {
      copy_streaming(range.dst, range.src, range.bytes);
    } else {
      copy_cached(range.dst, range.src, range.bytes);
    }
    begin += range.bytes;
    now.advance(range.bytes);
  }
  if (large) {
    finish_streaming();
  }
  return true;
}

// Where a place begins, in bytes of the step. Places are counted through the bases.
int64_t byte_of(const Step& step, int64_t place) {
  int64_t bytes = 0;
  for (const Base& base : step.bases) {
    const int64_t places = std::min(place, base.height);
    bytes += places * step.lists[base.spans].bytes;
    place -= places;
  }
  return bytes;
}

}  // namespace

bool copy_on_host(const Step& step, const Deadline& deadline) {
  if (step.bytes < kParallelBytes) {
    return copy_part(step, 0, step.bytes, deadline);
  }
  std::atomic<bool> done{true};
  const auto copy = [&](int64_t begin, int64_t end) {
    if (begin < end && !copy_part(step, begin, end, deadline)) {
      done = false;
    }
  };
  if (step.in_order) {
    // Places are independent of one another, so they are what threads share.
    int64_t places = 0;
    for (const Base& base : step.bases) {
      places += base.height;
    }
    const int64_t places_worth_a_thread = std::max<int64_t>(1, kParallelBytes / 2 / (step.bytes / places));
    at::parallel_for(0, places, places_worth_a_thread,
                     [&](int64_t first, int64_t last) { copy(byte_of(step, first), byte_of(step, last)); });
  } else {
    const int64_t units = (step.bytes + kUnitBytes - 1) / kUnitBytes;
    at::parallel_for(0, units, kParallelBytes / 2 / kUnitBytes, [&](int64_t first, int64_t last) {
      copy(first * kUnitBytes, std::min(step.bytes, last * kUnitBytes));
    });
  }
  return done;
}

bool copy_on_host(const CopyPlan& plan, const Deadline& deadline) {
  return std::all_of(plan.steps.begin(), plan.steps.end(),
                     [&](const Step& step) { return copy_on_host(step, deadline); });
}

}  // namespace llm_datadist
