// SPDX-License-Identifier: Apache-2.0
#include "order.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace llm_datadist {
namespace {

// The moves [begin, end) that write into the source of one move.
struct Writers {
  int64_t begin;
  int64_t end;
};

// Appends a move, merged into the last one where it continues it, if the merged move keeps its source and its
// destination apart.
void append(Moves& moves, const Move& move, std::optional<int64_t> row_offset) {
  if (!moves.empty()) {
    Move& last = moves.back();
    const int64_t bytes = last.bytes + move.bytes;
    if (last.dst + last.bytes == move.dst && last.src + last.bytes == move.src &&
        (!row_offset || std::abs(move.dst - move.src - *row_offset) >= bytes)) {
      last.bytes = bytes;
      return;
    }
  }
  moves.push_back(move);
}

// Orders moves by depth-first search. The graph has an edge from each move to every other one that writes into its
// source: the writer must come later. Where the search meets its own path (a cycle), no order is right. The move that
// closes the cycle is staged then: it reads before all others, so it has no edges any more.
class Orderer {
 public:
  // The positions of the moves' sources count from row 0 of the destination.
  explicit Orderer(const Moves& moves) : moves_(moves), state_(moves.size(), State::kNew), staged_(moves.size(), 0) {
    for (const Move& move : moves) {
      const auto begin = std::partition_point(moves.begin(), moves.end(),
                                              [&](const Move& other) { return other.dst + other.bytes <= move.src; });
      const auto end = std::partition_point(begin, moves.end(),
                                            [&](const Move& other) { return other.dst < move.src + move.bytes; });
      writers_.push_back({begin - moves.begin(), end - moves.begin()});
    }
  }

  // Stages what no order helps: a move that overwrites its own source. Where sources have very many writers, which
  // bounds the time of the search and does not happen in caches, it stages every move whose source is written.
  void stage_hopeless() {
    constexpr int64_t kWritersPerMove = 16;
    int64_t edges = 0;
    for (const Writers& writers : writers_) {
      edges += writers.end - writers.begin;
    }
    const bool too_many = edges > kWritersPerMove * static_cast<int64_t>(moves_.size());
    for (size_t move = 0; move < moves_.size(); ++move) {
      const auto& [begin, end] = writers_[move];
      const auto self = static_cast<int64_t>(move);
      staged_[move] = (begin <= self && self < end) || (too_many && begin < end);
    }
  }

  // The search finishes a move after all that must come later, so the order is the reverse of that of finishing.
  std::vector<int64_t> search() {
    std::vector<int64_t> finished;
    finished.reserve(moves_.size());
    std::vector<Visit> path;
    for (auto root = static_cast<int64_t>(moves_.size()) - 1; root >= 0; --root) {
      enter(root, path);
      while (!path.empty()) {
        Visit& visit = path.back();
        const int64_t move = visit.move;
        if (staged_[move] || visit.next_writer == writers_[move].end) {
          state_[move] = State::kFinished;
          finished.push_back(move);
          path.pop_back();
          continue;
        }
        const int64_t writer = visit.next_writer++;
        if (state_[writer] == State::kOnPath) {
          staged_[move] = 1;
        } else {
          enter(writer, path);
        }
      }
    }
    std::reverse(finished.begin(), finished.end());
    return finished;
  }

  bool staged(int64_t move) const { return staged_[move] != 0; }

  // Whether a move that is not staged reads what another one writes.
  bool order_matters() const {
    for (size_t move = 0; move < moves_.size(); ++move) {
      for (int64_t writer = writers_[move].begin; staged_[move] == 0 && writer < writers_[move].end; ++writer) {
        if (staged_[writer] == 0) {
          return true;
        }
      }
    }
    return false;
  }

 private:
  enum class State : char { kNew, kOnPath, kFinished };

  struct Visit {
    int64_t move;
    int64_t next_writer;
  };

  void enter(int64_t move, std::vector<Visit>& path) {
    if (state_[move] == State::kNew) {
      state_[move] = State::kOnPath;
      path.push_back({move, writers_[move].begin});
    }
  }

  const Moves& moves_;
  std::vector<Writers> writers_;
  std::vector<State> state_;
  std::vector<char> staged_;
};

}  // namespace

std::optional<std::pair<Move, Move>> sort_by_destination(Moves& moves) {
  const auto by_dst = [](const Move& a, const Move& b) { return a.dst < b.dst; };
  if (!std::is_sorted(moves.begin(), moves.end(), by_dst)) {
    std::sort(moves.begin(), moves.end(), by_dst);
  }
  const auto* const twice = std::adjacent_find(moves.begin(), moves.end(),
                                               [](const Move& a, const Move& b) { return b.dst < a.dst + a.bytes; });
  if (twice == moves.end()) {
    return std::nullopt;
  }
  return std::pair<Move, Move>(
      std::minmax(twice[0], twice[1], [](const Move& a, const Move& b) { return a.copy < b.copy; }));
}

Order order(const Moves& moves, std::optional<int64_t> row_offset) {
  Order result;
  const int64_t begin = moves.front().dst;
  const int64_t end = moves.back().dst + moves.back().bytes;
  const int64_t offset = row_offset.value_or(0);
  const bool apart = !row_offset || std::all_of(moves.begin(), moves.end(), [&](const Move& move) {
    return move.src + offset >= end || move.src + offset + move.bytes <= begin;
  });
  if (apart) {
    for (const Move& move : moves) {
      append(result.direct, move, std::nullopt);
    }
    return result;
  }
  Moves shifted;  // sources counted from row 0 of the destination, without the moves that change nothing
  for (Move move : moves) {
    move.src += offset;
    if (move.src != move.dst) {
      shifted.push_back(move);
    }
  }
  Orderer orderer(shifted);
  orderer.stage_hopeless();
  for (const int64_t index : orderer.search()) {
    Move move = shifted[index];
    move.src -= offset;
    if (!orderer.staged(index)) {
      append(result.direct, move, row_offset);
    }
  }
  for (size_t index = 0; index < shifted.size(); ++index) {
    if (orderer.staged(static_cast<int64_t>(index))) {
      Move move = shifted[index];
      move.src -= offset;
      append(result.staged, move, std::nullopt);
    }
  }
  result.ordered = orderer.order_matters();
  return result;
}

}  // namespace llm_datadist
