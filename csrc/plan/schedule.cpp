// SPDX-License-Identifier: Apache-2.0
#include "schedule.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace llm_datadist {
namespace {

// Orders copies by depth-first search. The graph has an edge from each copy to every other one that writes into its
// source: the writer must come later. Where the search meets its own path (a cycle), no order is right, and the copy
// that closes the cycle is staged: it reads before all others, which removes its edges.
class Orderer {
 public:
  explicit Orderer(const std::vector<ByteCopy>& copies)
      : copies_(copies),
        writers_(find_writers(copies)),
        state_(copies.size(), State::kNew),
        staged_(copies.size(), false) {}

  void stage_self_overlaps() {
    for (size_t copy = 0; copy < copies_.size(); ++copy) {
      staged_[copy] = staged_[copy] || std::abs(copies_[copy].dst - copies_[copy].src) < copies_[copy].width;
    }
  }

  // Bounds the time of the search. Sources with this many writers do not occur in caches; the copies of such a call are
  // all staged.
  void stage_if_tangled() {
    constexpr int64_t kEdgesPerCopy = 16;
    int64_t edges = 0;
    for (const Writers& writers : writers_) {
      edges += writers.end - writers.begin;
    }
    if (edges > kEdgesPerCopy * static_cast<int64_t>(copies_.size())) {
      for (size_t copy = 0; copy < copies_.size(); ++copy) {
        staged_[copy] = writers_[copy].begin < writers_[copy].end;
      }
    }
  }

  // The search finishes a copy after all that must come later, so the order is the reverse of that of finishing.
  std::vector<int64_t> order() {
    std::vector<int64_t> finished;
    finished.reserve(copies_.size());
    std::vector<Visit> path;
    for (auto root = static_cast<int64_t>(copies_.size()) - 1; root >= 0; --root) {
      enter(root, path);
      while (!path.empty()) {
        Visit& visit = path.back();
        const int64_t copy = visit.copy;
        if (staged_[copy] || visit.next_writer == writers_[copy].end) {
          state_[copy] = State::kFinished;
          finished.push_back(copy);
          path.pop_back();
          continue;
        }
        const int64_t writer = visit.next_writer++;
        if (writer != copy && state_[writer] == State::kOnPath) {
          staged_[copy] = true;
        } else if (writer != copy) {
          enter(writer, path);
        }
      }
    }
    std::reverse(finished.begin(), finished.end());
    return finished;
  }

  bool staged(int64_t copy) const { return staged_[copy]; }

  // Whether a direct copy has a direct writer, which may be itself.
  bool order_matters() const {
    for (size_t copy = 0; copy < copies_.size(); ++copy) {
      for (int64_t writer = writers_[copy].begin; !staged_[copy] && writer < writers_[copy].end; ++writer) {
        if (!staged_[writer]) {
          return true;
        }
      }
    }
    return false;
  }

 private:
  enum class State : char { kNew, kOnPath, kFinished };

  struct Visit {
    int64_t copy;
    int64_t next_writer;
  };

  void enter(int64_t copy, std::vector<Visit>& path) {
    if (state_[copy] == State::kNew) {
      state_[copy] = State::kOnPath;
      path.push_back({copy, writers_[copy].begin});
    }
  }

  const std::vector<ByteCopy>& copies_;
  std::vector<Writers> writers_;
  std::vector<State> state_;
  std::vector<char> staged_;
};

// Appends a copy to a list of spans, merged into the last one where it continues it. Spans that are copied in order may
// not grow into one that overlaps its own source, unless `may_overlap`.
void append(std::vector<Span>& spans, const ByteCopy& copy, bool may_overlap) {
  if (spans.empty()) {
    spans.push_back({copy.dst, copy.src, copy.width, 0});
    return;
  }
  Span& last = spans.back();
  const int64_t width = last.width + copy.width;
  if (last.dst_offset + last.width == copy.dst && last.src_offset + last.width == copy.src &&
      (may_overlap || std::abs(copy.dst - copy.src) >= width)) {
    last.width = width;
  } else {
    spans.push_back({copy.dst, copy.src, copy.width, last.bytes_before + last.width});
  }
}

}  // namespace

Schedule schedule(const std::vector<ByteCopy>& sorted, bool shared_memory, bool memmove) {
  Schedule result;
  if (!shared_memory) {
    for (const ByteCopy& copy : sorted) {
      append(result.direct, copy, true);
    }
    return result;
  }
  std::vector<ByteCopy> copies;
  copies.reserve(sorted.size());
  std::remove_copy_if(sorted.begin(), sorted.end(), std::back_inserter(copies),
                      [](const ByteCopy& copy) { return copy.onto_itself(); });
  Orderer orderer(copies);
  if (!memmove) {
    orderer.stage_self_overlaps();
  }
  orderer.stage_if_tangled();
  for (const int64_t copy : orderer.order()) {
    if (!orderer.staged(copy)) {
      append(result.direct, copies[copy], false);
    }
  }
  for (size_t copy = 0; copy < copies.size(); ++copy) {
    if (orderer.staged(copy)) {
      append(result.staged, copies[copy], true);
    }
  }
  result.order_matters = orderer.order_matters();
  return result;
}

}  // namespace llm_datadist
