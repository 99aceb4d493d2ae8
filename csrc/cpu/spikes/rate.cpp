// The kernel of rate coding. The compiler vectorises its loops.
#include "rate.h"

#include <algorithm>

namespace snnfast::cpu::SNN_ISA {
namespace {

constexpr int kSize = Twister::kSize, kOther = 397;

uint32_t twisted(uint32_t high, uint32_t low) {
  return (((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1) ^ ((low & 1u) * 0x9908b0dfu);
}

void make_numbers(uint32_t* state) {
  // A number needs the one that is kOther places on, or, near the end, that of this round which is so far from it.
  for (int i = 0; i < kSize - kOther; ++i) state[i] = state[i + kOther] ^ twisted(state[i], state[i + 1]);
  const auto later = [&](int first, int last) {
    for (int i = first; i < last; ++i) state[i] = state[i + kOther - kSize] ^ twisted(state[i], state[i + 1]);
  };
  // In parts that do not reach their own results, so that each is vectorised.
  later(kSize - kOther, 2 * (kSize - kOther));
  later(2 * (kSize - kOther), kSize - 1);
  state[kSize - 1] = state[kOther - 1] ^ twisted(state[kSize - 1], state[0]);
}

// PyTorch's uniform number in [0, 1) from 24 bits of a number.
float uniform(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  y ^= y >> 18;
  return static_cast<float>(static_cast<int32_t>(y & 0xffffffu)) * (1.0f / (1 << 24));
}

void draw(const float* probabilities, int64_t n, int64_t steps, Twister& twister, float* spikes) {
  for (int64_t step = 0; step < steps; ++step, spikes += n) {
    for (int64_t i = 0; i < n;) {
      if (twister.next == kSize) {
        make_numbers(twister.state);
        twister.next = 0;
      }
      const int count = static_cast<int>(std::min<int64_t>(kSize - twister.next, n - i));
      const uint32_t* const numbers = twister.state + twister.next;
      for (int k = 0; k < count; ++k) spikes[i + k] = uniform(numbers[k]) < probabilities[i + k] ? 1.0f : 0.0f;
      twister.next += count;
      i += count;
    }
  }
}

}  // namespace

DrawSpikes draw_spikes() { return draw; }

}  // namespace snnfast::cpu::SNN_ISA
