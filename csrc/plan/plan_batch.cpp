// SPDX-License-Identifier: Apache-2.0
#include "plan_batch.h"

#include <algorithm>
#include <utility>

#include "address_range.h"
#include "row_offset.h"
#include "schedule.h"

namespace llm_datadist {
namespace {

// Pairs whose rows lie alike, so that the same copies are made at every place of them.
struct Group {
  RowOffset row_offset;
  std::vector<ByteCopy> copies;  // dst positions from row 0 of dst; src positions likewise if there is a row offset
  int64_t bytes = 0;
  std::vector<const TensorPair*> pairs = {};

  bool fits(const TensorPair& pair, RowOffset offset) const {
    return alike(pair.dst.rows, pairs.front()->dst.rows) && alike(pair.src.rows, pairs.front()->src.rows) &&
           offset == row_offset;
  }

 private:
  static bool alike(const Rows& a, const Rows& b) {
    return a.batch_size == b.batch_size && a.row_bytes == b.row_bytes && a.batch_stride == b.batch_stride;
  }
};

void refuse_double_write(const CallContext& call, std::vector<ByteCopy>& copies) {
  const auto name = [](const ByteCopy& copy) {
    return c10::str(TensorName{"copies", copy.copy}, " into ", TensorName{"dst", copy.tensor});
  };
  if (const auto twice = find_double_write(copies)) {
    CHECK_CALL(call, false, name(twice->first), " and ", name(twice->second),
               " write the same bytes: the result would depend on the order of the copies");
  }
}

// Checks every copy against one pair of tensors.
Group checked_group(const CallContext& call, const std::vector<Slice>& slices, const TensorPair& pair,
                    RowOffset row_offset) {
  Group group{row_offset, {}};
  group.copies.reserve(slices.size());
  CallContext of_copy = call;
  for (const Slice& slice : slices) {
    of_copy.copy = static_cast<int64_t>(group.copies.size());
    ByteCopy copy = checked_copy(of_copy, slice, pair);
    copy.src += row_offset.value_or(0);
    copy.copy = of_copy.copy;
    group.copies.push_back(copy);
    group.bytes += copy.width;
  }
  refuse_double_write(call, group.copies);
  return group;
}

std::vector<Group> checked_groups(const CallContext& call, const std::vector<Slice>& slices,
                                  const std::vector<TensorPair>& pairs,
                                  const std::optional<std::vector<RowOffset>>& row_offsets) {
  std::vector<Group> groups;
  for (size_t index = 0; index < pairs.size(); ++index) {
    const TensorPair& pair = pairs[index];
    const RowOffset row_offset = row_offsets ? (*row_offsets)[index] : std::nullopt;
    // The last few groups are all there are in a real cache; one more than needed does no harm.
    const auto oldest = groups.rbegin() + std::min<ptrdiff_t>(4, groups.size());
    auto group = std::find_if(groups.rbegin(), oldest, [&](const Group& each) { return each.fits(pair, row_offset); });
    if (group == oldest) {
      groups.push_back(checked_group(call, slices, pair, row_offset));
      group = groups.rbegin();
    }
    group->pairs.push_back(&pair);
    check_places(call, pair, group->bytes);
  }
  return groups;
}

// Writes out the copies of every place, counted from row 0 of the first dst, for tensors that overlap in ways that no
// group has in common. The result is one group with no pairs: its copies are made once, from that row.
Group write_out(const CallContext& call, const std::vector<Group>& groups, const char* origin) {
  Group all{0, {}};
  for (const Group& group : groups) {
    for (const TensorPair* pair : group.pairs) {
      Step places;
      add_places(places, *pair, 0, 0, places.add_span_list(Span{0, 0, 1, 0}));
      for_each_place(places, [&](const Base& base, const char* dst, const char* src) {
        for (ByteCopy copy : group.copies) {
          copy.dst += distance(origin, dst);
          copy.src += distance(origin, src);
          copy.tensor = base.tensor;
          all.copies.push_back(copy);
        }
      });
    }
  }
  refuse_double_write(call, all.copies);
  return all;
}

// Adds scheduled copies to a step, at every place of a group.
void add_group(Step& step, const Group& group, const std::vector<Span>& spans, char* origin) {
  if (spans.empty()) {
    return;
  }
  const int64_t list = step.add_span_list(spans);
  for (const TensorPair* pair : group.pairs) {
    add_places(step, *pair, 0, -group.row_offset.value_or(0), list);
  }
  if (group.pairs.empty()) {
    step.add_base({origin, 0, origin, 0, 1, list, 0});
  }
}

}  // namespace

CopyPlan plan_batch(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, const at::Tensor& copies,
                    int64_t batch_dim) {
  const std::vector<Slice> slices = read_slices(call, copies);
  const TensorLists lists = checked_lists(call, dst, src);
  std::vector<TensorPair> pairs;
  pairs.reserve(lists.dst.size());
  for (size_t index = 0; index < lists.dst.size(); ++index) {
    pairs.push_back(checked_pair(call, lists, static_cast<int64_t>(index), batch_dim));
  }
  if (slices.empty()) {
    return {};
  }
  const TensorPair::Side& first = pairs.front().dst;
  auto* const origin = const_cast<char*>(first.rows.data);
  const auto row_offsets = llm_datadist::row_offsets(pairs);
  std::vector<Group> groups = checked_groups(call, slices, pairs, row_offsets);
  if (!row_offsets) {
    Group all = write_out(call, groups, origin);
    groups.clear();
    groups.push_back(std::move(all));
  }
  Step direct;
  Step staged;
  for (const Group& group : groups) {
    const Schedule order = schedule(group.copies, group.row_offset.has_value(), first.tensor->is_cpu());
    add_group(direct, group, order.direct, origin);
    add_group(staged, group, order.staged, origin);
    direct.order_matters = direct.order_matters || order.order_matters;
  }
  direct.count_bytes();
  staged.count_bytes();
  return make_plan(std::move(direct), std::move(staged), *first.tensor);
}

}  // namespace llm_datadist
