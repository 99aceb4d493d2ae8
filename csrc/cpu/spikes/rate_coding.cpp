// The op of rate coding on the CPU. snnfast/snntorch/spikegen.py decides when it is called.
#include <cstring>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../../op/backend.h"
#include "rate.h"

namespace snnfast {
namespace {

using cpu::Twister;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cpu::DrawSpikes kernel() { SNN_RETURN_OF_CURRENT_ISA(draw_spikes()) }

// The bytes of Generator.get_state() of a generator on the CPU, as PyTorch reads and writes them.
// tests/with_snntorch/test_spikegen.py compares the state behind a draw with PyTorch's.
struct GeneratorState {
  uint64_t seed;
  int32_t left;  // of 624 numbers; 1: none
  int32_t seeded;
  uint64_t next;
  uint64_t state[Twister::kSize];
  unsigned char of_normal_numbers[40];
};

// Draws `steps` spikes [steps, *] for each probability, and writes the state of the generator behind them to `state`.
Tensor draw_spikes(const Tensor& probabilities, int64_t steps, Tensor state) {
  STD_TORCH_CHECK(
      probabilities.is_cpu() && probabilities.scalar_type() == ScalarType::Float && probabilities.is_contiguous(),
      "probabilities: expected contiguous float32 on the CPU");
  STD_TORCH_CHECK(steps >= 0, "steps: expected a number from 0");
  STD_TORCH_CHECK(state.is_cpu() && state.scalar_type() == ScalarType::Byte && state.is_contiguous() &&
                      state.numel() == sizeof(GeneratorState),
                  "state: expected that of a generator on the CPU");
  GeneratorState generator;
  std::memcpy(&generator, state.const_data_ptr(), sizeof(generator));
  STD_TORCH_CHECK(generator.left >= 1 && generator.left <= Twister::kSize && generator.next <= Twister::kSize,
                  "state: expected that of a generator on the CPU");
  Twister twister;
  for (int i = 0; i < Twister::kSize; ++i) twister.state[i] = static_cast<uint32_t>(generator.state[i]);
  twister.next = generator.left == 1 ? Twister::kSize : static_cast<int>(generator.next);
  std::vector<int64_t> sizes{steps}, strides{probabilities.numel()};
  for (int64_t dim = 0; dim < probabilities.dim(); ++dim) {
    sizes.push_back(probabilities.size(dim));
    strides.push_back(probabilities.stride(dim));
  }
  const Tensor spikes = CpuBackend::empty(probabilities, Shape(sizes), Shape(strides), ScalarType::Float);
  if (spikes.numel() == 0) return spikes;
  kernel()(static_cast<const float*>(probabilities.const_data_ptr()), probabilities.numel(), steps, twister,
           static_cast<float*>(spikes.mutable_data_ptr()));
  for (int i = 0; i < Twister::kSize; ++i) generator.state[i] = twister.state[i];
  generator.next = static_cast<uint64_t>(twister.next);
  generator.left = Twister::kSize + 1 - twister.next;
  std::memcpy(state.mutable_data_ptr(), &generator, sizeof(generator));
  return spikes;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("draw_spikes(Tensor probabilities, int steps, Tensor(a!) state) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) { m.impl("draw_spikes", SNN_BOX(draw_spikes)); }

}  // namespace snnfast
