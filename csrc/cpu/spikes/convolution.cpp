// Compiled once for each instruction set. The rules at the top of kernels.cpp hold here too.
#include "convolution.h"

#include <type_traits>

namespace snnfast::cpu::SNN_ISA {
namespace {

template <int Lanes>
void add(float* __restrict to, const float* __restrict from, float value) {
  for (int i = 0; i < Lanes; ++i) to[i] += value * from[i];
}

// Visits all pairs of a tap and an output that an event reaches, by their offsets.
template <typename Visit>
void reach(const Convolution& p, const Event& event, Visit&& visit) {
  const Reach y = p.reach_y[event.y], x = p.reach_x[event.x];
  int64_t tap = (int64_t{event.channel} * p.kernel_y + y.tap) * p.kernel_x + x.tap;
  int64_t output = int64_t{y.output} * p.X + x.output;
  for (int i = 0; i < y.n; ++i, tap += int64_t{p.stride_y} * p.kernel_x, output -= p.X) {
    for (int j = 0; j < x.n; ++j) visit(tap + int64_t{j} * p.stride_x, output - j);
  }
}

// Calls f with the lanes of a block as a constant.
template <typename F>
void with_lanes(int lanes, F&& f) {
  if (lanes == 16) return f(std::integral_constant<int, 16>{});
  if (lanes == 32) return f(std::integral_constant<int, 32>{});
  f(std::integral_constant<int, kMostLanes>{});
}

void forward(const Convolution& p, const Event* first, const Event* last, const float* weights, float* tile) {
  with_lanes(p.lanes, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    for (const Event* event = first; event != last; ++event) {
      reach(p, *event, [&](int64_t tap, int64_t output) {
        add<kLanes>(tile + output * kLanes, weights + tap * kLanes, event->value);
      });
    }
  });
}

void backward(const Convolution& p, const Event* first, const Event* last, const float* grad, float* weights) {
  with_lanes(p.lanes, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    for (const Event* event = first; event != last; ++event) {
      reach(p, *event, [&](int64_t tap, int64_t output) {
        add<kLanes>(weights + tap * kLanes, grad + output * p.O, event->value);
      });
    }
  });
}

}  // namespace

const ConvolutionKernels& convolution_kernels() {
  static constexpr ConvolutionKernels kernels{forward, backward};
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
