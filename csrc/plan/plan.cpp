// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "overlap.h"

namespace llm_datadist {
namespace {

MoveRange append_moves(Phase& phase, c10::ArrayRef<Move> moves) {
  const auto begin = static_cast<int64_t>(phase.moves.size());
  phase.moves.append(moves.begin(), moves.end());
  MoveRange range{begin, static_cast<int64_t>(phase.moves.size()), 0};
  for (const Move& move : moves) {
    range.bytes += move.bytes;
  }
  return range;
}

// The moves of pairs whose rows lie alike: checked and ordered once for all of them.
struct Layout {
  Rows dst;
  Rows src;
  std::optional<int64_t> row_offset;
  MoveRange direct;
  MoveRange staged;

  bool fits(const TensorPair& pair, std::optional<int64_t> offset) const {
    return alike(dst, pair.dst.rows) && alike(src, pair.src.rows) && row_offset == offset;
  }

 private:
  static bool alike(const Rows& a, const Rows& b) {
    return a.batch_size == b.batch_size && a.bytes == b.bytes && a.stride == b.stride;
  }
};

// A range that a move writes or reads at one place.
struct Range {
  Address begin;
  Address end;
  int64_t tensor;
  int64_t copy;
};

// Refuses the call: two moves write the same byte.
void refuse(const CallContext& call, const Range& a, const Range& b) {
  const auto name = [](const Range& range) {
    return range.copy < 0 ? c10::str("the copy into ", TensorName{"dst", range.tensor})
                          : c10::str(TensorName{"copies", range.copy}, " into ", TensorName{"dst", range.tensor});
  };
  CHECK_CALL(call, false, name(a), " and ", name(b),
             " write the same bytes: the result would depend on the order of the copies");
}

// Checks every copy against a pair of tensors. Returns the moves, sorted by destination.
Moves checked_moves(const CallContext& call, const Copies& copies, const TensorPair& pair) {
  Moves moves;
  moves.reserve(copies.list.size());
  for (size_t index = 0; index < copies.list.size(); ++index) {
    moves.push_back(checked_move(call, copies, static_cast<int64_t>(index), pair));
  }
  if (const auto twice = sort_by_destination(moves)) {
    refuse(call, {0, 0, pair.index, twice->first.copy}, {0, 0, pair.index, twice->second.copy});
  }
  return moves;
}

// The dimensions before the batch, without those of size 1, and with neighbors that one pitch steps through made one.
struct Dim {
  int64_t size;
  int64_t dst_pitch;
  int64_t src_pitch;
};
using Dims = c10::SmallVector<Dim, 2>;

Dims leading_dims(const TensorPair& pair) {
  const at::Tensor& dst = *pair.dst.tensor;
  const at::Tensor& src = *pair.src.tensor;
  const auto itemsize = static_cast<int64_t>(dst.itemsize());
  Dims dims;
  for (int64_t dim = pair.batch_dim - 1; dim >= 0; --dim) {
    if (dst.size(dim) == 1) {
      continue;  // it may have any stride, whose bytes may not fit into 64 bits
    }
    const Dim added{dst.size(dim), dst.stride(dim) * itemsize, src.stride(dim) * itemsize};
    if (!dims.empty() && added.dst_pitch == dims.back().dst_pitch * dims.back().size &&
        added.src_pitch == dims.back().src_pitch * dims.back().size) {
      dims.back().size *= added.size;
    } else {
      dims.push_back(added);
    }
  }
  return dims;
}

// Adds the places of a pair. The largest leading dimension is stepped through by pitches, the others are written out.
void add_blocks(Phase& phase, const TensorPair& pair, const MoveRange& moves) {
  if (moves.begin == moves.end) {
    return;
  }
  Block block{pair.dst.rows.row_0, pair.src.rows.row_0, 0, 0, 1, moves, pair.index};
  if (pair.batch_dim == 0) {
    phase.blocks.push_back(block);
    phase.bytes += moves.bytes;
    return;
  }
  Dims dims = leading_dims(pair);
  int64_t written_out = 1;
  if (!dims.empty()) {
    auto* const largest =
        std::max_element(dims.begin(), dims.end(), [](const Dim& a, const Dim& b) { return a.size < b.size; });
    block.count = largest->size;
    block.dst_pitch = largest->dst_pitch;
    block.src_pitch = largest->src_pitch;
    dims.erase(largest);
    for (const Dim& dim : dims) {
      written_out *= dim.size;
    }
  }
  for (int64_t index = 0; index < written_out; ++index) {
    Block placed = block;
    int64_t rest = index;
    for (const Dim& dim : dims) {
      placed.dst += rest % dim.size * dim.dst_pitch;
      placed.src += rest % dim.size * dim.src_pitch;
      rest /= dim.size;
    }
    phase.blocks.push_back(placed);
  }
  phase.bytes += moves.bytes * block.count * written_out;
}

// Looks at every range of a phase: refuses a byte that is written twice. Returns whether one that is written is also
// read.
bool check_every_range(const CallContext& call, const Phase& phase) {
  std::vector<Range> writes;
  for_each_move(phase, [&](Address dst, Address, const Move& move, const Block& block) {
    writes.push_back({dst, dst + move.bytes, block.tensor, move.copy});
  });
  std::sort(writes.begin(), writes.end(), [](const Range& a, const Range& b) {
    return std::tie(a.begin, a.tensor, a.copy) < std::tie(b.begin, b.tensor, b.copy);
  });
  const auto twice =
      std::adjacent_find(writes.begin(), writes.end(), [](const Range& a, const Range& b) { return b.begin < a.end; });
  if (twice != writes.end()) {
    const auto [first, second] = std::minmax(twice[0], twice[1], [](const Range& a, const Range& b) {
      return std::tie(a.tensor, a.copy) < std::tie(b.tensor, b.copy);
    });
    refuse(call, first, second);
  }
  bool read = false;
  for_each_move(phase, [&](Address, Address src, const Move& move, const Block&) {
    const auto after =
        std::partition_point(writes.begin(), writes.end(), [&](const Range& range) { return range.end <= src; });
    read = read || (after != writes.end() && after->begin < src + move.bytes);
  });
  return read;
}

using TensorPairs = c10::SmallVector<TensorPair, 1>;

// Whether a block may have places of both pairs. On the host, a storage may be pinned while the next one is not, and a
// strided copy of an NPU's runtime reads or writes one of them.
bool may_share_block(const TensorPair& a, const TensorPair& b) {
  const auto apart = [](const at::Tensor& x, const at::Tensor& y) {
    return x.is_cpu() && x.storage().unsafeGetStorageImpl() != y.storage().unsafeGetStorageImpl();
  };
  return !apart(*a.dst.tensor, *b.dst.tensor) && !apart(*a.src.tensor, *b.src.tensor);
}

// Merges blocks of neighboring tensors that lie at equal distances into one, and places without gaps into one move.
void simplify(Phase& phase, const TensorPairs& pairs) {
  auto* last = phase.blocks.begin();
  for (const Block& block : phase.blocks) {
    const auto dst_step = static_cast<int64_t>(block.dst - last->dst);
    const auto src_step = static_cast<int64_t>(block.src - last->src);
    const int64_t dst_pitch = last->count == 1 ? dst_step : last->dst_pitch;
    const int64_t src_pitch = last->count == 1 ? src_step : last->src_pitch;
    if (&block != last && block.moves.begin == last->moves.begin && dst_pitch > 0 && src_pitch > 0 &&
        dst_step == dst_pitch * last->count && src_step == src_pitch * last->count &&
        (block.count == 1 || (block.dst_pitch == dst_pitch && block.src_pitch == src_pitch)) &&
        may_share_block(pairs[last->tensor], pairs[block.tensor])) {
      last->dst_pitch = dst_pitch;
      last->src_pitch = src_pitch;
      last->count += block.count;
    } else if (&block != last) {
      *++last = block;
    }
  }
  phase.blocks.erase(last + 1, phase.blocks.end());
  for (Block& block : phase.blocks) {
    if (block.count > 1 && block.moves.end - block.moves.begin == 1 && block.dst_pitch == block.moves.bytes &&
        block.src_pitch == block.moves.bytes) {
      Move move = phase.moves[block.moves.begin];
      move.bytes *= block.count;
      block.moves = append_moves(phase, move);
      block.count = 1;
    }
  }
}

// The plan that reads the sources of `staged` into a new buffer, then runs `direct`, then writes `staged`.
Plan in_phases(Phase&& direct, Phase&& staged, const TensorPairs& pairs) {
  Plan plan;
  if (staged.bytes > 0) {
    simplify(staged, pairs);
    plan.staging = at::empty({staged.bytes}, pairs.front().dst.tensor->options().dtype(at::kByte));
    plan.phases.push_back(gather_into(plan.staging, staged));
  }
  if (direct.bytes > 0) {
    simplify(direct, pairs);
    plan.phases.push_back(std::move(direct));
  }
  if (staged.bytes > 0) {
    plan.phases.push_back(std::move(staged));
  }
  return plan;
}

}  // namespace

Plan make_plan(const CallContext& call, at::ITensorListRef dst_list, at::ITensorListRef src_list, const Copies& copies,
               int64_t batch_dim) {
  const Tensors dst = tensors_of(dst_list);
  const Tensors src = tensors_of(src_list);
  check_lists(call, dst, src);
  for (const at::Tensor& tensor : dst) {
    tensor.storage().mutable_data();  // ends copy-on-write, which changes the address
  }
  TensorPairs pairs;
  pairs.reserve(dst.size());
  for (size_t index = 0; index < dst.size(); ++index) {
    pairs.push_back(checked_pair(call, dst[index], src[index], static_cast<int64_t>(index), batch_dim));
  }
  if (copies.list.empty()) {
    return {};
  }
  const Overlap overlap = find_overlap(pairs);
  Phase direct;
  Phase staged;
  direct.blocks.reserve(pairs.size());
  c10::SmallVector<Layout, 1> layouts;
  for (size_t index = 0; index < pairs.size(); ++index) {
    const TensorPair& pair = pairs[index];
    const std::optional<int64_t> row_offset = overlap.row_offsets.empty() ? std::nullopt : overlap.row_offsets[index];
    // The last few layouts are all there are in a real cache; one more than needed does no harm.
    const auto oldest = layouts.rbegin() + std::min<ptrdiff_t>(4, layouts.size());
    auto layout =
        std::find_if(layouts.rbegin(), oldest, [&](const Layout& each) { return each.fits(pair, row_offset); });
    if (layout == oldest) {
      const Order ordered = order(checked_moves(call, copies, pair), row_offset);
      layouts.push_back({pair.dst.rows, pair.src.rows, row_offset, append_moves(direct, ordered.direct),
                         append_moves(staged, ordered.staged)});
      direct.ordered = direct.ordered || ordered.ordered;
      layout = layouts.rbegin();
    }
    if (overlap.irregular) {
      check_leading_dims(call, pair, direct.moves_of(layout->direct));
    }
    add_blocks(direct, pair, layout->direct);
    add_blocks(staged, pair, layout->staged);
  }
  if (overlap.irregular && check_every_range(call, direct)) {
    std::swap(direct, staged);
  }
  return in_phases(std::move(direct), std::move(staged), pairs);
}

Phase gather_into(const at::Tensor& buffer, Phase& phase) {
  Phase gather = phase;
  gather.ordered = phase.ordered = false;
  auto position = reinterpret_cast<Address>(buffer.mutable_data_ptr());
  for (size_t index = 0; index < phase.blocks.size(); ++index) {
    Block& block = phase.blocks[index];
    gather.blocks[index].dst = block.src = position;
    gather.blocks[index].dst_pitch = block.src_pitch = block.moves.bytes;
    position += block.moves.bytes * block.count;
    int64_t before = 0;  // moves may be shared by blocks, which all set the same numbers
    for (int64_t move = block.moves.begin; move < block.moves.end; ++move) {
      gather.moves[move].dst = phase.moves[move].src = before;
      before += phase.moves[move].bytes;
    }
  }
  return gather;
}

}  // namespace llm_datadist
