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

namespace snnfast::cpu {
namespace {

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Threads share neurons out in multiples of this: whole vectors of every instruction set and whole cache lines.
constexpr int64_t kUnit = 64;

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

// Bytes that a call may touch before its outputs are written past the caches: what is larger than the last-level cache
// evicts itself before anybody reads it, and each line written through the caches is first read from memory.
int64_t& stream_bytes() {
  static int64_t bytes = [] {
    int64_t size = 0;
#if defined(__linux__) && defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : int64_t{32} << 20;  // where the system does not tell
  }();
  return bytes;
}

int64_t element_size(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

// `rows`: tensors with a row for every step that the call reads or writes; `written`: those that it writes.
bool past_the_caches(const LifProblem& p, int rows, std::initializer_list<const void*> written) {
  const int64_t row = p.N * element_size(p.dtype);
  if (rows * p.T * row < stream_bytes() || row % kAlignment != 0) return false;
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

template <typename Problem>
void run(const Problem& problem, void (*kernel)(const Problem&, int64_t, int64_t, bool)) {
  const int64_t units = (problem.N + kUnit - 1) / kUnit;
  const int64_t work = kUnit * (problem.T > 0 ? problem.T : 1);
  const bool stream = past_the_caches(problem);
  torch::stable::parallel_for(0, units, work >= kGrain ? 1 : kGrain / work, [&](int64_t first, int64_t last) {
    kernel(problem, first * kUnit, last * kUnit < problem.N ? last * kUnit : problem.N, stream);
  });
}

}  // namespace

void lif_forward(const LifForward& problem) { run(problem, current()->forward); }
void lif_backward(const LifBackward& problem) { run(problem, current()->backward); }

int64_t set_stream_bytes(int64_t bytes) { return std::exchange(stream_bytes(), bytes); }

std::string isa() { return current()->name; }
void set_isa(const std::string& name) { current() = find(name); }

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace snnfast::cpu
