// SPDX-License-Identifier: Apache-2.0
#include "copy_commands.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "acl_check.h"

namespace llm_datadist {
namespace {

// Limits of aclrtMemcpy2dAsync, from its documentation, and the size at which LLM-DataDist splits copies.
constexpr int64_t kMax2dWidth = 5'000'000;
constexpr int64_t kMax2dHeight = 5'242'880;
constexpr int64_t kMaxBytes = int64_t{4} << 30;
// Bounds the arrays of one batch. The gain per copy ends far below.
constexpr size_t kMaxBatch = 4096;

// The commands that the runtime accepted.
struct Issued {
  std::atomic<uint64_t> plain{0};
  std::atomic<uint64_t> strided{0};
  std::atomic<uint64_t> batch{0};
};

Issued issued;

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

// Whether the runtime does not support the command, as opposed to a failure: plain copies can be tried instead.
bool unsupported(aclError code) {
  return code == ACL_ERROR_INVALID_PARAM || code == ACL_ERROR_RT_PARAM_INVALID ||
         code == ACL_ERROR_RT_FEATURE_NOT_SUPPORT;
}

// Copies of `width` bytes, `height` of them, at equal distances.
struct StridedCopy {
  char* dst;
  int64_t dst_pitch;
  const char* src;
  int64_t src_pitch;
  int64_t width;
  int64_t height;
  TensorName name;
};

TensorName name_of(const Base& base) { return {"dst", base.tensor}; }

// Calls `use` with a strided copy over the places of a base, for every span of every base.
template <typename Use>
void for_each_over_places(const Step& step, const Use& use) {
  for (const Base& base : step.bases) {
    for (const Span& span : step.spans_of(base)) {
      use(StridedCopy{base.dst + span.dst_offset, base.dst_pitch, base.src + span.src_offset, base.src_pitch,
                      span.width, base.height, name_of(base)});
    }
  }
}

// The number of spans, from the first one on, that have its width and lie at equal distances on both sides.
int64_t run_length(c10::ArrayRef<Span> spans) {
  const auto follows = [&](size_t next) {
    const Span& last = spans[next - 1];
    return spans[next].width == last.width &&
           spans[next].dst_offset - last.dst_offset == spans[1].dst_offset - spans[0].dst_offset &&
           spans[next].src_offset - last.src_offset == spans[1].src_offset - spans[0].src_offset;
  };
  size_t length = 1;
  while (length < spans.size() && follows(length)) {
    ++length;
  }
  // A strided copy needs pitches of at least the width.
  const bool strided = length > 1 && spans[1].dst_offset - spans[0].dst_offset >= spans[0].width &&
                       spans[1].src_offset - spans[0].src_offset >= spans[0].width;
  return strided ? static_cast<int64_t>(length) : 1;
}

// The same copies, as strided ones over runs of spans at equal distances, place by place.
template <typename Use>
void for_each_over_spans(const Step& step, const Use& use) {
  for (const Base& base : step.bases) {
    for (int64_t place = 0; place < base.height; ++place) {
      char* const dst = base.dst + place * base.dst_pitch;
      const char* const src = base.src + place * base.src_pitch;
      for (c10::ArrayRef<Span> rest = step.spans_of(base); !rest.empty();) {
        const int64_t length = run_length(rest);
        const Span& first = rest.front();
        const Span& second = rest[length > 1 ? 1 : 0];
        use(StridedCopy{dst + first.dst_offset, second.dst_offset - first.dst_offset, src + first.src_offset,
                        second.src_offset - first.src_offset, first.width, length, name_of(base)});
        rest = rest.slice(length);
      }
    }
  }
}

int64_t count_runs(c10::ArrayRef<Span> spans) {
  int64_t count = 0;
  for (; !spans.empty(); spans = spans.slice(run_length(spans))) {
    ++count;
  }
  return count;
}

// Calls `use` with strided copies that make up a step, in an order that the step allows: over places or over spans,
// whichever are fewer.
template <typename Use>
void for_each_strided(const Step& step, const Use& use) {
  std::vector<int64_t> runs;  // of each span list
  for (size_t list = 0; !step.order_matters && list < step.span_lists.size(); ++list) {
    runs.push_back(count_runs(step.spans_of(step.span_lists[list])));
  }
  int64_t over_places = 0;
  int64_t over_spans = 0;
  for (const Base& base : step.bases) {
    over_places += static_cast<int64_t>(step.spans_of(base).size());
    over_spans += step.order_matters ? 0 : runs[base.span_list] * base.height;
  }
  if (step.order_matters || over_places <= over_spans) {
    for_each_over_places(step, use);
  } else {
    for_each_over_spans(step, use);
  }
}

struct Commands {
  const CallContext& call;
  aclrtMemcpyKind kind;
  int32_t device;
  aclrtStream stream;

  void strided(const StridedCopy& copy) const {
    if (copy.height == 1 || !as_2d(copy)) {
      for (int64_t row = 0; row < copy.height; ++row) {
        plain(copy.dst + row * copy.dst_pitch, copy.src + row * copy.src_pitch, copy.width, copy.name);
      }
    }
  }

  // Returns false if the runtime does not support strided copies, which it says at the first one.
  bool as_2d(const StridedCopy& copy) const {
    static auto* const memcpy_2d = optional_function<decltype(aclrtMemcpy2dAsync)>("aclrtMemcpy2dAsync");
    if (memcpy_2d == nullptr || copy.width > kMax2dWidth) {
      return false;
    }
    for (int64_t row = 0; row < copy.height; row += kMax2dHeight) {
      const int64_t height = std::min(copy.height - row, kMax2dHeight);
      const aclError code = memcpy_2d(copy.dst + row * copy.dst_pitch, copy.dst_pitch, copy.src + row * copy.src_pitch,
                                      copy.src_pitch, copy.width, height, kind, stream);
      if (row == 0 && unsupported(code)) {
        return false;
      }
      CHECK_ACL(call, code, "aclrtMemcpy2dAsync", name_of(kind), " of ", height, " x ", copy.width, " bytes to ",
                copy.name);
      ++issued.strided;
    }
    return true;
  }

  void plain(char* dst, const char* src, int64_t bytes, TensorName name) const {
    for (int64_t done = 0; done < bytes; done += kMaxBytes) {
      const int64_t part = std::min(bytes - done, kMaxBytes);
      CHECK_ACL(call, aclrtMemcpyAsync(dst + done, part, src + done, part, kind, stream), "aclrtMemcpyAsync",
                name_of(kind), " of ", part, " bytes to ", name);
      ++issued.plain;
    }
  }
};

// Collects copies and issues many in one command.
class Batches {
 public:
  explicit Batches(const Commands& commands) : commands_(commands) {}

  void add(const StridedCopy& copy) {
    for (int64_t row = 0; row < copy.height && !unsupported_; ++row) {
      dst_.push_back(copy.dst + row * copy.dst_pitch);
      src_.push_back(const_cast<char*>(copy.src) + row * copy.src_pitch);
      bytes_.push_back(copy.width);
      names_.push_back(copy.name);
      if (dst_.size() == kMaxBatch) {
        flush();
      }
    }
  }

  // Returns false if the runtime does not support batches, which it says at the first one.
  bool finish() {
    if (!dst_.empty() && !unsupported_) {
      flush();
    }
    return !unsupported_;
  }

 private:
  void flush() {
    static auto* const memcpy_batch = optional_function<decltype(aclrtMemcpyBatchAsync)>("aclrtMemcpyBatchAsync");
    if (memcpy_batch == nullptr) {
      unsupported_ = true;
      return;
    }
    const aclrtMemLocation on_device{static_cast<uint32_t>(commands_.device), ACL_MEM_LOCATION_TYPE_DEVICE};
    const aclrtMemLocation on_host{0, ACL_MEM_LOCATION_TYPE_HOST};
    const bool to_device = commands_.kind == ACL_MEMCPY_HOST_TO_DEVICE;
    aclrtMemcpyBatchAttr attribute{to_device ? on_device : on_host, to_device ? on_host : on_device, {}};
    size_t attribute_index = 0;
    size_t failed = SIZE_MAX;
    const aclError code = memcpy_batch(dst_.data(), bytes_.data(), src_.data(), bytes_.data(), dst_.size(), &attribute,
                                       &attribute_index, 1, &failed, commands_.stream);
    if (first_ && unsupported(code)) {
      unsupported_ = true;
      return;
    }
    const size_t at = failed < dst_.size() ? failed : 0;
    CHECK_ACL(commands_.call, code, "aclrtMemcpyBatchAsync", name_of(commands_.kind), " of ", dst_.size(),
              " copies, at ", bytes_[at], " bytes to ", names_[at], ",");
    ++issued.batch;
    first_ = false;
    dst_.clear();
    src_.clear();
    bytes_.clear();
    names_.clear();
  }

  const Commands& commands_;
  std::vector<void*> dst_;
  std::vector<void*> src_;
  std::vector<size_t> bytes_;
  std::vector<TensorName> names_;
  bool first_ = true;
  bool unsupported_ = false;
};

bool fits_a_batch(const Step& step) {
  return std::all_of(step.spans.begin(), step.spans.end(), [](const Span& span) { return span.width <= kMaxBytes; });
}

}  // namespace

void issue_commands(const CallContext& call, const Step& step, aclrtMemcpyKind kind, int32_t device,
                    aclrtStream stream) {
  const Commands commands{call, kind, device, stream};
  // The runtime takes batches only for copies between host and device.
  const bool single = step.bases.size() == 1 && step.spans_of(step.bases.front()).size() == 1;
  if (kind != ACL_MEMCPY_DEVICE_TO_DEVICE && !single && fits_a_batch(step)) {
    Batches batches(commands);
    for_each_over_places(step, [&](const StridedCopy& copy) { batches.add(copy); });
    if (batches.finish()) {
      return;
    }
  }
  for_each_strided(step, [&](const StridedCopy& copy) { commands.strided(copy); });
}

}  // namespace llm_datadist

// For llm_datadist_torch/_commands.py. No op, as an op without tensors belongs to no device.
extern "C" __attribute__((visibility("default"))) void llm_datadist_npu_commands(uint64_t counts[3]) {
  using llm_datadist::issued;
  counts[0] = issued.plain;
  counts[1] = issued.strided;
  counts[2] = issued.batch;
}
