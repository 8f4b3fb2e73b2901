// SPDX-License-Identifier: Apache-2.0
#include "host_copy.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace llm_datadist {
namespace {

// torch wakes all intra-op threads for a parallel region and waits for every one, also for one that the scheduler has
// put aside in favor of another process: milliseconds. So smaller copies run in the calling thread, and the size from
// which threads pay grows with their number (docs/measurements.md).
constexpr int64_t kParallelBytes = 2 * 1024 * 1024;
constexpr int64_t kBytesPerThread = 128 * 1024;
// Threads share the bytes in units of this size, so that they rarely write to the same cache line.
constexpr int64_t kUnitBytes = 4 * 1024;
// Phases of this size or more use streaming stores: their destination leaves the cache before anyone reads it. Ranges
// below kStreamingRange have too few whole lines for it.
constexpr int64_t kStreamingBytes = 24 * 1024 * 1024;
constexpr int64_t kStreamingRange = 512;
// A copy with a deadline reads the clock between pieces of this size (about a millisecond each).
constexpr int64_t kPieceBytes = 8 * 1024 * 1024;
// How many ranges ahead of the copy to prefetch, and how much of each. The processor's own prefetcher fetches the rest,
// but does not follow from one row or tensor to the next.
constexpr uint64_t kRangesAhead = 16;
constexpr int64_t kPrefetchBytes = 512;
constexpr int64_t kLineBytes = 64;

#if defined(__x86_64__)
// Streaming stores bypass the cache, so the destination is not read first. They are not ordered with other stores: a
// thread must call finish_streaming before it reports completion.
void copy_streaming(char* dst, const char* src, int64_t bytes) {
  // They need an aligned destination, and write whole lines.
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(dst) % kLineBytes);
  std::memcpy(dst, src, head);
  int64_t at = head;
  for (; at + kLineBytes <= bytes; at += kLineBytes) {
    for (int64_t part = at; part < at + kLineBytes; part += sizeof(__m128i)) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(dst + part), value);
    }
  }
  std::memcpy(dst + at, src + at, bytes - at);
}

void finish_streaming() { _mm_sfence(); }
#else
void copy_streaming(char* dst, const char* src, int64_t bytes) { std::memcpy(dst, src, bytes); }

void finish_streaming() {}
#endif

// Copies ranges in the order in which they are added, until a deadline; each when the next ones have been prefetched.
class Copier {
 public:
  Copier(const Phase& phase, const Deadline& deadline)
      : deadline_(deadline), streaming_(phase.bytes >= kStreamingBytes) {}

  // The functions return false if the deadline passed before all bytes were copied.
  bool add(Address dst, Address src, int64_t bytes) {
    const Range next{reinterpret_cast<char*>(dst), reinterpret_cast<const char*>(src), bytes};
    for (int64_t at = 0; at < std::min(bytes, kPrefetchBytes); at += kLineBytes) {
      __builtin_prefetch(next.src + at);
      if (!streaming_) {
        __builtin_prefetch(next.dst + at, 1);
      }
    }
    return copy(std::exchange(ahead_[added_++ % kRangesAhead], next));
  }

  bool finish() {
    for (uint64_t left = 0; left < kRangesAhead; ++left) {
      if (!copy(ahead_[added_++ % kRangesAhead])) {
        return false;
      }
    }
    finish_streaming();
    return true;
  }

 private:
  struct Range {
    char* dst;
    const char* src;
    int64_t bytes;
  };

  bool copy(const Range& range) {
    for (int64_t at = 0; at < range.bytes; at += kPieceBytes) {
      const int64_t piece = std::min(range.bytes - at, kPieceBytes);
      if (deadline_ && !in_time(piece)) {
        return false;
      }
      if (streaming_ && piece >= kStreamingRange) {
        copy_streaming(range.dst + at, range.src + at, piece);
      } else {
        std::memcpy(range.dst + at, range.src + at, piece);
      }
    }
    return true;
  }

  // Whether the next `bytes` may be copied.
  bool in_time(int64_t bytes) {
    if (since_check_ >= kPieceBytes) {
      since_check_ = 0;
      if (Clock::now() >= *deadline_) {
        return false;
      }
    }
    since_check_ += bytes;
    return true;
  }

  const Deadline& deadline_;
  const bool streaming_;
  int64_t since_check_ = kPieceBytes;
  Range ahead_[kRangesAhead] = {};
  uint64_t added_ = 0;
};

// Adds bytes [begin, end) of a phase, counted block by block, place by place, move by move. If the phase is ordered,
// adds the places that begin there, each whole.
bool add_part(Copier& copier, const Phase& phase, int64_t begin, int64_t end) {
  int64_t block_end = 0;
  for (const Block& block : phase.blocks) {
    const int64_t block_begin = block_end;
    const int64_t place_bytes = block.moves.bytes;
    block_end += place_bytes * block.count;
    if (block_end <= begin) {
      continue;
    }
    const int64_t skipped = std::max<int64_t>(0, begin - block_begin);
    int64_t place = (skipped + (phase.ordered ? place_bytes - 1 : 0)) / place_bytes;
    for (; place < block.count; ++place) {
      int64_t position = block_begin + place * place_bytes;
      if (position >= end) {
        return true;
      }
      const Address dst = block.dst + place * block.dst_pitch;
      const Address src = block.src + place * block.src_pitch;
      for (const Move& move : phase.moves_of(block.moves)) {
        const int64_t first = phase.ordered ? 0 : std::max<int64_t>(0, begin - position);
        const int64_t last = phase.ordered ? move.bytes : std::min(move.bytes, end - position);
        if (first < last && !copier.add(dst + move.dst + first, src + move.src + first, last - first)) {
          return false;
        }
        position += move.bytes;
      }
    }
  }
  return true;
}

bool copy_part(const Phase& phase, int64_t begin, int64_t end, const Deadline& deadline) {
  Copier copier(phase, deadline);
  return add_part(copier, phase, begin, end) && copier.finish();
}

}  // namespace

Clock::time_point deadline_after(int64_t timeout_ms) {
  return Clock::now() + std::chrono::milliseconds(std::clamp<int64_t>(timeout_ms, 0, INT32_MAX));
}

bool copy_on_host(const Phase& phase, const Deadline& deadline) {
  if (phase.bytes < kParallelBytes || phase.bytes < kBytesPerThread * at::get_num_threads()) {
    return copy_part(phase, 0, phase.bytes, deadline);
  }
  std::atomic<bool> done{true};
  const int64_t units = (phase.bytes + kUnitBytes - 1) / kUnitBytes;
  at::parallel_for(0, units, kBytesPerThread / kUnitBytes, [&](int64_t first, int64_t last) {
    if (!copy_part(phase, first * kUnitBytes, std::min(phase.bytes, last * kUnitBytes), deadline)) {
      done = false;
    }
  });
  return done;
}

}  // namespace llm_datadist
