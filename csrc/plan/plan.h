// SPDX-License-Identifier: Apache-2.0
//
// Note [Blocks and moves]
// A phase copies every move of a block at every place of the block. Example: two copies within a cache stacked as
// [3 tensors, 4 rows, 16 bytes], row 0 to row 2 and bytes [4, 12) of row 1 to row 3. The phase has one block and two
// moves:
//
//   block: dst = src = address of the cache, dst_pitch = src_pitch = 64 bytes, count = 3
//   moves: {dst 32, src  0, bytes 16}
//          {dst 52, src 20, bytes  8}
//
//               +0      +16     +32     +48      +64
//   place 0     | row 0 | row 1 | row 2 | row 3 |        move 0: row 0 -> row 2
//   place 1     | row 0 | row 1 | row 2 | row 3 |        move 1: part of row 1 -> the same part of row 3
//   place 2     | row 0 | row 1 | row 2 | row 3 |
//
// The product of places and moves (here 6 copies, 72 bytes) is never written out: 1,000 copies within 160 tensors are
// one block and 1,000 moves.

#pragma once

#include <type_traits>

#include "checks.h"

namespace llm_datadist {

// Moves [begin, end) of a phase, `bytes` bytes together.
struct MoveRange {
  int64_t begin;
  int64_t end;
  int64_t bytes;
};

// `count` places, the first at dst and src, each further one a pitch after the last.
struct Block {
  Address dst;
  Address src;
  int64_t dst_pitch;
  int64_t src_pitch;
  int64_t count;
  MoveRange moves;  // copied at every place
  int64_t tensor;   // index of the dst tensor, for messages
};

struct Phase {
  c10::SmallVector<Block, 4> blocks;
  Moves moves;
  int64_t bytes = 0;  // in all places
  // Places never depend on one another. If `ordered` is false, the moves of a place do not either: they may run in any
  // order, in pieces and in parallel. If it is true, the moves of a place must run in the order of their list.
  bool ordered = false;

  c10::ArrayRef<Move> moves_of(const MoveRange& range) const {
    return {moves.begin() + range.begin, moves.begin() + range.end};
  }
};

// Calls `use(dst, src, move, block)` for every move at every place.
template <typename Use>
void for_each_move(const Phase& phase, const Use& use) {
  for (const Block& block : phase.blocks) {
    for (int64_t place = 0; place < block.count; ++place) {
      for (const Move& move : phase.moves_of(block.moves)) {
        use(block.dst + place * block.dst_pitch + move.dst, block.src + place * block.src_pitch + move.src, move,
            block);
      }
    }
  }
}

// The work of one call: phases to run one after the other. All arguments have been checked. Every address lies inside
// its tensor or inside `staging`. No move overlaps its own source.
struct Plan {
  c10::SmallVector<Phase, 1> phases;
  at::Tensor staging;  // on the device of dst; defined only if moves are staged
};

// g++ 11.2 refuses c10::SmallVector where it has to find this out within a kernel.
static_assert(std::is_nothrow_move_constructible_v<Plan>);

// Checks a call and plans it. Gives lazily cloned (copy-on-write) destinations memory of their own.
//
// Raises:
//   ValueError: An argument is refused. Nothing has been written.
Plan make_plan(const CallContext& call, at::ITensorListRef dst, at::ITensorListRef src, const Copies& copies,
               int64_t batch_dim);

// Splits a phase in two at a buffer of `phase.bytes` bytes. Returns the phase that gathers the sources in the buffer,
// and changes `phase` into the one that copies from the buffer to the destinations.
Phase gather_into(const at::Tensor& buffer, Phase& phase);

}  // namespace llm_datadist
