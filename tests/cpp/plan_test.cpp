// SPDX-License-Identifier: Apache-2.0
//
// Unit tests of csrc/plan: which bases, spans, order and staging a call becomes. Prints each failed check; exits with
// the number of them.

#include <ATen/ATen.h>

#include <cstring>
#include <functional>
#include <iostream>
#include <random>

#include "../../csrc/plan/plan_batch.h"
#include "../../csrc/plan/plan_copy.h"

namespace {

using namespace llm_datadist;

int failures = 0;

#define EXPECT(condition)                                                     \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::cerr << __FILE__ << ':' << __LINE__ << ": " << #condition << '\n'; \
      ++failures;                                                             \
    }                                                                         \
  } while (false)

const CallContext kCall{"op", std::nullopt};

using Rows4 = std::vector<std::array<int64_t, 4>>;

CopyPlan plan(const std::vector<at::Tensor>& dst, const std::vector<at::Tensor>& src, const Slice& slice,
              int64_t batch_dim = 0) {
  return plan_copy(kCall, at::TensorList(dst), at::TensorList(src), slice, batch_dim);
}

CopyPlan plan(const std::vector<at::Tensor>& dst, const std::vector<at::Tensor>& src, const Rows4& rows,
              int64_t batch_dim = 0) {
  const at::Tensor copies = at::empty({static_cast<int64_t>(rows.size()), 4}, at::kLong);
  std::memcpy(copies.mutable_data_ptr(), rows.data(), rows.size() * sizeof rows[0]);
  return plan_batch(kCall, at::TensorList(dst), at::TensorList(src), copies, batch_dim);
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "";
}

at::Tensor bytes(at::IntArrayRef shape) { return at::randint(256, shape, at::kByte); }

bool is(const Span& span, int64_t dst_offset, int64_t src_offset, int64_t width, int64_t bytes_before) {
  return span.dst_offset == dst_offset && span.src_offset == src_offset && span.width == width &&
         span.bytes_before == bytes_before;
}

// The worked example of Note [Bases and spans].
void example_of_the_note() {
  const at::Tensor cache = bytes({3, 4, 16});
  const auto* const address = static_cast<const char*>(cache.const_data_ptr());
  const CopyPlan result = plan({cache}, {cache}, Rows4{{2, 0, 0, -1}, {3, 1, 4, 8}}, 1);
  EXPECT(result.steps.size() == 1);
  const Step& step = result.steps[0];
  EXPECT(step.bases.size() == 1 && step.spans.size() == 2 && step.bytes == 72 && !step.order_matters);
  const Base& base = step.bases[0];
  EXPECT(base.dst == address && base.src == address && base.dst_pitch == 64 && base.src_pitch == 64);
  EXPECT(base.height == 3);
  EXPECT(is(step.spans[0], 32, 0, 16, 0));
  EXPECT(is(step.spans[1], 52, 20, 8, 16));
}

void places_merge() {
  const at::Tensor buffer = bytes({6, 4, 16});
  const at::Tensor other = bytes({6, 4, 16});
  const CopyPlan views = plan(buffer.unbind(), other.unbind(), Slice{1, 2, 0, -1});
  EXPECT(views.steps[0].bases.size() == 1 && views.steps[0].bases[0].height == 6);
  const CopyPlan whole = plan({bytes({6, 1, 16})}, {bytes({6, 1, 16})}, Slice{0, 0, 0, -1}, 1);
  EXPECT(whole.steps[0].bases.size() == 1 && whole.steps[0].bases[0].height == 1);
  EXPECT(whole.steps[0].spans_of(whole.steps[0].bases[0])[0].width == 96);
  // Keys and values of different sizes, by turns: two lists, and a base for each list and place.
  const CopyPlan sizes = plan({bytes({2, 8}), bytes({2, 4}), bytes({2, 8}), bytes({2, 4})},
                              {bytes({2, 8}), bytes({2, 4}), bytes({2, 8}), bytes({2, 4})}, Slice{0, 1, 0, -1});
  EXPECT(sizes.steps[0].bytes == 24 && sizes.steps[0].span_lists.size() == 2);
}

void copies_merge_and_drop_out() {
  const at::Tensor cache = bytes({2, 8, 16});
  const at::Tensor other = bytes({2, 8, 16});
  const CopyPlan run = plan({cache}, {other}, Rows4{{3, 5, 0, -1}, {2, 4, 0, -1}, {0, 0, 0, 4}}, 1);
  EXPECT(run.steps[0].spans.size() == 2 && is(run.steps[0].spans[1], 32, 64, 32, 4));
  EXPECT(plan({cache}, {cache}, Slice{3, 3, 0, -1}, 1).steps.empty());
  EXPECT(plan({cache}, {cache}, Rows4{{3, 3, 0, -1}, {4, 4, 2, 3}}, 1).steps.empty());
  EXPECT(plan({cache}, {cache}, Rows4{}, 1).steps.empty());
}

void order_and_staging() {
  const at::Tensor cache = bytes({4, 16});
  const CopyPlan chain = plan({cache}, {cache}, Rows4{{1, 0, 0, -1}, {2, 1, 0, -1}});
  EXPECT(chain.steps.size() == 1 && chain.steps[0].order_matters && !chain.staging.defined());
  EXPECT(is(chain.steps[0].spans[0], 32, 16, 16, 0) && is(chain.steps[0].spans[1], 16, 0, 16, 16));
  // A cycle of three: one copy is read first and written last.
  const CopyPlan cycle = plan({cache}, {cache}, Rows4{{0, 1, 0, -1}, {1, 2, 0, -1}, {2, 0, 0, -1}});
  EXPECT(cycle.steps.size() == 3 && cycle.staging.numel() == 16);
  EXPECT(cycle.steps[0].bytes == 16 && cycle.steps[1].bytes == 32 && cycle.steps[2].bytes == 16);
  // A range that overlaps its own source is moved in one piece on the host.
  const at::Tensor buffer = bytes({32});
  const CopyPlan shifted =
      plan({buffer.narrow(0, 4, 16).view({1, 16})}, {buffer.narrow(0, 0, 16).view({1, 16})}, Slice{0, 0, 0, -1});
  EXPECT(shifted.steps.size() == 1 && shifted.steps[0].order_matters && !shifted.staging.defined());
}

void overlap_is_refused() {
  const std::vector<at::Tensor> pair{bytes({2, 16}), bytes({2, 16})};
  const std::vector<at::Tensor> traded{pair[1], pair[0]};
  EXPECT(refusal([&] { plan({pair[0], pair[0]}, pair, Slice{0, 1, 0, -1}); }) ==
         "op: the range to write in dst[1] overlaps the range to write in dst[0]: the result would depend on the order "
         "of the copies");
  EXPECT(refusal([&] { plan(pair, traded, Slice{0, 0, 0, -1}); }).find("overlaps the range to read in src[") !=
         std::string::npos);
  EXPECT(refusal([&] { plan(pair, traded, Slice{0, 1, 0, -1}); }).empty());
  // Adjacent tensors are places of one base, and are still told apart.
  const std::vector<at::Tensor> rows = bytes({3, 2, 16}).unbind();
  EXPECT(refusal([&] {
           plan({rows[1], rows[2]}, {rows[0], rows[1]}, Slice{0, 0, 0, -1});
         }).find("write in dst[0] overlaps the range to read in src[1]") != std::string::npos);
  EXPECT(
      refusal([&] { plan(pair, pair, Rows4{{0, 1, 8, 8}, {1, 0, 0, -1}, {0, 0, 0, 9}}); }) ==
      "op: copies[0] into dst[0] and copies[2] into dst[0] write the same bytes: the result would depend on the order "
      "of the copies");
}

void run(const CopyPlan& plan) {
  for (const Step& step : plan.steps) {
    for_each_place(step, [&](const Base& base, char* dst, const char* src) {
      for (const Span& span : step.spans_of(base)) {
        std::memmove(dst + span.dst_offset, src + span.src_offset, span.width);
      }
    });
  }
}

// Random copies within one buffer, seen as a stacked cache, as its layers interleaved, and as a list: the plan gives
// what reading everything before writing anything gives.
void random_batches() {
  std::mt19937 random(7);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
  for (int trial = 0; trial < 3000; ++trial) {
    const int64_t tensors = 1 + below(3);
    const int64_t batch = 1 + below(6);
    const int64_t row = 1 + below(8);
    const at::Tensor buffer = bytes({tensors, batch, row});
    const bool interleaved = below(2) == 1;
    const at::Tensor cache = interleaved ? buffer.view({batch, tensors, row}).transpose(0, 1) : buffer;
    Rows4 rows;
    at::Tensor written = at::zeros({batch, row}, at::kBool);
    at::Tensor expected = cache.clone();
    for (int64_t copy = below(2 * batch); copy >= 0; --copy) {
      const int64_t to = below(batch);
      const int64_t from = below(batch);
      const int64_t offset = below(row);
      const int64_t size = 1 + below(row - offset);
      if (written[to].narrow(0, offset, size).any().item<bool>()) {
        continue;
      }
      written[to].narrow(0, offset, size).fill_(true);
      expected.select(1, to).narrow(1, offset, size).copy_(cache.select(1, from).narrow(1, offset, size));
      rows.push_back({to, from, offset, size});
    }
    const bool stacked = below(2) == 1;
    const std::vector<at::Tensor> list = stacked ? std::vector<at::Tensor>{cache} : cache.unbind();
    run(plan(list, list, rows, stacked ? 1 : 0));
    EXPECT(cache.equal(expected));
  }
}

}  // namespace

int main() {
  for (const auto test : {example_of_the_note, places_merge, copies_merge_and_drop_out, order_and_staging,
                          overlap_is_refused, random_batches}) {
    test();
  }
  return failures;
}
