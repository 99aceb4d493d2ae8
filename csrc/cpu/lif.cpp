// The CPU backend: picks the kernels for this processor and spreads the blocks over PyTorch's threads.
#include "lif.h"

#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <unistd.h>
#endif

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "kernels.h"
#include "time_ranges.h"

namespace snnfast::cpu {
namespace {

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Threads share neurons out in multiples of this: whole vectors of every instruction set and whole cache lines.
constexpr int64_t kUnit = 64;

// Units that a thread takes at least of a forward pass: threads that share shorter rows take each other's cache lines
// away, and both together need longer than one alone.
constexpr int64_t kLeastUnits = 2;

// Of what is written past the caches: whole cache lines.
constexpr int64_t kAlignment = 64;

std::vector<const Kernels*> available() {  // best first
  std::vector<const Kernels*> found;
#if defined(SNN_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) found.push_back(&avx512::kernels);
  if (__builtin_cpu_supports("x86-64-v3")) found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

const Kernels* find(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : available()) {
    if (name == kernels->name) return kernels;
    names += std::string(names.empty() ? "" : ", ") + kernels->name;
  }
  STD_TORCH_CHECK(false, "SNNFAST_ISA: '", name, "' is not available on this processor; available: ", names);
}

const Kernels*& current() {
  static const Kernels* chosen = [] {
    const char* wanted = std::getenv("SNNFAST_ISA");
    return wanted != nullptr && *wanted != '\0' ? find(wanted) : available().front();
  }();
  return chosen;
}

// What a thread can count on of a last-level cache that many cores share: twice what processors have for each core. The
// system tells the size of the whole cache, to a virtual machine even where other machines use it too.
constexpr int64_t kCachePerThread = int64_t{8} << 20;

// Bytes of the last-level cache; 0 where nobody tells.
int64_t cache_bytes() {
#if defined(__linux__) && defined(_SC_LEVEL3_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

int64_t forced_stream_bytes = -1;

// Bytes that a call may touch before its outputs are written past the caches: what is larger than the caches evicts
// itself before anybody reads it, and each line written through the caches is first read from memory.
int64_t stream_bytes() {
  if (forced_stream_bytes >= 0) return forced_stream_bytes;
  const int64_t share = kCachePerThread * torch::stable::get_num_threads(), cache = cache_bytes();
  return cache > 0 && cache < share ? cache : share;
}

// `rows`: tensors with a row for every step that the call reads or writes; `written`: those that it writes.
bool past_the_caches(const LifProblem& p, int rows, std::initializer_list<const void*> written) {
  const int64_t row = p.N * element_size(p.dtype);
  // 16-bit rows wait for their conversion more than for the memory.
  const int64_t limit = element_size(p.dtype) == 2 ? 2 * stream_bytes() : stream_bytes();
  if (rows * p.T * row < limit || row % kAlignment != 0) return false;
  for (const void* tensor : written) {
    if (reinterpret_cast<uintptr_t>(tensor) % kAlignment != 0) return false;
  }
  return true;
}

bool past_the_caches(const LifForward& p) {
  const int rows = !p.x_constant + !p.spk_count + (p.mem_rec != nullptr);
  return past_the_caches(p, rows, {p.spk_count ? nullptr : p.spk, p.mem_rec});
}

bool past_the_caches(const LifBackward& p) {
  const bool x = p.x != nullptr && !p.x_constant, grad_spk = p.grad_spk != nullptr && !p.spk_count;
  const int rows =
      x + grad_spk + (p.mem_rec != nullptr) + (p.grad_mem_rec != nullptr) + (p.grad_x != nullptr && !p.x_constant);
  return past_the_caches(p, rows, {p.x_constant ? nullptr : p.grad_x});
}

// Calls `kernel` with the neurons of each thread.
template <typename Kernel>
void share_out(const LifProblem& p, int64_t least_units, Kernel&& kernel) {
  const int64_t units = (p.N + kUnit - 1) / kUnit;
  const int64_t work = kUnit * (p.T > 0 ? p.T : 1);
  const int64_t grain = work * least_units >= kGrain ? least_units : kGrain / work;
  torch::stable::parallel_for(0, units, grain, [&](int64_t first, int64_t last) {
    kernel(first * kUnit, last * kUnit < p.N ? last * kUnit : p.N);
  });
}

}  // namespace

void lif_forward(const LifForward& p) {
  const bool stream = past_the_caches(p);
  share_out(p, kLeastUnits,
            [&, kernel = current()->forward](int64_t first, int64_t last) { kernel(p, first, last, stream); });
}

void lif_backward(const LifBackward& p) {
  const Kernels& kernels = *current();
  const bool stream = past_the_caches(p);
  TimeSums sums(p);
  const TimeRanges ranges = choose_time_ranges(sums, torch::stable::get_num_threads());
  sums.open(/*divided=*/ranges.count > 1);
  if (ranges.count > 1) return backward_in_time_ranges(sums, ranges, kernels, kUnit, stream);
  share_out(p, 1, [&](int64_t first, int64_t last) { sums.run_all(kernels, first, last, stream); });
}

int64_t set_stream_bytes(int64_t bytes) { return std::exchange(forced_stream_bytes, bytes); }

std::string isa() { return current()->name; }
void set_isa(const std::string& name) { current() = find(name); }

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace snnfast::cpu
