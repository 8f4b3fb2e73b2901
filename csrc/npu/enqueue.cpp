// SPDX-License-Identifier: Apache-2.0
//
// Note [Calls and tasks]
// A call of the runtime is not what a device does: the device runs tasks.
// - A strided copy between host and device is one call and one task.
// - A strided copy within the device is one call, but a task for each row. It saves calls, not tasks.
// - A batch is one call. On most chips the runtime makes a task for each of its copies, and asks for attributes of each
//   address. So only copies that are in no strided copy are batched.
// A stream takes about 2,000 tasks. Then the thread that submits, here that of torch_npu's queue, waits for the device.

#include "enqueue.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "acl_check.h"
#include "device_kernel.h"

namespace llm_datadist {
namespace {

// Limits of aclrtMemcpy2dAsync: the width is from its documentation, the height is what the driver puts in one task.
constexpr int64_t kMax2dWidth = 5'000'000;
constexpr int64_t kMax2dHeight = 32'768;
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

// A function that some versions of CANN lack, or have for some directions alone. It is looked up at its first use, so
// that one build serves all of them. The runtime logs every refusal as an error, so a refusal is remembered.
template <typename Signature>
class OptionalFunction {
 public:
  explicit OptionalFunction(const char* name)
      : name_(name), function_(reinterpret_cast<Signature*>(dlsym(RTLD_DEFAULT, name))) {}

  Signature* serving(aclrtMemcpyKind kind) const { return refused_[kind] ? nullptr : function_; }

  // Whether the code says that the runtime does not support this kind of copy, as opposed to a failure.
  bool refuses(aclrtMemcpyKind kind, aclError code) {
    if (code != ACL_ERROR_INVALID_PARAM && code != ACL_ERROR_RT_FEATURE_NOT_SUPPORT) {
      return false;
    }
    if (!refused_[kind].exchange(true)) {
      TORCH_WARN("llm_datadist: this runtime does not support ", name_, " ", name_of(kind), " (code ", code,
                 "); it is not called again, and more calls are made instead");
    }
    return true;
  }

 private:
  const char* const name_;
  Signature* const function_;
  std::atomic<bool> refused_[ACL_MEMCPY_DEVICE_TO_DEVICE + 1] = {};
};

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

// Makes the calls for the strided copies of a phase: one for each, where the runtime can. Single copies within the
// device are called for one by one, as they come. Those between host and device, whose order does not matter, are
// collected for batches.
class Calls {
 public:
  Calls(const CallContext& call, aclrtMemcpyKind kind, int32_t device, aclrtStream stream)
      : call_(call), kind_(kind), device_(device), stream_(stream) {}

  void add(const StridedCopy& copy) {
    const int64_t done = strided(copy);
    for (int64_t row = done; row < copy.height; ++row) {
      single(copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width, copy.name);
    }
  }

  void finish() {
    if (dst_.size() < 2 || !batch()) {
      for (size_t index = 0; index < dst_.size(); ++index) {
        plain(dst_[index], src_[index], bytes_[index], names_[index]);
      }
    }
    dst_.clear();
    src_.clear();
    bytes_.clear();
    names_.clear();
  }

 private:
  // Copies rows with aclrtMemcpy2dAsync, if it takes them. Returns how many: all of them or none.
  int64_t strided(const StridedCopy& copy) {
    static OptionalFunction<decltype(aclrtMemcpy2dAsync)> function("aclrtMemcpy2dAsync");
    auto* const memcpy_2d = function.serving(kind_);
    if (copy.height == 1 || memcpy_2d == nullptr ||
        copy.width > std::min({kMax2dWidth, copy.dst_pitch, copy.src_pitch})) {
      return 0;
    }
    for (int64_t row = 0; row < copy.height; row += kMax2dHeight) {
      const int64_t height = std::min(copy.height - row, kMax2dHeight);
      const aclError code = memcpy_2d(reinterpret_cast<void*>(copy.dst + row * copy.dst_pitch), copy.dst_pitch,
                                      reinterpret_cast<const void*>(copy.src + row * copy.src_pitch), copy.src_pitch,
                                      copy.width, height, kind_, stream_);
      // A refused parameter concerns this copy alone: rows in several allocations.
      if (row == 0 && (code == ACL_ERROR_RT_PARAM_INVALID || function.refuses(kind_, code))) {
        return 0;
      }
      CHECK_ACL(call_, code, "aclrtMemcpy2dAsync", name_of(kind_), " of ", height, " x ", copy.width, " bytes to ",
                copy.name);
      ++accepted.strided;
    }
    return copy.height;
  }

  void single(Address dst, Address src, int64_t bytes, TensorName name) {
    if (kind_ == ACL_MEMCPY_DEVICE_TO_DEVICE || bytes > kMaxBytes) {
      for (int64_t done = 0; done < bytes; done += kMaxBytes) {
        plain(reinterpret_cast<void*>(dst + done), reinterpret_cast<void*>(src + done),
              std::min(bytes - done, kMaxBytes), name);
      }
      return;
    }
    dst_.push_back(reinterpret_cast<void*>(dst));
    src_.push_back(reinterpret_cast<void*>(src));
    bytes_.push_back(bytes);
    names_.push_back(name);
    if (dst_.size() == kMaxBatch) {
      finish();
    }
  }

  // Copies what has been collected with aclrtMemcpyBatchAsync. Returns false if the runtime does not support that.
  bool batch() {
    static OptionalFunction<decltype(aclrtMemcpyBatchAsync)> function("aclrtMemcpyBatchAsync");
    auto* const memcpy_batch = function.serving(kind_);
    if (memcpy_batch == nullptr) {
      return false;
    }
    const aclrtMemLocation on_device{static_cast<uint32_t>(device_), ACL_MEM_LOCATION_TYPE_DEVICE};
    const aclrtMemLocation on_host{0, ACL_MEM_LOCATION_TYPE_HOST};
    const bool to_device = kind_ == ACL_MEMCPY_HOST_TO_DEVICE;
    aclrtMemcpyBatchAttr attribute{to_device ? on_device : on_host, to_device ? on_host : on_device, {}};
    size_t attribute_index = 0;
    size_t failed = SIZE_MAX;
    const aclError code = memcpy_batch(dst_.data(), bytes_.data(), src_.data(), bytes_.data(), dst_.size(), &attribute,
                                       &attribute_index, 1, &failed, stream_);
    if (function.refuses(kind_, code)) {
      return false;
    }
    const size_t at = failed < dst_.size() ? failed : 0;
    CHECK_ACL(call_, code, "aclrtMemcpyBatchAsync", name_of(kind_), " of ", dst_.size(), " copies, at ", bytes_[at],
              " bytes to ", names_[at], ",");
    ++accepted.batch;
    return true;
  }

  void plain(void* dst, const void* src, size_t bytes, TensorName name) const {
    CHECK_ACL(call_, aclrtMemcpyAsync(dst, bytes, src, bytes, kind_, stream_), "aclrtMemcpyAsync", name_of(kind_),
              " of ", bytes, " bytes to ", name);
    ++accepted.plain;
  }

  const CallContext& call_;
  const aclrtMemcpyKind kind_;
  const int32_t device_;
  const aclrtStream stream_;
  // Single copies between host and device, for the next batch.
  std::vector<void*> dst_;
  std::vector<void*> src_;
  std::vector<size_t> bytes_;
  std::vector<TensorName> names_;
};

}  // namespace

void enqueue(const CallContext& call, const Phase& phase, aclrtMemcpyKind kind, int32_t device, aclrtStream stream) {
  Calls calls(call, kind, device, stream);
  for (const Block& block : phase.blocks) {
    for_each_strided(phase, block, [&](const StridedCopy& copy) { calls.add(copy); });
  }
  calls.finish();
}

}  // namespace llm_datadist

// For llm_datadist_torch/_native/counters.py. No op, as an op without tensors belongs to no device.
extern "C" __attribute__((visibility("default"))) void llm_datadist_npu_calls(uint64_t counts[4]) {
  using llm_datadist::accepted;
  counts[0] = accepted.plain;
  counts[1] = accepted.strided;
  counts[2] = accepted.batch;
  counts[3] = llm_datadist::accepted_launches();
}
