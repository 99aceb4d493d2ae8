// The CPU backend: picks the kernels for this processor and spreads the blocks over PyTorch's threads.
#include "lif.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "kernels.h"

namespace snnfast::cpu {
namespace {

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// Threads share neurons out in multiples of this: whole vectors of every instruction set and whole cache lines.
constexpr int64_t kUnit = 64;

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

template <typename Problem>
void run(const Problem& problem, void (*kernel)(const Problem&, int64_t, int64_t)) {
  const int64_t units = (problem.N + kUnit - 1) / kUnit;
  const int64_t work = kUnit * (problem.T > 0 ? problem.T : 1);
  torch::stable::parallel_for(0, units, work >= kGrain ? 1 : kGrain / work, [&](int64_t first, int64_t last) {
    kernel(problem, first * kUnit, last * kUnit < problem.N ? last * kUnit : problem.N);
  });
}

}  // namespace

void lif_forward(const LifForward& problem) { run(problem, current()->forward); }
void lif_backward(const LifBackward& problem) { run(problem, current()->backward); }

std::string isa() { return current()->name; }
void set_isa(const std::string& name) { current() = find(name); }

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace snnfast::cpu
