// SPDX-License-Identifier: Apache-2.0
//
// Calls the ops from several threads at once, for ThreadSanitizer. The threads share the caches; each writes its own
// rows and reads the rows of all. The copies are small, or large enough for the intra-op threads; some calls are
// refused.
//
//   threads LIBRARY         exits with 0 if every byte is right
//   threads LIBRARY race    two threads write one row, which ThreadSanitizer must report

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "library.h"

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>

// ThreadSanitizer does not instrument libgomp, which runs torch's intra-op threads, and so does not know that a
// parallel region happens before the code after it. This wrapper tells it where the regions of the library begin and
// end.
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  using Parallel = void(void (*)(void*), void*, unsigned, unsigned);
  static auto* const parallel = reinterpret_cast<Parallel*>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  struct Region {
    void (*body)(void*);
    void* data;
    char begin;
    char end;
  } region{body, data, 0, 0};
  __tsan_release(&region.begin);
  parallel(
      [](void* argument) {
        auto* const self = static_cast<Region*>(argument);
        __tsan_acquire(&self->begin);
        self->body(self->data);
        __tsan_release(&self->end);
      },
      &region, threads, flags);
  __tsan_acquire(&region.end);
}
#endif

namespace {

constexpr int64_t kThreads = 4;
constexpr int64_t kRounds = 60;
constexpr int64_t kLayers = 6;

struct Caches {
  std::vector<at::Tensor> dst;
  std::vector<at::Tensor> src;
};

// Rows of 1 KiB or of 1 MiB. With the latter, one call uses the intra-op threads.
Caches make_caches(int64_t row_bytes) {
  Caches caches;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    caches.dst.push_back(at::zeros({2 * kThreads, row_bytes}, at::kByte));
    caches.src.push_back(at::randint(256, {kThreads + 1, row_bytes}, at::kByte));
  }
  return caches;
}

bool same_rows(const Caches& caches, int64_t dst_index, int64_t src_index) {
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const char* const dst = static_cast<const char*>(caches.dst[layer].const_data_ptr());
    const char* const src = static_cast<const char*>(caches.src[layer].const_data_ptr());
    const int64_t row_bytes = caches.dst[layer].size(1);
    if (!std::equal(dst + dst_index * row_bytes, dst + (dst_index + 1) * row_bytes, src + src_index * row_bytes)) {
      return false;
    }
  }
  return true;
}

// The work of one thread: it copies into rows 2 * thread and 2 * thread + 1.
void work(int64_t thread, const Caches& small, const Caches& large, std::atomic<bool>& wrong) {
  const auto copy_cache = find_op<CopyCache>("llm_datadist::copy_cache");
  const auto copy_cache_batch = find_op<CopyCacheBatch>("llm_datadist::copy_cache_batch");
  const int64_t row = 2 * thread;
  for (int64_t round = 0; round < kRounds; ++round) {
    const Caches& caches = round % 6 == 5 ? large : small;
    const int64_t from = (thread + round) % (kThreads + 1);
    const c10::SymInt req_id = thread * kRounds + round;
    copy_cache.call(at::TensorList(caches.dst), at::TensorList(caches.src), row, from, 0, -1, req_id, 0);
    wrong = wrong || !same_rows(caches, row, from);
    // The same, within one cache and as a batch.
    const int64_t moves[] = {row + 1, row, 0, -1};
    const at::Tensor copies = at::from_blob(const_cast<int64_t*>(moves), {1, 4}, at::kLong);
    copy_cache_batch.call(at::TensorList(caches.dst), at::TensorList(caches.dst), copies, req_id, 0);
    wrong = wrong || !same_rows(caches, row + 1, from);
    try {
      copy_cache.call(at::TensorList(caches.dst), at::TensorList(caches.src), row, kThreads + 1, 0, -1, req_id, 0);
      wrong = true;
    } catch (const c10::ValueError&) {
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "threads LIBRARY [race]\n";
    return 2;
  }
  load_library(arguments[1]);
  at::set_num_threads(2);
  const bool race = count > 2;
  const Caches small = make_caches(1024);
  const Caches large = make_caches(1024 * 1024);
  std::atomic<bool> wrong = false;
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] { work(race ? thread / 2 : thread, small, large, wrong); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (wrong && !race) {
    std::cerr << "threads: wrong bytes\n";
    return 1;
  }
}
