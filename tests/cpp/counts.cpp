// SPDX-License-Identifier: Apache-2.0
//
// Counts the machine instructions and the allocations of one call of an op. Unlike times, they are the same in every
// run. The instructions are counted by single-stepping a child process through the call, which needs no tool and no
// performance counter. Prints JSON, {measure: [instructions, allocations]}.
//
//   counts LIBRARY

#include <ATen/Parallel.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>

#include "library.h"

namespace {
int64_t allocations = 0;
}

// Counts every allocation of the process: operator new calls malloc.
extern "C" void* __libc_malloc(size_t bytes);
extern "C" void* malloc(size_t bytes) {
  ++allocations;
  return __libc_malloc(bytes);
}

namespace {

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(2);
}

// A step switches between two processes. That is several times as fast on one processor as between two.
void stay_on_one_processor() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  if (sched_setaffinity(0, sizeof one, &one) != 0) {
    fail("sched_setaffinity");
  }
}

// The state of the child, in shared memory: to ask with ptrace would be one more system call for each step.
enum class Phase : int { kBefore, kCounted, kAfter };
volatile Phase& phase() {
  static void* const shared = mmap(nullptr, sizeof(Phase), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return *static_cast<Phase*>(shared);
}

// The instructions of one call, in a process of its own. The first two calls initialize; the third is counted.
int64_t instructions(const std::function<void()>& call) {
  phase() = Phase::kBefore;
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) {
      fail("PTRACE_TRACEME");
    }
    call();
    call();
    raise(SIGSTOP);
    phase() = Phase::kCounted;
    call();
    phase() = Phase::kAfter;
    pause();
  }
  int64_t count = 0;
  for (int status = 0; waitpid(child, &status, 0) == child && WIFSTOPPED(status);) {
    if (phase() == Phase::kAfter) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return count;
    }
    count += phase() == Phase::kCounted;
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0) {
      fail("PTRACE_SINGLESTEP");
    }
  }
  fail("counts: the call did not return");
}

int64_t allocations_of(const std::function<void()>& call) {
  call();
  call();
  const int64_t before = allocations;
  call();
  return allocations - before;
}

void measure(const std::string& name, const std::function<void()>& call) {
  static const char* separator = "";
  std::cout << separator << "  \"" << name << "\": [" << instructions(call) << ", " << allocations_of(call) << ']';
  separator = ",\n";
}

constexpr int64_t kBatch = 4;
constexpr int64_t kRowBytes = 256;

// Separate tensors at increasing addresses with different gaps, as from an allocator. They are views of one tensor, so
// that their addresses do not depend on the machine.
std::vector<at::Tensor> list_of(int64_t tensors) {
  const int64_t room = kBatch * kRowBytes + 512;
  const at::Tensor memory = at::zeros({tensors * room}, at::kByte);
  std::vector<at::Tensor> list;
  for (int64_t i = 0; i < tensors; ++i) {
    const at::Tensor at_its_place = memory.narrow(0, i * room + i * i % 7 * 64, kBatch * kRowBytes);
    list.push_back(at_its_place.view(at::kHalf).view({kBatch, kRowBytes / 2}));
  }
  return list;
}

std::vector<at::Tensor> stacked(int64_t tensors) { return {at::zeros({tensors, kBatch, kRowBytes / 2}, at::kHalf)}; }

}  // namespace

int main(int, char** arguments) {
  stay_on_one_processor();
  load_library(arguments[1]);
  at::set_num_threads(1);  // the child of a fork has one thread
  const auto copy_cache = find_op<CopyCache>("llm_datadist::copy_cache");
  const auto copy_cache_batch = find_op<CopyCacheBatch>("llm_datadist::copy_cache_batch");
  const std::optional<c10::SymInt> req_id(7);
  std::cout << "{\n";
  for (const int64_t tensors : {1, 80, 160}) {
    const auto dst = list_of(tensors);
    const auto src = list_of(tensors);
    measure("list of " + std::to_string(tensors),
            [&] { copy_cache.call(at::TensorList(dst), at::TensorList(src), 1, 2, 0, -1, req_id, 0); });
  }
  {
    auto dst = list_of(160);
    const auto src = list_of(160);
    // Neither in the order of their addresses nor in its reverse.
    std::rotate(dst.begin(), dst.begin() + 50, dst.end());
    measure("list of 160, out of order",
            [&] { copy_cache.call(at::TensorList(dst), at::TensorList(src), 1, 2, 0, -1, req_id, 0); });
  }
  for (const int64_t tensors : {1, 80, 160}) {
    const auto dst = stacked(tensors);
    const auto src = stacked(tensors);
    measure("stacked " + std::to_string(tensors),
            [&] { copy_cache.call(at::TensorList(dst), at::TensorList(src), 1, 2, 0, -1, req_id, 1); });
  }
  // Blocks copied within a cache of 16 tensors, in any order. The plan does not grow with the number of tensors.
  for (const int64_t count : {10, 50, 100}) {
    const at::Tensor cache = at::zeros({16, 2 * count, 8}, at::kHalf);
    const at::Tensor copies = at::empty({count, 4}, at::kLong);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row[] = {count + i * 7 % count, i * 3 % count, 0, -1};
      std::copy(std::begin(row), std::end(row), copies.mutable_data_ptr<int64_t>() + 4 * i);
    }
    measure("batch of " + std::to_string(count),
            [&] { copy_cache_batch.call(at::TensorList(cache), at::TensorList(cache), copies, req_id, 1); });
  }
  std::cout << "\n}\n";
}
