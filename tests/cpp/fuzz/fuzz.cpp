// SPDX-License-Identifier: Apache-2.0
//
// Calls the ops with random arguments and compares every byte of the memory with the byte model, also outside the
// tensors. Inaccessible pages surround the memory.
//
//   fuzz LIBRARY SECONDS [FIRST_CASE]
//
// A case depends on its number alone. A failure prints the number; `fuzz LIBRARY 0 NUMBER` repeats it.

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>

#include "../library.h"
#include "byte_model.h"
#include "random_case.h"
#include "tensors.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif

namespace fuzz {
namespace {

uint64_t number = 0;  // of the current case

// Prints the number of the case that crashed.
void last_words() {
  char text[64];
  const int length = snprintf(text, sizeof text, "\ncase %llu\n", static_cast<unsigned long long>(number));
  if (write(STDERR_FILENO, text, length) != length) {
    _exit(1);
  }
}

[[maybe_unused]] void report_crashes() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(last_words);
#else
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) {
    std::signal(signal, [](int which) {
      last_words();
      std::signal(which, SIG_DFL);
      raise(which);
    });
  }
#endif
}

void fill(uint8_t* data, int64_t bytes) {
  Random random(~number);
  for (int64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    const uint64_t bits = random.bits();
    std::memcpy(data + at, &bits, sizeof bits);
  }
}

// Calls the op. Returns the text of its ValueError, or an empty text.
std::string call(const Case& c, const std::vector<at::Tensor>& dst, const std::vector<at::Tensor>& src) {
  static const auto copy_cache = find_op<CopyCache>("llm_datadist::copy_cache");
  const std::optional<c10::SymInt> req_id = c.req_id ? std::optional<c10::SymInt>(*c.req_id) : std::nullopt;
  try {
    if (c.batch) {
      static const auto copy_cache_batch = find_op<CopyCacheBatch>("llm_datadist::copy_cache_batch");
      copy_cache_batch.call(at::TensorList(dst), at::TensorList(src), make_copies(c), req_id, c.batch_dim);
    } else {
      const Copy& copy = c.copies[0];
      copy_cache.call(at::TensorList(dst), at::TensorList(src), copy.dst_batch_index, copy.src_batch_index, copy.offset,
                      copy.size, req_id, c.batch_dim);
    }
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "";
}

// The difference between a call and the model; empty if there is none.
std::string judge(const Case& c, const Verdict& verdict, const std::vector<Bytes>& before, const std::string& refusal,
                  const std::vector<at::Tensor>& dst, const std::vector<at::Tensor>& src) {
  const bool refused = !refusal.empty();
  if (!verdict.open && refused != (verdict.refused != nullptr)) {
    return refused ? "refused a valid call: " + refusal
                   : std::string("accepted a call that it should refuse: ") + verdict.refused;
  }
  const std::string op = c.batch ? "copy_cache_batch: " : "copy_cache: ";
  if (refused && refusal.substr(0, op.size()) != op) {
    return "an error that does not name the op: " + refusal;
  }
  std::vector<Bytes> after = before;
  if (!refused) {
    ByteModel::apply(verdict.ranges, before, after);
  }
  for (int memory = 0; memory < c.memories; ++memory) {
    const uint8_t* const data = memories(c)[memory].data();
    if (std::memcmp(data, after[memory].data(), c.memory_bytes) != 0) {
      const auto at = std::mismatch(after[memory].begin(), after[memory].end(), data).first - after[memory].begin();
      return "byte " + std::to_string(at) + " of memory " + std::to_string(memory) + " is " + std::to_string(data[at]) +
             ", was " + std::to_string(before[memory][at]) + ", should be " + std::to_string(after[memory][at]);
    }
  }
  for (const auto* list : {&dst, &src}) {
    for (const at::Tensor& tensor : *list) {
      const uint32_t version = !refused && list == &dst ? 1 : 0;
      if (tensor.defined() && tensor._version() != version) {
        return "version " + std::to_string(tensor._version()) + " of a tensor of " + (list == &dst ? "dst" : "src");
      }
    }
  }
  return "";
}

// The number of calls by result: a fuzzer whose calls are all refused tests nothing.
struct Tally {
  int64_t accepted = 0;
  int64_t moved = 0;
  std::map<std::string, int64_t> refused;
};

void run(const Random& random, bool batch, Tally& tally) {
  const Case c = RandomCase(random, batch).make();
  std::vector<Bytes> before;
  for (int i = 0; i < c.memories; ++i) {
    const Memory& memory = memories(c)[i];
    fill(memory.data(), memory.bytes());
    before.emplace_back(memory.data(), memory.data() + memory.bytes());
    ASAN_POISON_MEMORY_REGION(memory.data(), memory.bytes());
  }
  std::vector<c10::Storage> storages;
  for (const Storage& s : c.storages) {
    uint8_t* const data = memories(c)[s.memory].data() + s.begin;
    storages.push_back(make_storage(s.null ? nullptr : data, s.nbytes));
    ASAN_UNPOISON_MEMORY_REGION(data, s.nbytes);
  }
  const std::vector<at::Tensor> dst = make_tensors(c.dst, storages);
  const std::vector<at::Tensor> src = make_tensors(c.src, storages);
  const Verdict verdict = ByteModel(c).judge();

  std::string wrong;
  try {
    const std::string refusal = call(c, dst, src);
    for (int i = 0; i < c.memories; ++i) {
      ASAN_UNPOISON_MEMORY_REGION(memories(c)[i].data(), c.memory_bytes);
    }
    wrong = judge(c, verdict, before, refusal, dst, src);
  } catch (const std::exception& error) {
    wrong = std::string("an error that is not a ValueError: ") + error.what();
  }
  if (!wrong.empty()) {
    std::cerr << "case " << number << (batch ? ", copy_cache_batch: " : ", copy_cache: ") << wrong << '\n' << c;
    std::exit(1);
  }
  if (verdict.refused) {
    ++tally.refused[verdict.refused];
  } else {
    ++tally.accepted;
    tally.moved += std::any_of(verdict.ranges.begin(), verdict.ranges.end(), [](auto& r) { return !r.in_place(); });
  }
}

[[maybe_unused]] void print(const char* op, const Tally& tally) {
  int64_t refused = 0;
  for (const auto& [why, count] : tally.refused) {
    refused += count;
  }
  std::cout << op << ": " << tally.accepted << " calls accepted, " << tally.moved << " of them moving bytes, "
            << refused << " refused:\n";
  for (const auto& [why, count] : tally.refused) {
    std::cout << "  " << count << ' ' << why << '\n';
  }
}

}  // namespace
}  // namespace fuzz

#ifdef LIBFUZZER
// Coverage-guided: clang's fuzzer makes the inputs, and the library is part of the program.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Tally tally;
  fuzz::run(fuzz::Random(size, {data, size}), size % 2 == 1, tally);
  return 0;
}
#else
int main(int count, char** arguments) {
  using Clock = std::chrono::steady_clock;
  if (count < 3) {
    std::cerr << "fuzz LIBRARY SECONDS [FIRST_CASE]\n";
    return 2;
  }
  load_library(arguments[1]);
  fuzz::report_crashes();
  const auto end = Clock::now() + std::chrono::duration<double>(std::stod(arguments[2]));
  fuzz::number = count > 3 ? std::stoull(arguments[3]) : Clock::now().time_since_epoch().count();
  std::cout << "from case " << fuzz::number << '\n';
  fuzz::Tally single;
  fuzz::Tally batch;
  do {
    fuzz::run(fuzz::Random(fuzz::number), false, single);
    fuzz::run(fuzz::Random(fuzz::number), true, batch);
    ++fuzz::number;
  } while (Clock::now() < end);
  fuzz::print("copy_cache", single);
  fuzz::print("copy_cache_batch", batch);
}
#endif
