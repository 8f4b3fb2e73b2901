// SPDX-License-Identifier: Apache-2.0
#include "device_kernel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "acl_check.h"

namespace llm_datadist {

// Where the kernel may be used. See llm_datadist_torch/_native/warm_up.py, which sets it.
enum class KernelUse { kNever, kByOneThread, kWhereFaster, kAlways };

namespace {

// Never destroyed, as launches may be queued.
struct LoadedKernel : Kernel {
  const std::thread::id loader = std::this_thread::get_id();
  std::atomic<KernelUse> use = KernelUse::kNever;
};

// Estimates, until they are measured: `python benchmarks/kernel.py` on an NPU prints them. Microseconds, and bytes in a
// microsecond.
constexpr double kTaskTime = 1.0;
constexpr double kTaskSpeed = 400e3;
constexpr double kLaunchTime = 10.0;
constexpr double kPieceTime = 0.0125;  // all cores together
constexpr double kKernelSpeed = 400e3;

// Below this, a piece takes hardly less time. For shares of equal time, each piece counts as so many bytes more.
constexpr int64_t kShortPiece = 4096;

std::array<std::atomic<LoadedKernel*>, 64> kernels;  // by device
std::atomic<uint64_t> accepted{0};

// The public functions of the runtime that load and launch a kernel, from CANN 8.5 on. Older headers do not have them.
struct LoadOption {
  int32_t type;
  uint32_t value[4];
};
struct LoadOptions {
  LoadOption* options;
  size_t count;
};
using LoadBinary = aclError(const void* data, size_t length, const LoadOptions* options, void** binary);
using GetFunction = aclError(void* binary, const char* name, void** function);
using GetDeviceInfo = aclError(uint32_t device, int attribute, int64_t* value);
using Launch = aclError(void* function, uint32_t blocks, aclrtStream stream, void* config, const void* arguments,
                        size_t bytes, const PlaceHolder* place_holders, size_t count);

template <typename Signature>
Signature* runtime_function(const char* name) {
  auto* const function = reinterpret_cast<Signature*>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK(function != nullptr, "this version of CANN has no ", name);
  return function;
}

const CallContext warm_up{"warm_up", std::nullopt};

void* load(const void* binary, size_t bytes, const char* name) {
  constexpr int32_t kLazy = 1;
  constexpr int32_t kMagic = 2;
  constexpr uint32_t kVectorCore = 0x41415246;
  LoadOption each[] = {{kLazy, {0}}, {kMagic, {kVectorCore}}};  // as triton-ascend does
  const LoadOptions options{each, 2};
  void* handle = nullptr;
  void* function = nullptr;
  CHECK_ACL(warm_up, runtime_function<LoadBinary>("aclrtBinaryLoadFromData")(binary, bytes, &options, &handle),
            "aclrtBinaryLoadFromData", "of ", bytes, " bytes");
  CHECK_ACL(warm_up, runtime_function<GetFunction>("aclrtBinaryGetFunction")(handle, name, &function),
            "aclrtBinaryGetFunction", name);
  return function;
}

// Whether the kernel is expected to copy a plan in less time than a task for each row.
bool is_faster(const Plan& plan, const Kernel& kernel) {
  double by_tasks = 0;
  double by_kernel = 0;
  for (const Phase& phase : plan.phases) {
    double rows = 0;
    for (const Block& block : phase.blocks) {
      rows += static_cast<double>(block.count) * static_cast<double>(block.moves.end - block.moves.begin);
    }
    const auto bytes = static_cast<double>(phase.bytes);
    const double pieces = rows + bytes / static_cast<double>(kernel.tile_bytes);
    by_tasks += rows * kTaskTime + bytes / kTaskSpeed;
    by_kernel += (phase.ordered ? 2 : 1) * (kLaunchTime + pieces * kPieceTime + bytes / kKernelSpeed);
  }
  return by_kernel < by_tasks;
}

// The largest element that divides every address and length.
int64_t unit_of(c10::ArrayRef<Phase> phases) {
  uint64_t all = 0;
  for (const Phase& phase : phases) {
    for (const Block& block : phase.blocks) {
      all |= block.dst | block.src | static_cast<uint64_t>(block.dst_pitch | block.src_pitch);
    }
    for (const Move& move : phase.moves) {
      all |= static_cast<uint64_t>(move.dst | move.src | move.bytes);
    }
  }
  return all % 4 == 0 ? 4 : 1;
}

// Cuts the work into shares of equal time, one for each core.
Table shares_of(const Table& bases, const Table& pieces, int64_t unit, int64_t cores) {
  Table before{0};  // the cost of all pieces before each one
  for (size_t piece = 0; piece < pieces.size(); piece += 3) {
    before.push_back(before.back() + pieces[piece + 2] * unit + kShortPiece);
  }
  int64_t total = 0;
  int64_t count = 0;
  for (size_t base = 0; base < bases.size(); base += 4) {
    total += before[bases[base + 3]] - before[bases[base + 2]];
    count += bases[base + 3] - bases[base + 2];
  }
  cores = std::min(cores, count);
  Table shares;
  int64_t cost = 0;  // of the bases so far, and their pieces
  int64_t done = 0;
  for (size_t base = 0; base < bases.size(); base += 4) {
    const int64_t begin = bases[base + 2];
    const int64_t end = bases[base + 3];
    const int64_t next = cost + before[end] - before[begin];
    const auto programs = static_cast<int64_t>(shares.size()) / 3;
    for (int64_t program = programs; program < cores; ++program) {
      const int64_t start = total * program / cores;
      if (start >= next) {
        break;
      }
      const auto piece =
          std::lower_bound(before.begin() + begin, before.begin() + end, before[begin] + start - cost) - before.begin();
      if (piece == end) {
        break;  // it begins with the next base
      }
      shares.insert(shares.end(), {static_cast<int64_t>(base) / 4, piece, done + piece - begin});
    }
    cost = next;
    done += end - begin;
  }
  for (size_t share = 2; share < shares.size(); share += 3) {  // from the pieces before a share to those in it
    shares[share] = (share + 3 < shares.size() ? shares[share + 3] : done) - shares[share];
  }
  return shares;
}

KernelLaunch make_launch(const Kernel& kernel, c10::ArrayRef<Phase> phases) {
  const Block& first = phases.front().blocks.front();
  const int64_t unit = unit_of(phases);
  const auto distance = [&](Address from, Address to) { return static_cast<int64_t>(to - from) / unit; };
  int64_t bytes = 0;
  for (const Phase& phase : phases) {
    bytes += phase.bytes;
  }
  // As long as the buffers allow, but so short that all cores have some, and a multiple of what the memory transfers.
  const int64_t even = (bytes / (4 * kernel.cores) + 511) / 512 * 512;
  const int64_t longest = std::clamp(even, kShortPiece, kernel.tile_bytes);
  Table bases;
  Table pieces;
  for (const Phase& phase : phases) {
    std::vector<std::array<int64_t, 3>> ranges;  // of moves, with their pieces: begin in moves, begin and end in pieces
    for (const Block& block : phase.blocks) {
      auto range =
          std::find_if(ranges.begin(), ranges.end(), [&](const auto& each) { return each[0] == block.moves.begin; });
      if (range == ranges.end()) {
        const auto begin = static_cast<int64_t>(pieces.size()) / 3;
        for (const Move& move : phase.moves_of(block.moves)) {
          for (int64_t at = 0; at < move.bytes; at += longest) {
            pieces.insert(pieces.end(),
                          {(move.dst + at) / unit, (move.src + at) / unit, std::min(move.bytes - at, longest) / unit});
          }
        }
        range = ranges.insert(range, {block.moves.begin, begin, static_cast<int64_t>(pieces.size()) / 3});
      }
      for (int64_t place = 0; place < block.count; ++place) {
        bases.insert(bases.end(), {distance(first.dst, block.dst + place * block.dst_pitch),
                                   distance(first.src, block.src + place * block.src_pitch), (*range)[1], (*range)[2]});
      }
    }
  }
  Table shares = shares_of(bases, pieces, unit, kernel.cores);
  const auto programs = static_cast<int64_t>(shares.size()) / 3;
  return {unit == 4 ? kernel.of_words : kernel.of_bytes,
          programs,
          {first.dst, first.src},
          {std::move(shares), std::move(bases), std::move(pieces)}};
}

}  // namespace

KernelLaunch::KernelLaunch(void* function, int64_t programs, std::array<Address, 2> bases,
                           std::initializer_list<Table> tables, std::initializer_list<int64_t> numbers)
    : function(function), programs(programs) {
  // First three addresses for synchronisation, which no function of the kernel uses.
  block = {0, 0, 0, static_cast<int64_t>(bases[0]), static_cast<int64_t>(bases[1])};
  const size_t slots = block.size();
  block.insert(block.end(), tables.size(), 0);
  block.insert(block.end(), numbers);
  block.insert(block.end(), {programs | int64_t{1} << 32, 1});  // the grid, as int32
  for (const Table& table : tables) {
    place_holders.push_back({static_cast<uint32_t>((slots + place_holders.size()) * sizeof(int64_t)),
                             static_cast<uint32_t>(block.size() * sizeof(int64_t))});
    block.insert(block.end(), table.begin(), table.end());
  }
}

const Kernel* kernel_in_use(c10::Device device) {
  const LoadedKernel* const kernel = kernels[device.index()].load();
  const KernelUse use = kernel == nullptr ? KernelUse::kNever : kernel->use.load();
  const bool usable =
      use != KernelUse::kNever && (use != KernelUse::kByOneThread || kernel->loader == std::this_thread::get_id());
  return usable ? kernel : nullptr;
}

KernelPlan plan_for_kernel(const Plan& plan, c10::Device device) {
  const auto* const kernel = static_cast<const LoadedKernel*>(kernel_in_use(device));
  if (kernel == nullptr || (kernel->use == KernelUse::kWhereFaster && !is_faster(plan, *kernel))) {
    return {};
  }
  KernelPlan result;
  std::vector<Phase> phases(plan.phases.begin(), plan.phases.end());
  const auto ordered = std::find_if(phases.begin(), phases.end(), [](const Phase& phase) { return phase.ordered; });
  if (ordered == phases.end()) {
    for (const Phase& phase : phases) {
      result.launches.push_back(make_launch(*kernel, phase));
    }
    return result;
  }
  // All gathers, the plan's own too, are one launch, and so are all that write.
  result.buffer = at::empty({ordered->bytes}, at::TensorOptions(device).dtype(at::kByte));
  phases.insert(ordered, gather_into(result.buffer, *ordered));
  const size_t half = phases.size() / 2;
  result.launches.push_back(make_launch(*kernel, c10::ArrayRef(phases).slice(0, half)));
  result.launches.push_back(make_launch(*kernel, c10::ArrayRef(phases).slice(half)));
  return result;
}

void enqueue(const CallContext& call, const KernelLaunch& launch, aclrtStream stream) {
  static auto* const launch_kernel = runtime_function<Launch>("aclrtLaunchKernelWithHostArgs");
  const size_t bytes = launch.block.size() * sizeof(int64_t);
  CHECK_ACL(call,
            launch_kernel(launch.function, static_cast<uint32_t>(launch.programs), stream, nullptr, launch.block.data(),
                          bytes, launch.place_holders.data(), launch.place_holders.size()),
            "aclrtLaunchKernelWithHostArgs", "of ", launch.programs, " programs with ", bytes, " bytes of arguments");
  ++accepted;
}

uint64_t accepted_launches() { return accepted; }

}  // namespace llm_datadist

// For llm_datadist_torch/_native/warm_up.py. Loads the kernel for a device, the current one. Returns what went wrong,
// or nothing. The text is valid until the next call of the thread.
extern "C" __attribute__((visibility("default"))) const char* llm_datadist_npu_load_kernel(
    int device, const void* const binaries[3], const size_t bytes[3], int64_t tile_bytes) {
  using namespace llm_datadist;
  thread_local std::string error;
  try {
    runtime_function<Launch>("aclrtLaunchKernelWithHostArgs");
    auto kernel = std::make_unique<LoadedKernel>();
    constexpr int kVectorCores = 201;
    CHECK_ACL(warm_up, runtime_function<GetDeviceInfo>("aclrtGetDeviceInfo")(device, kVectorCores, &kernel->cores),
              "aclrtGetDeviceInfo", "of the vector cores");
    kernel->of_words = load(binaries[0], bytes[0], "copy_pieces");
    kernel->of_bytes = load(binaries[1], bytes[1], "copy_pieces");
    kernel->of_rows = load(binaries[2], bytes[2], "copy_rows");
    kernel->tile_bytes = tile_bytes;
    kernel->skipped =
        at::zeros({2}, at::device({at::kPrivateUse1, static_cast<c10::DeviceIndex>(device)}).dtype(at::kInt));
    kernels.at(device) = kernel.release();
    return nullptr;
  } catch (const c10::Error& caught) {
    error = caught.what_without_backtrace();
  }
  return error.c_str();
}

// Says where the kernel of a device may be used: a KernelUse.
extern "C" __attribute__((visibility("default"))) void llm_datadist_npu_use_kernel(int device, int use) {
  using namespace llm_datadist;
  if (LoadedKernel* const kernel = kernels.at(device).load()) {
    kernel->use = static_cast<KernelUse>(use);
  }
}

// The rows of tables on the device that have been skipped. Waits for the device.
extern "C" __attribute__((visibility("default"))) int64_t llm_datadist_npu_skipped_rows(int device) {
  const auto* const kernel = llm_datadist::kernels.at(device).load();
  return kernel == nullptr ? 0 : kernel->skipped[0].item<int32_t>();
}
