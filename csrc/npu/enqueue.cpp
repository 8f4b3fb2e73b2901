// SPDX-License-Identifier: Apache-2.0
#include "enqueue.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "acl_check.h"

namespace llm_datadist {
namespace {

// Limits of aclrtMemcpy2dAsync, from its documentation.
constexpr int64_t kMax2dWidth = 5'000'000;
constexpr int64_t kMax2dHeight = 5'242'880;
// The runtime writes a length of exactly 4 GiB as 0. This is far below.
constexpr int64_t kMaxBytes = int64_t{1} << 30;
// Bounds the arrays of one batch. The gain per copy ends far below.
constexpr size_t kMaxBatch = 4096;

// The calls that the runtime accepted.
struct Accepted {
  std::atomic<uint64_t> plain{0};
  std::atomic<uint64_t> strided{0};
  std::atomic<uint64_t> batch{0};
};

Accepted accepted;

// Looks up a function that some versions of CANN lack, at its first use, so that one build serves all of them.
template <typename Function>
Function* optional_function(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

const char* name_of(aclrtMemcpyKind kind) {
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_DEVICE:
      return "host to device";
    case ACL_MEMCPY_DEVICE_TO_HOST:
      return "device to host";
    default:
      return "device to device";
  }
}

// Whether the runtime does not support the call, as opposed to a failure: plain copies can be tried instead.
bool unsupported(aclError code) {
  return code == ACL_ERROR_INVALID_PARAM || code == ACL_ERROR_RT_PARAM_INVALID ||
         code == ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

// `height` copies of `width` bytes at equal distances.
struct StridedCopy {
  Address dst;
  int64_t dst_pitch;
  Address src;
  int64_t src_pitch;
  int64_t width;
  int64_t height;
  TensorName name;
};

// The number of moves, from the first one on, that have its width and lie at equal distances on both sides.
int64_t run_length(c10::ArrayRef<Move> moves) {
  size_t length = 1;
  while (length < moves.size() && moves[length].bytes == moves[0].bytes &&
         moves[length].dst - moves[length - 1].dst == moves[1].dst - moves[0].dst &&
         moves[length].src - moves[length - 1].src == moves[1].src - moves[0].src) {
    ++length;
  }
  return static_cast<int64_t>(length);
}

int64_t count_runs(c10::ArrayRef<Move> moves) {
  int64_t runs = 0;
  for (; !moves.empty(); moves = moves.slice(run_length(moves))) {
    ++runs;
  }
  return runs;
}

// Calls `use` with strided copies that make up a block, in an order that the phase allows: each over all places of a
// move, or over a run of moves at one place, whichever makes fewer.
template <typename Use>
void for_each_strided(const Phase& phase, const Block& block, const Use& use) {
  const c10::ArrayRef<Move> moves = phase.moves_of(block.moves);
  const TensorName name{"dst", block.tensor};
  if (phase.ordered || static_cast<int64_t>(moves.size()) <= count_runs(moves) * block.count) {
    for (const Move& move : moves) {
      use(StridedCopy{block.dst + move.dst, block.dst_pitch, block.src + move.src, block.src_pitch, move.bytes,
                      block.count, name});
    }
    return;
  }
  for (int64_t place = 0; place < block.count; ++place) {
    for (c10::ArrayRef<Move> rest = moves; !rest.empty();) {
      const int64_t length = run_length(rest);
      const Move& first = rest[0];
      const Move& second = rest[length > 1 ? 1 : 0];
      use(StridedCopy{block.dst + place * block.dst_pitch + first.dst, second.dst - first.dst,
                      block.src + place * block.src_pitch + first.src, second.src - first.src, first.bytes, length,
                      name});
      rest = rest.slice(length);
    }
  }
}

// Makes one call for each strided copy, or for each of its rows.
struct Calls {
  const CallContext& call;
  aclrtMemcpyKind kind;
  aclrtStream stream;

  void add(const StridedCopy& copy) const {
    if (copy.height == 1 || !as_2d(copy)) {
      for (int64_t row = 0; row < copy.height; ++row) {
        plain(copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width, copy.name);
      }
    }
  }

 private:
  // Returns false if the runtime does not support this strided copy, which it says at the first call.
  bool as_2d(const StridedCopy& copy) const {
    static auto* const memcpy_2d = optional_function<decltype(aclrtMemcpy2dAsync)>("aclrtMemcpy2dAsync");
    if (memcpy_2d == nullptr || copy.width > std::min({kMax2dWidth, copy.dst_pitch, copy.src_pitch})) {
      return false;
    }
    for (int64_t row = 0; row < copy.height; row += kMax2dHeight) {
      const int64_t height = std::min(copy.height - row, kMax2dHeight);
      const aclError code = memcpy_2d(reinterpret_cast<void*>(copy.dst + row * copy.dst_pitch), copy.dst_pitch,
                                      reinterpret_cast<const void*>(copy.src + row * copy.src_pitch), copy.src_pitch,
                                      copy.width, height, kind, stream);
      if (row == 0 && unsupported(code)) {
        return false;
      }
      CHECK_ACL(call, code, "aclrtMemcpy2dAsync", name_of(kind), " of ", height, " x ", copy.width, " bytes to ",
                copy.name);
      ++accepted.strided;
    }
    return true;
  }

  void plain(Address dst, Address src, int64_t bytes, TensorName name) const {
    for (int64_t done = 0; done < bytes; done += kMaxBytes) {
      const int64_t part = std::min(bytes - done, kMaxBytes);
      CHECK_ACL(call,
                aclrtMemcpyAsync(reinterpret_cast<void*>(dst + done), part, reinterpret_cast<const void*>(src + done),
                                 part, kind, stream),
                "aclrtMemcpyAsync", name_of(kind), " of ", part, " bytes to ", name);
      ++accepted.plain;
    }
  }
};

// Collects copies between host and device, and makes one call for many of them.
class Batches {
 public:
  Batches(const CallContext& call, aclrtMemcpyKind kind, int32_t device, aclrtStream stream)
      : call_(call), kind_(kind), device_(device), stream_(stream) {}

  void add(Address dst, Address src, const Move& move, const Block& block) {
    dst_.push_back(reinterpret_cast<void*>(dst));
    src_.push_back(reinterpret_cast<void*>(src));
    bytes_.push_back(move.bytes);
    names_.push_back({"dst", block.tensor});
    if (dst_.size() == kMaxBatch) {
      flush();
    }
  }

  // Returns false if the runtime does not support batches, which it says at the first one.
  bool finish() {
    flush();
    return !unsupported_;
  }

 private:
  void flush() {
    static auto* const memcpy_batch = optional_function<decltype(aclrtMemcpyBatchAsync)>("aclrtMemcpyBatchAsync");
    unsupported_ = unsupported_ || memcpy_batch == nullptr;
    if (!unsupported_ && !dst_.empty()) {
      const aclrtMemLocation on_device{static_cast<uint32_t>(device_), ACL_MEM_LOCATION_TYPE_DEVICE};
      const aclrtMemLocation on_host{0, ACL_MEM_LOCATION_TYPE_HOST};
      const bool to_device = kind_ == ACL_MEMCPY_HOST_TO_DEVICE;
      aclrtMemcpyBatchAttr attribute{to_device ? on_device : on_host, to_device ? on_host : on_device, {}};
      size_t attribute_index = 0;
      size_t failed = SIZE_MAX;
      const aclError code = memcpy_batch(dst_.data(), bytes_.data(), src_.data(), bytes_.data(), dst_.size(),
                                         &attribute, &attribute_index, 1, &failed, stream_);
      unsupported_ = first_ && unsupported(code);
      if (!unsupported_) {
        const size_t at = failed < dst_.size() ? failed : 0;
        CHECK_ACL(call_, code, "aclrtMemcpyBatchAsync", name_of(kind_), " of ", dst_.size(), " copies, at ", bytes_[at],
                  " bytes to ", names_[at], ",");
        ++accepted.batch;
        first_ = false;
      }
    }
    dst_.clear();
    src_.clear();
    bytes_.clear();
    names_.clear();
  }

  const CallContext& call_;
  const aclrtMemcpyKind kind_;
  const int32_t device_;
  const aclrtStream stream_;
  std::vector<void*> dst_;
  std::vector<void*> src_;
  std::vector<size_t> bytes_;
  std::vector<TensorName> names_;
  bool first_ = true;
  bool unsupported_ = false;
};

// Whether one call for many copies pays, and none of them is too long for it.
bool suits_a_batch(const Phase& phase, aclrtMemcpyKind kind) {
  const bool single = phase.blocks.size() == 1 && phase.blocks[0].moves.end - phase.blocks[0].moves.begin == 1;
  // The runtime takes batches only for copies between host and device.
  return kind != ACL_MEMCPY_DEVICE_TO_DEVICE && !single &&
         std::all_of(phase.moves.begin(), phase.moves.end(), [](const Move& move) { return move.bytes <= kMaxBytes; });
}

}  // namespace

void enqueue(const CallContext& call, const Phase& phase, aclrtMemcpyKind kind, int32_t device, aclrtStream stream) {
  if (suits_a_batch(phase, kind)) {
    Batches batches(call, kind, device, stream);
    for_each_move(phase, [&](Address dst, Address src, const Move& move, const Block& block) {
      batches.add(dst, src, move, block);
    });
    if (batches.finish()) {
      return;
    }
  }
  const Calls calls{call, kind, stream};
  for (const Block& block : phase.blocks) {
    for_each_strided(phase, block, [&](const StridedCopy& copy) { calls.add(copy); });
  }
}

}  // namespace llm_datadist

// For llm_datadist_torch/_native/counters.py. No op, as an op without tensors belongs to no device.
extern "C" __attribute__((visibility("default"))) void llm_datadist_npu_calls(uint64_t counts[3]) {
  using llm_datadist::accepted;
  counts[0] = accepted.plain;
  counts[1] = accepted.strided;
  counts[2] = accepted.batch;
}
