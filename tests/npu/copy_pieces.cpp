// SPDX-License-Identifier: Apache-2.0
// Stands in for the kernel that triton-ascend compiles from llm_datadist_torch/_native/kernel.py, as a binary of the
// simulated runtime (tests/ascend_sim/src/kernel_api.cpp). UNIT is the size of an element of the form. The pieces of a
// program run last first: no piece may read what another one writes.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Arguments {
  const void* for_synchronisation[3];
  int64_t dst_base;
  int64_t src_base;
  const int64_t* shares;
  const int64_t* bases;
  const int64_t* pieces;
  int32_t grid[3];
};

using Reach = void* (*)(const void* address, size_t bytes);

const int64_t* row(Reach reach, const int64_t* table, int64_t index, int64_t columns) {
  return static_cast<const int64_t*>(reach(table + index * columns, columns * sizeof(int64_t)));
}

}  // namespace

extern "C" int copy_pieces(unsigned block, const void* arguments, Reach reach) {
  Arguments a;
  std::memcpy(&a, arguments, sizeof a);
  if (a.for_synchronisation[0] || a.for_synchronisation[1] || a.for_synchronisation[2]) return 1;
  if (block >= static_cast<unsigned>(a.grid[0]) || a.grid[1] != 1 || a.grid[2] != 1) return 1;
  const int64_t* const share = row(reach, a.shares, block, 3);
  if (!share) return 1;
  struct Copy {
    int64_t dst, src, bytes;
  };
  std::vector<Copy> copies;
  int64_t base = share[0];
  int64_t piece = share[1];
  for (int64_t done = 0; done < share[2]; ++done) {
    const int64_t* const place = row(reach, a.bases, base, 4);
    const int64_t* const span = row(reach, a.pieces, piece, 3);
    if (!place || !span || piece < place[2] || piece >= place[3] || span[2] <= 0 || span[2] * UNIT > 32'768) return 1;
    copies.push_back(
        {a.dst_base + (place[0] + span[0]) * UNIT, a.src_base + (place[1] + span[1]) * UNIT, span[2] * UNIT});
    if (++piece == place[3]) {
      ++base;
      const int64_t* const next = done + 1 < share[2] ? row(reach, a.bases, base, 4) : place;
      if (!next) return 1;
      piece = next[2];
    }
  }
  for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
    void* const dst = reach(reinterpret_cast<void*>(copy->dst), copy->bytes);
    const void* const src = reach(reinterpret_cast<void*>(copy->src), copy->bytes);
    if (!dst || !src || copy->dst % UNIT || copy->src % UNIT) return 1;
    std::memmove(dst, src, copy->bytes);
  }
  return 0;
}
