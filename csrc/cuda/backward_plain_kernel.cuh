// Backward kernel of the ordinary calls: a thread takes V adjacent neurons back through all time steps.
//
// Part of backward.cu.
#pragma once

#include <algorithm>
#include <bit>

#include "backward_plain.cuh"

namespace snnfast::cuda::plain {
namespace {

// As in backward.cu.
template <typename S>
constexpr int kWidth = 16 / static_cast<int>(sizeof(Opmath<S>));

template <typename Neuron, typename S, int V>
constexpr int kThreads = [] {
  if constexpr (V == 1) return 128;
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(32 * 1024 / std::max(kBytes<Neuron, S, V>, 1))));
}();

// The least number of blocks at once: with less the compiler takes more registers, with more it spills.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr int kOf = kThreads<Neuron, S, V>;
  if (V > 1 && kRows<Neuron> > 1) return 256 / kOf;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (V > 1) return 384 / kOf;  // it takes a few registers too many for 512
#endif
  if (V > 1) return 512 / kOf;
  return (kRows<Neuron> > 1 ? 512 : 896) / kOf;
}();

template <typename Neuron, typename S, int V, Reset kReset>
__global__ void __launch_bounds__(kThreads<Neuron, S, V>, kLeastBlocks<Neuron, S, V>)
    backward_plain_kernel(const Backward<Neuron> p, const bool streaming) {
  using A = Opmath<S>;
  constexpr int kOf = kThreads<Neuron, S, V>;
  __shared__ Pack<A, V> steps[V == 1 ? 1 : kChunk * kRows<Neuron>][kOf];
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (first >= p.N) return;
  PlainBackward<Neuron, S, V, kReset, kOf> neurons(p, first, streaming, steps);
  const int T = static_cast<int>(p.T);
  neurons.start(T);
  neurons.load();
  neurons.template run<false>(0, T);
  neurons.finish();
}

template <typename Neuron, typename S, Reset kReset>
int launch_width(const Backward<Neuron>& p, void* stream) {
  constexpr int V = kWidth<S>;
  if (p.N >= vector_minimum() && p.N % V == 0 &&
      aligned(p.x, p.initial, p.rows, p.grad_spk, p.grad_last, p.grad_x, p.grad_initial)) {
    return launch(backward_plain_kernel<Neuron, S, V, kReset>, p.N / V, kThreads<Neuron, S, V>, stream, p);
  }
  return launch(backward_plain_kernel<Neuron, S, 1, kReset>, p.N, threads_for(p.N, kThreads<Neuron, S, 1>), stream, p);
}

template <typename Neuron>
int backward(const Backward<Neuron>& p, void* stream) {
  return visit(p, [&](const Backward<Neuron>& plain, auto element, auto reset) {
    return launch_width<Neuron, decltype(element), decltype(reset)::value>(plain, stream);
  });
}

}  // namespace
}  // namespace snnfast::cuda::plain
