// SPDX-License-Identifier: Apache-2.0
//
// Random calls, most of them nearly valid: the first check would refuse almost every fully random one.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>

#include "case.h"
#include "random.h"

namespace fuzz {

class RandomCase {
 public:
  RandomCase(Random random, bool batch) : random_(random) { case_.batch = batch; }

  Case make() {
    make_storages();
    const auto dtype = random_.one_of({at::kByte, at::kHalf, at::kFloat, at::kLong, at::kComplexDouble});
    const int64_t rank = random_.between(1, 5);
    case_.batch_dim = random_.below(rank);
    const int64_t count = random_.chance(30) ? 1 : random_.chance(80) ? random_.between(2, 5) : random_.between(6, 40);
    case_.dst = make_list(count, random_sizes(rank, dtype, count), dtype);
    make_src(dtype);
    make_copies();
    for (int mistakes = random_.chance(12) ? 1 : 0; mistakes > 0; --mistakes) {
      spoil();
    }
    if (random_.chance(50)) {
      case_.req_id = static_cast<int64_t>(random_.bits());
    }
    return case_;
  }

 private:
  void make_storages() {
    // Mostly a page; also sizes at which the CPU kernel uses threads, and rarely one at which it uses streaming stores.
    const int64_t pages = random_.chance(94) ? 1 : random_.chance(97) ? 16 : random_.below(1000) ? 1536 : 8192;
    case_.memory_bytes = pages * 4096;
    case_.memories = pages == 8192 ? 2 : static_cast<int>(random_.between(1, 3));
    for (int memory = 0; memory < case_.memories; ++memory) {
      const int64_t nbytes = random_.chance(60) ? case_.memory_bytes : random_.between(1, case_.memory_bytes);
      // Its last or its first byte is next to an inaccessible page.
      case_.storages.push_back({memory, random_.chance(60) ? case_.memory_bytes - nbytes : 0, nbytes, false});
    }
    if (random_.chance(15)) {
      const int64_t begin = random_.below(case_.memory_bytes);
      case_.storages.push_back({0, begin, random_.between(1, case_.memory_bytes - begin), false});
    }
  }

  int64_t capacity(int storage, c10::ScalarType dtype) const {
    return case_.storages[storage].nbytes / static_cast<int64_t>(c10::elementSize(dtype));
  }

  int any_storage() { return static_cast<int>(random_.below(static_cast<int64_t>(case_.storages.size()))); }

  Numbers random_sizes(int64_t rank, c10::ScalarType dtype, int64_t count) {
    Numbers sizes(rank, 1);
    int64_t room = std::max<int64_t>(1, capacity(any_storage(), dtype) / count);
    for (int64_t dim = 0; dim < rank; ++dim) {
      const int64_t most = dim == case_.batch_dim ? (case_.batch ? 12 : 5) : 4;
      sizes[dim] = random_.between(1, std::min(most, room));
      room /= sizes[dim];
    }
    // Usually the row is large, sometimes a leading dimension.
    sizes[random_.chance(80) ? rank - 1 : random_.below(rank)] *= random_.scaled(room);
    return sizes;
  }

  // Mostly dense in some order of the dimensions, with some gaps.
  Numbers random_strides(const Numbers& sizes) {
    std::vector<size_t> order(sizes.size());
    std::iota(order.rbegin(), order.rend(), 0);
    if (random_.chance(8)) {
      random_.shuffle(order);
    } else if (random_.chance(30)) {  // the batch outermost, or next to its row
      const auto batch = std::find(order.begin(), order.end(), case_.batch_dim);
      random_.chance(50) ? std::rotate(batch, batch + 1, order.end()) : std::rotate(order.begin(), batch, batch + 1);
    }
    Numbers strides(sizes.size());
    int64_t step = 1;
    for (const size_t dim : order) {
      strides[dim] = step;
      const bool in_row = static_cast<int64_t>(dim) > case_.batch_dim;
      step = step * sizes[dim] + (random_.chance(in_row ? 97 : 80) ? 0 : random_.between(1, 5));
    }
    return strides;
  }

  int64_t clamp_offset(int64_t offset, const View& view) const {
    return std::clamp<int64_t>(
        offset, 0, std::max<int64_t>(0, capacity(view.storage, view.dtype) - extent(view.sizes, view.strides)));
  }

  View random_view(const Numbers& sizes, c10::ScalarType dtype) {
    View view{any_storage(), dtype, sizes, random_strides(sizes), 0};
    const int64_t room = capacity(view.storage, dtype) - extent(view.sizes, view.strides);
    view.offset = room <= 0 ? 0 : random_.one_of({int64_t{0}, room, random_.below(room + 1)});
    return view;
  }

  std::vector<View> make_list(int64_t count, const Numbers& sizes, c10::ScalarType dtype) {
    std::vector<View> list{random_view(sizes, dtype)};
    const View first = list[0];
    const int64_t whole = extent(first.sizes, first.strides);
    const int64_t width = std::max<int64_t>(1, whole / std::max<int64_t>(1, sizes[case_.batch_dim]));
    // One after the other, with gaps, interleaved, backwards, or over one another.
    const int64_t step = random_.one_of({whole, whole, whole + random_.below(9), width, -whole, random_.below(whole)});
    const bool regular = random_.chance(60);
    const int64_t jitter = random_.chance(60) ? 0 : random_.one_of({1, 3, 16});
    if (regular && step > 0) {
      list[0].offset = random_.chance(50) ? 0 : first.offset / 2;
    }
    while (static_cast<int64_t>(list.size()) < count) {
      View view = random_.chance(90) ? first : random_view(sizes, dtype);
      if (regular) {
        view.offset = clamp_offset(list.back().offset + step + (jitter ? random_.between(-jitter, jitter) : 0), view);
      } else {
        view.offset = clamp_offset(random_.below(std::max<int64_t>(1, capacity(view.storage, dtype))), view);
      }
      list.push_back(view);
    }
    return list;
  }

  void make_src(c10::ScalarType dtype) {
    const int64_t kind = random_.below(10);
    if (kind < 7) {
      // The same tensors, the same layout in another storage, or the same layout at another offset.
      case_.src = case_.dst;
      const int storage = any_storage();
      const int64_t shift = random_.one_of<int64_t>({-1, 1, 7, -64, random_.between(-500, 500)});
      for (View& view : case_.src) {
        view.storage = kind < 3 ? view.storage : kind < 5 ? storage : view.storage;
        view.offset = clamp_offset(kind < 5 ? view.offset : view.offset + shift, view);
      }
      if (random_.chance(10)) {
        random_.shuffle(case_.src);
      }
      return;
    }
    Numbers sizes = case_.dst[0].sizes;
    if (kind < 9) {  // other rows, another batch
      for (size_t dim = case_.batch_dim; dim < sizes.size(); ++dim) {
        sizes[dim] = random_.chance(60) ? sizes[dim] : random_.between(1, std::min<int64_t>(sizes[dim] + 2, 8));
      }
    }
    case_.src = make_list(static_cast<int64_t>(case_.dst.size()), sizes, dtype);
  }

  int64_t smallest(auto&& of) const {
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const auto* list : {&case_.dst, &case_.src}) {
      for (const View& view : *list) {
        least = std::min(least, of(view));
      }
    }
    return least;
  }

  int64_t index_below(int64_t batch) {
    return random_.chance(97) ? random_.below(batch) : random_.one_of({int64_t{-1}, batch, random_.absurd()});
  }

  void make_copies() {
    const int64_t batch = smallest([&](const View& view) { return view.sizes[case_.batch_dim]; });
    const int64_t row = smallest([&](const View& view) {
      return std::accumulate(view.sizes.begin() + case_.batch_dim + 1, view.sizes.end(), view.itemsize(),
                             std::multiplies<>());
    });
    const auto slice = [&](int64_t begin, int64_t end) {
      const int64_t offset = random_.chance(40) ? begin : random_.between(begin, end - 1);
      int64_t size = random_.chance(40) ? end - offset : random_.scaled(end - offset);
      if (end == row && random_.chance(40)) {
        size = -1;
      }
      return std::pair{offset, size};
    };
    if (!case_.batch) {
      auto [offset, size] = slice(0, row);
      if (random_.chance(4)) {
        offset = random_.one_of({int64_t{-1}, row - 1, row, row + 1, random_.absurd()});
      }
      if (random_.chance(4)) {
        size = random_.one_of(
            {int64_t{0}, int64_t{-2}, row - std::clamp<int64_t>(offset, 0, row) + random_.below(2), random_.absurd()});
      }
      case_.copies = {{index_below(batch), index_below(batch), offset, size}};
      return;
    }
    const int64_t kind = random_.below(20);
    Numbers rows(batch);
    std::iota(rows.begin(), rows.end(), 0);
    random_.shuffle(rows);
    if (kind < 8) {  // each row written at most once: permutations, chains, cycles, one row to many
      Numbers from = rows;
      random_.shuffle(from);
      const bool permutation = random_.chance(50);
      const auto [offset, size] = slice(0, row);
      const int64_t most = std::min<int64_t>(batch, 500);
      const int64_t count = random_.chance(50) ? most : random_.between(1, most);
      for (int64_t i = 0; i < count; ++i) {
        const auto own = random_.chance(70) ? std::pair{offset, size} : slice(0, row);
        case_.copies.push_back({rows[i], permutation ? from[i] : random_.below(batch), own.first, own.second});
      }
    } else if (kind < 15) {  // a row written in pieces
      int64_t count = random_.between(1, 6);
      for (int64_t begin = 0, end = 0; end < row && count > 0; begin = end, --count) {
        end = count == 1 ? row : random_.between(begin + 1, row);
        const auto [offset, size] = slice(begin, end);
        case_.copies.push_back(
            {random_.chance(80) ? rows[0] : random_.below(batch), random_.below(batch), offset, size});
      }
    } else {  // any copies, sometimes none
      for (int64_t count = random_.below(5); count > 0; --count) {
        const auto [offset, size] = slice(0, row);
        case_.copies.push_back({index_below(batch), index_below(batch), offset, size});
      }
    }
    random_.shuffle(case_.copies);
    case_.form = random_.chance(70)   ? Copies::kContiguous
                 : random_.chance(90) ? random_.one_of({Copies::kTransposed, Copies::kInterleaved})
                                      : static_cast<Copies>(random_.between(static_cast<int64_t>(Copies::kInt32),
                                                                            static_cast<int64_t>(Copies::kLast)));
    if (case_.copies.empty()) {
      case_.form = Copies::kContiguous;
      return;
    }
    if (random_.chance(1)) {
      case_.copies = {case_.copies[0], case_.copies[0]};
      case_.form = Copies::kRepeated;
    }
    if (random_.chance(5)) {
      Copy& copy = case_.copies[random_.below(static_cast<int64_t>(case_.copies.size()))];
      *random_.one_of({&copy.dst_batch_index, &copy.src_batch_index, &copy.offset, &copy.size}) = random_.absurd();
    }
  }

  // Makes one thing wrong, or nearly wrong.
  void spoil() {
    std::vector<View>& list = random_.chance(50) ? case_.dst : case_.src;
    View& view = list[random_.below(static_cast<int64_t>(list.size()))];
    const int64_t dim = random_.below(static_cast<int64_t>(view.sizes.size()));
    Storage& storage = case_.storages[view.storage];
    switch (random_.below(12)) {
      case 0:
        view.strides[dim] = random_.one_of({int64_t{0}, random_.below(20), view.strides[dim] + 1});
        break;
      case 1:
        view.strides[dim] = random_.absurd() & std::numeric_limits<int64_t>::max();
        break;
      case 2:
        view.offset = random_.one_of({capacity(view.storage, view.dtype), view.offset + 1, random_.absurd()});
        break;
      case 3:  // with the tensors unchanged
        storage.nbytes = random_.below(storage.nbytes + 1);
        break;
      case 4:
        storage.null = true;
        break;
      case 5:
        view.sizes[dim] = random_.one_of({int64_t{0}, view.sizes[dim] + 1, view.sizes[dim] + 7});
        break;
      case 6:  // as expand() makes them
        view.sizes[dim] = random_.one_of({int64_t{1} << 40, int64_t{100}});
        view.strides[dim] = 0;
        break;
      case 7:
        view.dtype = random_.one_of({at::kBool, at::kChar, at::kDouble});
        break;
      case 8:
        case_.batch_dim = random_.one_of({int64_t{-1}, int64_t{5}, random_.absurd()});
        break;
      case 9:
        list.pop_back();
        break;
      case 10:
        view.undefined = true;
        break;
      case 11:
        view.requires_grad = c10::isFloatingType(view.dtype);
        break;
    }
  }

  Random random_;
  Case case_{};
};

}  // namespace fuzz
