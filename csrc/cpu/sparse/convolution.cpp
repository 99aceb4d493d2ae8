// Compiled once for each instruction set, as kernels.cpp, whose rules hold here too.
#include "convolution.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <int Lanes>
void add(float* __restrict to, const float* __restrict from, float value) {
  for (int i = 0; i < Lanes; ++i) to[i] += value * from[i];
}

// Visit all pairs of a tap and an output, by their offsets.
template <typename Visit>
void reach(const Convolution& p, const Event& event, Visit&& visit) {
  const Reach y = p.reach_y[event.y], x = p.reach_x[event.x];
  int64_t tap = (int64_t{event.channel} * p.kernel_y + y.tap) * p.kernel_x + x.tap;
  int64_t output = int64_t{y.output} * p.X + x.output;
  for (int i = 0; i < y.n; ++i, tap += int64_t{p.stride_y} * p.kernel_x, output -= p.X) {
    for (int j = 0; j < x.n; ++j) visit(tap + int64_t{j} * p.stride_x, output - j);
  }
}

template <int Lanes>
void forward(const Convolution& p, const Event* first, const Event* last, const float* weights, float* tile) {
  for (; first != last; ++first) {
    reach(p, *first,
          [&](int64_t tap, int64_t output) { add<Lanes>(tile + output * Lanes, weights + tap * Lanes, first->value); });
  }
}

template <int Lanes>
void backward(const Convolution& p, const Event* first, const Event* last, const float* grad, float* weights) {
  for (; first != last; ++first) {
    reach(p, *first,
          [&](int64_t tap, int64_t output) { add<Lanes>(weights + tap * Lanes, grad + output * p.O, first->value); });
  }
}

void any_forward(const Convolution& p, const Event* first, const Event* last, const float* weights, float* tile) {
  if (p.lanes == 16) return forward<16>(p, first, last, weights, tile);
  if (p.lanes == 32) return forward<32>(p, first, last, weights, tile);
  forward<kMostLanes>(p, first, last, weights, tile);
}

void any_backward(const Convolution& p, const Event* first, const Event* last, const float* grad, float* weights) {
  if (p.lanes == 16) return backward<16>(p, first, last, grad, weights);
  if (p.lanes == 32) return backward<32>(p, first, last, grad, weights);
  backward<kMostLanes>(p, first, last, grad, weights);
}

}  // namespace

const ConvolutionKernels& convolution_kernels() {
  static constexpr ConvolutionKernels kernels{any_forward, any_backward};
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
