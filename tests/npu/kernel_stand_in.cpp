// SPDX-License-Identifier: Apache-2.0
// Stands in for the functions that triton-ascend compiles from llm_datadist_torch/_native/kernel.py, as a binary of the
// simulated runtime (tests/ascend_sim/src/kernel.cpp). UNIT is the size of an element of the form of copy_pieces.
// The pieces of a program run last first: no piece may read what another one writes.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Head {
  const void* for_synchronisation[3];
  int64_t dst_base;
  int64_t src_base;
};

struct Arguments : Head {
  const int64_t* shares;
  const int64_t* bases;
  const int64_t* pieces;
  int32_t grid[3];
};

struct RowsArguments : Head {
  const int64_t* places;
  const int64_t* copies;
  int32_t* skipped;
  int64_t rows;
  int64_t columns;
  int64_t tiles;
  int64_t work;
  int32_t grid[3];
};

struct Copy {
  int64_t dst, src, bytes;
};

using Reach = void* (*)(const void* address, size_t bytes);

const int64_t* row(Reach reach, const int64_t* table, int64_t index, int64_t columns) {
  return static_cast<const int64_t*>(reach(table + index * columns, columns * sizeof(int64_t)));
}

template <typename A>
bool read(A& arguments, const void* from, unsigned block) {
  std::memcpy(&arguments, from, sizeof arguments);
  const auto& [first, second, third] = arguments.for_synchronisation;
  const auto& [x, y, z] = arguments.grid;
  return !first && !second && !third && block < static_cast<unsigned>(x) && y == 1 && z == 1;
}

int run(Reach reach, const std::vector<Copy>& copies, int64_t unit) {
  for (auto copy = copies.rbegin(); copy != copies.rend(); ++copy) {
    void* const dst = reach(reinterpret_cast<void*>(copy->dst), copy->bytes);
    const void* const src = reach(reinterpret_cast<void*>(copy->src), copy->bytes);
    if (!dst || !src || copy->dst % unit || copy->src % unit) return 1;
    std::memmove(dst, src, copy->bytes);
  }
  return 0;
}

constexpr int64_t kTile = 32'768;

}  // namespace

extern "C" int copy_rows(unsigned block, const void* arguments, Reach reach) {
  RowsArguments a;
  if (!read(a, arguments, block)) return 1;
  std::vector<Copy> copies;
  int32_t skipped = 0;
  for (int64_t item = block; item < a.work; item += a.grid[0]) {  // shared otherwise than by the kernel
    const int64_t at = item % a.tiles * kTile;
    const int64_t index = item / a.tiles % a.rows;
    const int64_t* const p = row(reach, a.places, item / a.tiles / a.rows, 12);
    const int64_t* const c = row(reach, a.copies, index, a.columns);
    if (!p || !c || (a.columns != 4 && a.columns != 5)) return 1;
    const int64_t src_offset = c[a.columns == 5 ? 4 : 2];
    const bool offsets = 0 <= c[2] && c[2] < p[9] && 0 <= src_offset && src_offset < p[11];
    const int64_t size = offsets && c[3] == -1 ? p[11] - src_offset : c[3];
    if (offsets && 0 <= c[0] && c[0] < p[8] && 0 <= c[1] && c[1] < p[10] && 0 < size && size <= p[9] - c[2] &&
        size <= p[11] - src_offset) {
      if (at < size) {
        copies.push_back({a.dst_base + p[0] + c[0] * p[1] + index * p[2] + c[2] * p[3] + at,
                          a.src_base + p[4] + c[1] * p[5] + index * p[6] + src_offset * p[7] + at,
                          std::min(size - at, kTile)});
      }
    } else if (item < a.tiles * a.rows && at == 0) {
      ++skipped;
    }
  }
  auto* const counter = static_cast<int32_t*>(reach(a.skipped, sizeof(int32_t)));
  if (!counter) return 1;
  *counter += skipped;
  return run(reach, copies, 1);
}

extern "C" int copy_pieces(unsigned block, const void* arguments, Reach reach) {
  Arguments a;
  if (!read(a, arguments, block)) return 1;
  const int64_t* const share = row(reach, a.shares, block, 3);
  if (!share) return 1;
  std::vector<Copy> copies;
  int64_t base = share[0];
  int64_t piece = share[1];
  for (int64_t done = 0; done < share[2]; ++done) {
    const int64_t* const place = row(reach, a.bases, base, 4);
    const int64_t* const span = row(reach, a.pieces, piece, 3);
    if (!place || !span || piece < place[2] || piece >= place[3] || span[2] <= 0 || span[2] * UNIT > kTile) return 1;
    copies.push_back(
        {a.dst_base + (place[0] + span[0]) * UNIT, a.src_base + (place[1] + span[1]) * UNIT, span[2] * UNIT});
    if (++piece == place[3]) {
      ++base;
      const int64_t* const next = done + 1 < share[2] ? row(reach, a.bases, base, 4) : place;
      if (!next) return 1;
      piece = next[2];
    }
  }
  return run(reach, copies, UNIT);
}
