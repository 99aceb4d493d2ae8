// Spikes drawn by their probabilities, with the random numbers of PyTorch's generator on the CPU.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace snnfast::cpu {

// The Mersenne Twister of PyTorch's generator: Matsumoto and Nishimura, 1998. Its numbers are made 624 at a time.
struct Twister {
  static constexpr int kSize = 624;

  uint32_t state[kSize];
  int next;  // the number that comes next; kSize: more are to be made
};

// Draws a spike for each of n probabilities, in their order, `steps` times over.
using DrawSpikes = void (*)(const float* probabilities, int64_t n, int64_t steps, Twister&, float* spikes);

SNN_DECLARE_FOR_EACH_ISA(DrawSpikes draw_spikes())

}  // namespace snnfast::cpu
