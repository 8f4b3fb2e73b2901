// SPDX-License-Identifier: Apache-2.0
#include "host_copy.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "../plan/address_range.h"
#include "copy_bytes.h"

namespace llm_datadist {
namespace {

// torch wakes all intra-op threads for a parallel region and waits for every one, also for one that the scheduler has
// put aside in favor of another process: milliseconds. So smaller copies run in the calling thread, and the size from
// which threads pay grows with their number (docs/measurements.md).
constexpr int64_t kParallelBytes = 2 * 1024 * 1024;
constexpr int64_t kBytesPerThread = 128 * 1024;
// Threads share the bytes in units of this size, so that they rarely write to the same cache line.
constexpr int64_t kUnitBytes = 4 * 1024;
// Copies of this size or more use streaming stores, because their destination leaves the cache before it is read;
// ranges below kStreamingRange have too few whole lines for it.
constexpr int64_t kStreamingBytes = 24 * 1024 * 1024;
constexpr int64_t kStreamingRange = 512;
// How far ahead of the copy to prefetch, in bytes and in ranges (a power of two), and how much of each range: the
// hardware prefetcher fetches the rest.
constexpr int64_t kAheadBytes = 8 * 1024;
constexpr uint64_t kAheadRanges = 64;
constexpr int64_t kPrefetchBytes = 512;
// A copy with a deadline reads the clock between pieces of this size (about a millisecond each).
constexpr int64_t kPieceBytes = 8 * 1024 * 1024;

// Contiguous bytes to copy.
struct Range {
  char* dst;
  const char* src;
  int64_t bytes;
};

// Iterates over the ranges of a step: base by base, place by place, span by span.
class Ranges {
 public:
  // Starts at byte `skip` of the step, in this order.
  Ranges(const Step& step, int64_t skip) : step_(step), base_(step.bases.begin()) {
    for (; skip >= step.span_list_of(*base_).bytes * base_->height; ++base_) {
      skip -= step.span_list_of(*base_).bytes * base_->height;
    }
    enter_base();
    const int64_t place_bytes = step.span_list_of(*base_).bytes;
    const int64_t places = skip / place_bytes;
    dst_ += places * base_->dst_pitch;
    src_ += places * base_->src_pitch;
    places_ -= places;
    skip %= place_bytes;
    span_ =
        std::upper_bound(span_, end_, skip, [](int64_t byte, const Span& span) { return byte < span.bytes_before; }) -
        1;
    column_ = skip - span_->bytes_before;
  }

  // Takes the next range, at most `most` bytes of it. Must not be called after the last one.
  void take(Range& range, int64_t most) {
    range.dst = dst_ + span_->dst_offset + column_;
    range.src = src_ + span_->src_offset + column_;
    range.bytes = std::min(span_->width - column_, most);
    column_ += range.bytes;
    if (column_ == span_->width) {
      column_ = 0;
      if (++span_ == end_) {
        next_place();
      }
    }
  }

 private:
  void next_place() {
    if (--places_ > 0) {
      dst_ += base_->dst_pitch;
      src_ += base_->src_pitch;
      span_ = begin_;
    } else if (++base_ != step_.bases.end()) {
      enter_base();
    }
  }

  void enter_base() {
    dst_ = base_->dst;
    src_ = base_->src;
    places_ = base_->height;
    const c10::ArrayRef<Span> spans = step_.spans_of(*base_);
    begin_ = span_ = spans.begin();
    end_ = spans.end();
  }

  const Step& step_;
  const Base* base_;
  int64_t places_ = 0;  // left of the base, including the current one
  char* dst_ = nullptr;
  const char* src_ = nullptr;
  const Span* begin_ = nullptr;
  const Span* span_ = nullptr;
  const Span* end_ = nullptr;
  int64_t column_ = 0;  // bytes already taken of the span
};

void prefetch(const Range& range, bool dst_too) {
  for (int64_t at = 0; at < std::min(range.bytes, kPrefetchBytes); at += 64) {
    __builtin_prefetch(range.src + at);
    if (dst_too) {
      __builtin_prefetch(range.dst + at, 1);
    }
  }
}

// Copies ranges until a deadline.
class Copier {
 public:
  Copier(const Step& step, const Deadline& deadline)
      : deadline_(deadline), memmove_(step.order_matters), large_(step.bytes >= kStreamingBytes) {}

  bool streams(const Range& range) const { return large_ && range.bytes >= kStreamingRange; }

  // Returns false if the deadline passed before all bytes were copied.
  bool copy(const Range& range) {
    if (memmove_ && !disjoint(range_of(range.dst, range.bytes), range_of(range.src, range.bytes))) {
      if (!in_time(range.bytes)) {
        return false;
      }
      std::memmove(range.dst, range.src, range.bytes);
      return true;
    }
    const bool streamed = streams(range);
    for (int64_t at = 0; at < range.bytes; at += kPieceBytes) {
      const int64_t bytes = std::min(range.bytes - at, kPieceBytes);
      if (!in_time(bytes)) {
        return false;
      }
      if (streamed) {
        copy_streaming(range.dst + at, range.src + at, bytes);
      } else {
        copy_cached(range.dst + at, range.src + at, bytes);
      }
    }
    return true;
  }

  void finish() const {
    if (large_) {
      finish_streaming();
    }
  }

 private:
  // Whether the next `bytes` may be copied.
  bool in_time(int64_t bytes) {
    if (deadline_ && since_check_ >= kPieceBytes) {
      since_check_ = 0;
      if (Clock::now() >= *deadline_) {
        return false;
      }
    }
    since_check_ += bytes;
    return true;
  }

  const Deadline& deadline_;
  const bool memmove_;
  const bool large_;
  int64_t since_check_ = kPieceBytes;
};

// Copies bytes [begin, end) of a step. Returns false if the deadline passed first.
bool copy_part(const Step& step, int64_t begin, int64_t end, const Deadline& deadline) {
  Ranges ranges(step, begin);
  Copier copier(step, deadline);
  // A ring of ranges that are prefetched but not yet copied. The hardware prefetcher does not follow from one row or
  // tensor to the next.
  Range ring[kAheadRanges];
  uint64_t prefetched = 0;
  uint64_t copied = 0;
  int64_t ahead = 0;
  int64_t left = end - begin;
  do {
    while (left > 0 && ahead < kAheadBytes && prefetched - copied < kAheadRanges) {
      Range& range = ring[prefetched++ % kAheadRanges];
      ranges.take(range, left);
      prefetch(range, !copier.streams(range));
      left -= range.bytes;
      ahead += range.bytes;
    }
    const Range& range = ring[copied++ % kAheadRanges];
    ahead -= range.bytes;
    if (!copier.copy(range)) {
      return false;
    }
  } while (left > 0 || copied != prefetched);
  copier.finish();
  return true;
}

// The byte of the step at which a place begins. Places are numbered through all bases.
int64_t first_byte_of(const Step& step, int64_t place) {
  int64_t bytes = 0;
  for (const Base& base : step.bases) {
    const int64_t places = std::min(place, base.height);
    bytes += places * step.span_list_of(base).bytes;
    place -= places;
  }
  return bytes;
}

}  // namespace

bool copy_on_host(const Step& step, const Deadline& deadline) {
  if (step.bytes < kParallelBytes || step.bytes < kBytesPerThread * at::get_num_threads()) {
    return copy_part(step, 0, step.bytes, deadline);
  }
  std::atomic<bool> done{true};
  const auto copy = [&](int64_t begin, int64_t end) {
    if (begin < end && !copy_part(step, begin, end, deadline)) {
      done = false;
    }
  };
  if (step.order_matters) {
    // The threads share whole places, which are independent of one another.
    int64_t places = 0;
    for (const Base& base : step.bases) {
      places += base.height;
    }
    const int64_t places_worth_a_thread = std::max<int64_t>(1, kBytesPerThread / (step.bytes / places));
    at::parallel_for(0, places, places_worth_a_thread,
                     [&](int64_t first, int64_t last) { copy(first_byte_of(step, first), first_byte_of(step, last)); });
  } else {
    const int64_t units = (step.bytes + kUnitBytes - 1) / kUnitBytes;
    at::parallel_for(0, units, kBytesPerThread / kUnitBytes, [&](int64_t first, int64_t last) {
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
