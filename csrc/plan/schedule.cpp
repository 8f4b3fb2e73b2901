// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace llm_datadist {
namespace {

// The moves [begin, end) that write into what a move reads. They are neighbours, since moves are sorted by what they
// write.
struct Writers {
  int64_t begin;
  int64_t end;
};

std::vector<Writers> find_writers(const std::vector<Move>& moves) {
  std::vector<Writers> writers;
  writers.reserve(moves.size());
  for (const Move& move : moves) {
    const auto begin = std::partition_point(moves.begin(), moves.end(),
                                            [&](const Move& other) { return other.dst + other.width <= move.src; });
    const auto end =
        std::partition_point(begin, moves.end(), [&](const Move& other) { return other.dst < move.src + move.width; });
    writers.push_back({begin - moves.begin(), end - moves.begin()});
  }
  return writers;
}

// The graph has an edge from each move to every other one that writes into its source: that one must come later. Where
// a walk along edges comes back to itself, no order is right, and the move that closes the cycle is staged: it reads
// before all others, which takes its edges away.
class Orderer {
 public:
  explicit Orderer(const std::vector<Move>& moves)
      : moves_(moves), writers_(find_writers(moves)), state_(moves.size(), State::kNew), staged_(moves.size(), false) {}

  void stage_shifts() {
    for (size_t move = 0; move < moves_.size(); ++move) {
      staged_[move] = staged_[move] || shifts(move);
    }
  }

  // Copies that read ranges with very many writers in them, as no cache's do, would make more edges than can be
  // walked. They are all staged.
  void stage_if_tangled() {
    constexpr int64_t kEdgesPerMove = 16;
    int64_t edges = 0;
    for (const Writers& writers : writers_) {
      edges += writers.end - writers.begin;
    }
    if (edges > kEdgesPerMove * static_cast<int64_t>(moves_.size())) {
      for (size_t move = 0; move < moves_.size(); ++move) {
        staged_[move] = writers_[move].begin < writers_[move].end;
      }
    }
  }

  // A depth-first walk; a move is put in the list when all that must come after it are there. Returns the list
  // backwards.
  std::vector<int64_t> order() {
    std::vector<int64_t> done;
    done.reserve(moves_.size());
    std::vector<Visit> path;
    for (auto root = static_cast<int64_t>(moves_.size()) - 1; root >= 0; --root) {
      enter(root, path);
      while (!path.empty()) {
        Visit& visit = path.back();
        const int64_t move = visit.move;
        if (staged_[move] || visit.next == writers_[move].end) {
          state_[move] = State::kDone;
          done.push_back(move);
          path.pop_back();
          continue;
        }
        const int64_t writer = visit.next++;
        if (writer != move && state_[writer] == State::kOnPath) {
          staged_[move] = true;
        } else if (writer != move) {
          enter(writer, path);
        }
      }
    }
    std::reverse(done.begin(), done.end());
    return done;
  }

  bool staged(int64_t move) const { return staged_[move]; }

  // Whether a move that is not staged has to come before another such, or overlaps its own source.
  bool order_matters() const {
    for (size_t move = 0; move < moves_.size(); ++move) {
      for (int64_t writer = writers_[move].begin; !staged_[move] && writer < writers_[move].end; ++writer) {
        if (!staged_[writer]) {
          return true;
        }
      }
    }
    return false;
  }

 private:
  enum class State : char { kNew, kOnPath, kDone };

  struct Visit {
    int64_t move;
    int64_t next;  // the next writer to look at
  };

  void enter(int64_t move, std::vector<Visit>& path) {
    if (state_[move] == State::kNew) {
      state_[move] = State::kOnPath;
      path.push_back({move, writers_[move].begin});
    }
  }

  bool shifts(size_t move) const { return std::abs(moves_[move].dst - moves_[move].src) < moves_[move].width; }

  const std::vector<Move>& moves_;
  std::vector<Writers> writers_;
  std::vector<State> state_;
  std::vector<char> staged_;
};

// Adds a move to a list of spans, as part of the last one where it goes on from there.
void append(std::vector<Span>& spans, const Move& move, bool may_overlap) {
  if (!spans.empty()) {
    Span& last = spans.back();
    const int64_t width = last.width + move.width;
    // Ranges that are copied in their order may not become one that overlaps its own source.
    if (last.dst + last.width == move.dst && last.src + last.width == move.src &&
        (may_overlap || std::abs(move.dst - move.src) >= width)) {
      last.width = width;
      return;
    }
    spans.push_back({move.dst, move.src, move.width, last.before + last.width});
    return;
  }
  spans.push_back({move.dst, move.src, move.width, 0});
}

}  // namespace

std::optional<std::pair<int64_t, int64_t>> find_double_write(std::vector<Move>& moves) {
  const auto by_dst = [](const Move& a, const Move& b) { return a.dst < b.dst; };
  if (!std::is_sorted(moves.begin(), moves.end(), by_dst)) {
    std::sort(moves.begin(), moves.end(), by_dst);
  }
  for (size_t i = 1; i < moves.size(); ++i) {
    if (moves[i].dst < moves[i - 1].dst + moves[i - 1].width) {
      return std::pair<int64_t, int64_t>(std::minmax(moves[i - 1].index, moves[i].index));
    }
  }
  return std::nullopt;
}

Schedule schedule(const std::vector<Move>& sorted, bool shared, bool can_shift) {
  Schedule result;
  if (!shared) {
    for (const Move& move : sorted) {
      append(result.direct, move, true);
    }
    return result;
  }
  std::vector<Move> moves;
  moves.reserve(sorted.size());
  std::copy_if(sorted.begin(), sorted.end(), std::back_inserter(moves),
               [](const Move& move) { return move.dst != move.src; });
  Orderer orderer(moves);
  if (!can_shift) {
    orderer.stage_shifts();
  }
  orderer.stage_if_tangled();
  for (const int64_t move : orderer.order()) {
    if (!orderer.staged(move)) {
      append(result.direct, moves[move], false);
    }
  }
  for (size_t move = 0; move < moves.size(); ++move) {
    if (orderer.staged(move)) {
      append(result.staged, moves[move], true);
    }
  }
  result.in_order = orderer.order_matters();
  return result;
}

}  // namespace llm_datadist
