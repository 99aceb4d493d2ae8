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
  if (Of::kChunk <= kFewSteps) return (Of::kSums != Sums::kNone ? 640 : ResetsAtOnce<Neuron> ? 896 : 1024) / kOf;
  if (Of::kAsks) return (V > 1 ? 256 : 512) / kOf;
  if (V > 1) return (kRows<Neuron, Of> > 1 ? 256 : sizeof(S) < sizeof(float) ? 512 : 384) / kOf;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // It takes a few registers more there.
  constexpr bool kLearnsOrClears = Of::kSums == Sums::kAll || Of::kReset == Reset::kZero;
  return (kRows<Neuron, Of> > 1 || (kLearnsOrClears && sizeof(S) < sizeof(float)) ? 512 : 640) / kOf;
#else
  constexpr bool kMore = Of::kReset == Reset::kZero || Of::kSums == Sums::kAll;
  return ((kRows<Neuron, Of> > 1 ? 640 : 768) - (kMore ? 128 : 0)) / kOf;
#endif
}();

template <typename Neuron, typename S, int V, Reset kReset, bool kRecorded, Sums kSums, bool kOpen, int kChunk>
__global__ void __launch_bounds__(kThreads<Neuron, S, V, Kind<kReset, kRecorded, kSums, kOpen, kChunk>>,
                                  kLeastBlocks<Neuron, S, V, Kind<kReset, kRecorded, kSums, kOpen, kChunk>>)
    backward_plain_kernel(const Backward<Neuron> p) {
  using Of = Kind<kReset, kRecorded, kSums, kOpen, kChunk>;
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
    if (p.summed != 0) sum_parameters<kOf, (V > 1)>(p, own, shared.bytes, static_cast<int>(blockDim.x));
  }
}

template <typename Neuron, typename S, int V, typename Of>
int launch_kind(const Backward<Neuron>& p, void* stream) {
  constexpr int kOf = kThreads<Neuron, S, V, Of>;
  return launch(backward_plain_kernel<Neuron, S, V, Of::kReset, Of::kRecorded, Of::kSums, Of::kOpen, Of::kChunk>,
                p.N / V, V > 1 ? kOf : threads_for(p.N, kOf), stream, p);
}

template <typename Neuron, typename S, typename Of>
int launch_width(const Backward<Neuron>& p, void* stream) {
  constexpr Reset kReset = Of::kReset;
  constexpr bool kRecorded = Of::kRecorded, kOpen = Of::kOpen;
  // Few calls in half precision learn anything. Those that do have fewer kernels.
  constexpr bool kHalf = sizeof(S) < sizeof(float);
  if constexpr (!kHalf || Of::kSums == Sums::kNone || (Of::kSums == Sums::kFirst && !ResetsAtOnce<Neuron>)) {
    constexpr int V = kBackwardWidth<S>;
    const bool shares = shares_parameters(p) && (Of::kSums == Sums::kNone || p.summed != 0 || !p.sums_parameters());
    if (backward_wants_vectors(p.N, V) && shares &&
        aligned(p.x, p.initial, p.mem_rec, p.rows, p.grad_spk, p.grad_record, p.grad_last, p.grad_x, p.grad_x_sum,
                p.grad_initial, p.grad_parameters)) {
      constexpr bool kOfLeaky = kHasSums<Neuron> && (Of::kSums != Sums::kAll || Of::kAsks) &&
                                (!kHalf || (Of::kSums == Sums::kNone && kReset == Reset::kSubtract));
      if constexpr (ResetsAtOnce<Neuron> || kOfLeaky) {
        using OfFew = Kind<kReset, kRecorded, Of::kSums, kOpen, kFewSteps>;
        if (p.T <= kFewSteps) return launch_kind<Neuron, S, V, OfFew>(p, stream);
      }
      return launch_kind<Neuron, S, V, Of>(p, stream);
    }
  }
  constexpr Sums kInHalf = kHalf && Of::kSums == Sums::kFirst ? Sums::kAll : Of::kSums;
  constexpr Sums kSums = ResetsAtOnce<Neuron> ? Sums::kFirst : kInHalf;
  return launch_kind<Neuron, S, 1, Kind<kReset, kRecorded, kSums, kOpen>>(p, stream);
}

// Nothing where no plain kernel takes the call.
template <typename Neuron>
std::optional<int> backward(const Backward<Neuron>& p, void* stream) {
  return visit(p, [&](const Backward<Neuron>& prepared, auto element, auto kind) {
    using S = decltype(element);
    using Of = decltype(kind);
    constexpr bool kLearnsInHalf = sizeof(S) < sizeof(float) && Of::kSums != Sums::kNone;
    if constexpr (kHasSums<Neuron> && !Of::kOpen && !kLearnsInHalf) {
      if (wants_chunked(p.T, p.N)) return launch_chunked<Neuron, S, Of>(prepared, stream);
    }
    return launch_width<Neuron, S, Of>(prepared, stream);
  });
}

}  // namespace
}  // namespace snnfast::cuda::plain
