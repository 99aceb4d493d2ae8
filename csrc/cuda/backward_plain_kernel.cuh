// Backward kernel of the ordinary calls: a thread takes V adjacent neurons back through all time steps.
//
// Part of backward.cu.
#pragma once

#include "backward_chunked.cuh"

namespace snnfast::cuda::plain {
namespace {

template <typename Neuron, typename S, int V, typename Of>
constexpr int kThreads = threads_in(kBytes<Neuron, S, V, Of>);

// The least number of blocks at once. With fewer the compiler takes more registers, and with more it spills.
template <typename Neuron, typename S, int V, typename Of>
constexpr int kLeastBlocks = [] {
  constexpr int kOf = kThreads<Neuron, S, V, Of>;
  if (V > 1) return (kKeptRows<Neuron> > 1 ? 256 : sizeof(S) < sizeof(float) ? 512 : 384) / kOf;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // It takes a few registers more there.
  constexpr bool kLearnsOrClears = Of::kSums == Sums::kAll || Of::kReset == Reset::kZero;
  return (kKeptRows<Neuron> > 1 || (kLearnsOrClears && sizeof(S) < sizeof(float)) ? 512 : 640) / kOf;
#else
  return ((kKeptRows<Neuron> > 1 ? 640 : 768) - (Of::kReset == Reset::kZero ? 128 : 0)) / kOf;
#endif
}();

template <typename Neuron, typename S, int V, Reset kReset, bool kRecorded, Sums kSums>
__global__ void __launch_bounds__(kThreads<Neuron, S, V, Kind<kReset, kRecorded, kSums>>,
                                  kLeastBlocks<Neuron, S, V, Kind<kReset, kRecorded, kSums>>)
    backward_plain_kernel(const Backward<Neuron> p) {
  using Of = Kind<kReset, kRecorded, kSums>;
  constexpr int kOf = kThreads<Neuron, S, V, Of>, kOwn = kSums == Sums::kFirst ? 1 : Neuron::kParameters;
  __shared__ SharedMemory<kOf, kBytes<Neuron, S, V, Of>, kSums == Sums::kNone ? 1 : kOwn * sizeof(double)> shared;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  [[maybe_unused]] double own[kOwn] = {};
  if (first < p.N) {
    PlainBackward<Neuron, S, V, Of, false, kOf> neurons(p, first, shared.bytes);
    const int T = static_cast<int>(p.T);
    neurons.start(T);
    neurons.load();
    run(neurons, 0, T);
    neurons.finish(own);
  }
  if constexpr (kSums != Sums::kNone) {
    if (p.summed != 0) sum_parameters<kOf>(p, own, shared.bytes, static_cast<int>(blockDim.x));
  }
}

template <typename Neuron, typename S, typename Of>
int launch_width(const Backward<Neuron>& p, void* stream) {
  // Few calls in half precision learn anything. Those that do have fewer kernels.
  constexpr bool kHalf = sizeof(S) < sizeof(float);
  if constexpr (!kHalf || Of::kSums != Sums::kAll) {
    constexpr int V = kBackwardWidth<S>;
    const bool shares = shares_parameters(p) && (Of::kSums == Sums::kNone || p.summed != 0);
    if (backward_wants_vectors(p.N, V) && shares &&
        aligned(p.x, p.initial, p.mem_rec, p.rows, p.grad_spk, p.grad_last, p.grad_x, p.grad_x_sum, p.grad_initial,
                p.grad_parameters)) {
      return launch(backward_plain_kernel<Neuron, S, V, Of::kReset, Of::kRecorded, Of::kSums>, p.N / V,
                    kThreads<Neuron, S, V, Of>, stream, p);
    }
  }
  constexpr Sums kSums = kHalf && Of::kSums == Sums::kFirst ? Sums::kAll : Of::kSums;
  return launch(backward_plain_kernel<Neuron, S, 1, Of::kReset, Of::kRecorded, kSums>, p.N,
                threads_for(p.N, kThreads<Neuron, S, 1, Of>), stream, p);
}

template <typename Neuron>
int backward(const Backward<Neuron>& p, void* stream) {
  return visit(p, [&](const Backward<Neuron>& prepared, auto element, auto kind) {
    using S = decltype(element);
    if constexpr (Neuron::kStates == 1) {
      if (wants_chunked(p.T, p.N)) return launch_chunked<Neuron, S, decltype(kind)>(prepared, stream);
    }
    return launch_width<Neuron, S, decltype(kind)>(prepared, stream);
  });
}

}  // namespace
}  // namespace snnfast::cuda::plain
