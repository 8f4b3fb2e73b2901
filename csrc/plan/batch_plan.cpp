// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "copy_plan.h"
#include "extent.h"
#include "grid.h"
#include "schedule.h"
#include "staging.h"
#include "tensor_pair.h"

namespace llm_datadist {
namespace {

// Pairs of tensors whose rows lie in the same way, so that the same spans are copied at every place of them.
struct Group {
  int64_t first_pair;
  Shift shift;
  std::vector<Move> moves;  // from row 0 of dst and of src
  int64_t bytes = 0;
};

// Sorts moves by what they write. Refuses two that write the same byte; `name` says of an index which copy that is.
template <typename Name>
void sort_by_dst(const Call& call, std::vector<Move>& moves, const Name& name) {
  if (const auto twice = find_double_write(moves)) {
    CHECK_CALL(call, false, name(twice->first), " and ", name(twice->second),
               " write the same bytes: the result would depend on the order of the copies");
  }
}

// Checks every copy against one pair of tensors.
Group checked_group(const Call& call, const std::vector<Slice>& slices, const TensorPair& pair, int64_t index,
                    Shift shift) {
  Group group{index, shift, {}};
  group.moves.reserve(slices.size());
  for (const Slice& slice : slices) {
    const auto copy = static_cast<int64_t>(group.moves.size());
    const int64_t width = checked_width({call.op, call.req_id, copy}, slice, pair.dst_item(), pair.dst_rows,
                                        pair.src_item(), pair.src_rows);
    group.moves.push_back({slice.dst_batch_index * pair.dst_rows.batch_stride + slice.offset,
                           slice.src_batch_index * pair.src_rows.batch_stride + slice.offset, width, copy});
  }
  sort_by_dst(call, group.moves,
              [&](int64_t copy) { return c10::str(Item{"copies", copy}, " into ", pair.dst_item()); });
  for (const Move& move : group.moves) {
    group.bytes += move.width;
  }
  return group;
}

// Every copy of every place as a move of its own, from row 0 of the first dst, for tensors that overlap in ways that
// no group has in common. The index of a move is that of its copy after all copies of the places before.
std::vector<Move> all_moves(const std::vector<TensorPair>& pairs, const std::vector<Group>& groups,
                            const std::vector<int64_t>& group_of) {
  std::vector<Move> moves;
  const char* const origin = pairs.front().to();
  for (size_t index = 0; index < pairs.size(); ++index) {
    const TensorPair& pair = pairs[index];
    Step places;
    append_places(places, pair, 0, 0, std::max(pair.dst_rows.row_bytes, pair.src_rows.row_bytes), 0);
    for (const Base& base : places.bases) {
      for (int64_t place = 0; place < base.height; ++place) {
        const int64_t dst = distance(origin, base.dst) + place * base.dst_pitch;
        const int64_t src = distance(origin, base.src) + place * base.src_pitch;
        const auto before = static_cast<int64_t>(moves.size());
        for (const Move& move : groups[group_of[index]].moves) {
          moves.push_back({dst + move.dst, src + move.src, move.width, before + move.index});
        }
      }
    }
  }
  return moves;
}

// Which copy of which tensor a move of all_moves is, printed as `copies[3] into dst[0]`.
std::string name_of(int64_t move, const std::vector<TensorPair>& pairs, int64_t copies) {
  size_t pair = 0;
  while (move >= pairs[pair].places() * copies) {
    move -= pairs[pair].places() * copies;
    ++pair;
  }
  return c10::str(Item{"copies", move % copies}, " into ", pairs[pair].dst_item());
}

void add_list(Step& step, const std::vector<Span>& spans) {
  SpanList list{static_cast<int64_t>(step.spans.size()), 0, 0, 0};
  step.spans.append(spans.begin(), spans.end());
  list.end = static_cast<int64_t>(step.spans.size());
  for (const Span& span : spans) {
    list.bytes += span.width;
    list.widest = std::max(list.widest, span.width);
  }
  step.lists.push_back(list);
}

}  // namespace

CopyPlan plan_batch(const Call& call, at::ITensorListRef dst_list, at::ITensorListRef src_list,
                    const at::Tensor& copies, int64_t batch_dim) {
  const Tensors dst = tensors_of(dst_list);
  const Tensors src = tensors_of(src_list);
  check_lists(call, dst, src);
  const std::vector<Slice> slices = read_slices(call, copies);
  materialize(dst);
  std::vector<TensorPair> pairs;
  pairs.reserve(dst.size());
  for (int64_t index = 0; index < static_cast<int64_t>(dst.size()); ++index) {
    pairs.push_back(checked_pair(call, dst, src, index, batch_dim));
  }
  CopyPlan plan;
  if (slices.empty()) {
    return plan;
  }

  const std::optional<std::vector<Shift>> shifts = independent_places(pairs);
  std::vector<Group> groups;
  std::vector<int64_t> group_of;
  for (size_t index = 0; index < pairs.size(); ++index) {
    const TensorPair& pair = pairs[index];
    const Shift shift = shifts ? (*shifts)[index] : std::nullopt;
    const auto alike = [&](const Group& group) {
      const TensorPair& first = pairs[group.first_pair];
      return pair.dst_rows == first.dst_rows && pair.src_rows == first.src_rows && shift == group.shift;
    };
    // The last few groups are all there are in a real cache, and one too many is no harm.
    const auto oldest = groups.rbegin() + std::min<ptrdiff_t>(4, groups.size());
    const auto found = std::find_if(groups.rbegin(), oldest, alike);
    group_of.push_back(found == oldest ? groups.size() : groups.rend() - found - 1);
    if (found == oldest) {
      groups.push_back(checked_group(call, slices, pair, index, shift));
    }
    check_room(call, pair, groups[group_of.back()].bytes);
  }

  if (!shifts) {
    groups = {Group{0, 0, all_moves(pairs, groups, group_of)}};
    sort_by_dst(call, groups[0].moves,
                [&](int64_t move) { return name_of(move, pairs, static_cast<int64_t>(slices.size())); });
  }
  Step direct;
  Step staged;
  for (Group& group : groups) {
    for (Move& move : group.moves) {
      move.src += group.shift.value_or(0);
    }
    const Schedule order = schedule(group.moves, group.shift.has_value(), dst.front().get().is_cpu());
    add_list(direct, order.direct);
    add_list(staged, order.staged);
    direct.in_order = direct.in_order || order.in_order;
  }
  for (Step* step : {&direct, &staged}) {
    for (size_t index = 0; shifts && index < pairs.size(); ++index) {
      const int64_t list = group_of[index];
      if (step->lists[list].bytes > 0) {
        append_places(*step, pairs[index], 0, -groups[list].shift.value_or(0), step->lists[list].widest, list);
      }
    }
    if (!shifts && step->lists[0].bytes > 0) {
      step->bases.push_back({pairs[0].to(), 0, pairs[0].to(), 0, 1, 0, Item{"dst"}});
    }
    for (const Base& base : step->bases) {
      step->bytes += step->lists[base.spans].bytes * base.height;
    }
  }

  if (staged.bytes > 0) {
    plan.staging = at::empty({staged.bytes}, dst.front().get().options().dtype(at::kByte));
    plan.steps.push_back(through_buffer(staged, plan.staging));
  }
  if (direct.bytes > 0) {
    plan.steps.push_back(std::move(direct));
  }
  if (staged.bytes > 0) {
    plan.steps.push_back(std::move(staged));
  }
  return plan;
}

}  // namespace llm_datadist
