// Forward kernel of the ordinary calls (plain.cuh). A thread requests the currents of the next batch of steps before it
// computes the present one.
//
// Part of forward.cu.
#pragma once

#include "plain.cuh"

namespace snnfast::cuda::plain {
namespace {

// Steps of a batch. With one neuron per thread, so many hide the latency of memory even with few warps. Several neurons
// have as many bytes under way with fewer steps.
template <int V>
constexpr int kBatch = V > 1 ? 4 : 16;

template <int V>
constexpr int kThreads = V == 1 ? 128 : 256;

// The least number of blocks at once leaves registers for 1024 threads of a multiprocessor, or for fewer where they do
// not suffice.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr bool kMore = ResetsAtOnce<Neuron> || Neuron::kStates > 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if (V > 1 && std::is_same_v<S, BFloat16>) return 1;  // there the conversion is several instructions
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (V == 1 && kMore) return (sizeof(S) == 4 ? 512 : 640) / kThreads<V>;  // without a spill
  if (ResetsAtOnce<Neuron> && V == 4) return 512 / kThreads<V>;            // as here
#endif
  if (V == 1) return (kMore || sizeof(S) == 2 ? 896 : 1024) / kThreads<V>;
  return (sizeof(S) == 4 ? (kMore ? 768 : 1024) : (kMore ? 256 : 768)) / kThreads<V>;
}();

template <typename Neuron, typename S, int V, Reset kReset, bool kRecord, bool kFew>
struct PlainForward {
  using A = Opmath<S>;
  static constexpr int kSteps = kBatch<V>;
  using Batch = Raw<S, V>[kSteps];
  static constexpr int kStates = Neuron::kStates;

  const S* x;  // of the next step to request
  S* spk;      // of the next step to write, as the rows below
  S* record[kStates];
  A* checkpoint;  // nullptr: none are saved
  const int64_t N, x_stride;
  A parameters[Neuron::kParameters];
  A state[V][kStates];

  __device__ __forceinline__ PlainForward(const Forward<Neuron>& p, int64_t first)
      : x(static_cast<const S*>(p.x) + first),
        spk(static_cast<S*>(p.spk) + first),
        checkpoint(p.saved == Saved::kCheckpoints && p.rows != nullptr ? static_cast<A*>(p.rows) + first : nullptr),
        N(p.N),
        x_stride(p.x_stride()) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) record[s] = kRecord ? static_cast<S*>(p.record[s]) + first : nullptr;
  }

  // Requests the currents of `count` steps, or of a whole batch.
  template <bool kWhole>
  __device__ __forceinline__ void request(Batch& batch, int count) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const bool there = kWhole || k < count;
      if (!kFew && !there) continue;  // to break off would take more code
      if (there) batch[k] = get<S, V>(x);
      advance(x, x_stride);
    }
    in_order();
  }

  // The steps from `t` on.
  template <bool kWhole>
  __device__ __forceinline__ void compute(int t, const Batch& batch, int count) {
    if (checkpoint != nullptr && t > 0 && t % static_cast<int>(kCheckpoint) == 0) save();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!kWhole && k >= count) continue;
      A current[V], spikes[V];
      Fired<A> fired[V];
      unpack(batch[k], current);
      step_all<Neuron, kReset>(current, parameters, state, fired);
#pragma unroll
      for (int i = 0; i < V; ++i) spikes[i] = fired[i].spk;
      store<V>(spk, spikes);
      advance(spk, N);
      if constexpr (kRecord) {
#pragma unroll
        for (int s = 0; s < kStates; ++s) {
          store_row(record[s], s, state);
          advance(record[s], N);
        }
      }
    }
  }

  __device__ __forceinline__ void save() {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      store_row(checkpoint, s, state);
      advance(checkpoint, N);
    }
  }
};

// kFew: the call has no more steps than a batch.
template <typename Neuron, typename S, int V, Reset kReset, bool kRecord, bool kFew>
__global__ void __launch_bounds__(kThreads<V>, kLeastBlocks<Neuron, S, V>)
    forward_plain_kernel(const Forward<Neuron> p) {
  using A = Opmath<S>;
  constexpr int kSteps = kBatch<V>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (first >= p.N) return;
  const int T = static_cast<int>(p.T);
  PlainForward<Neuron, S, V, kReset, kRecord, kFew> neurons(p, first);
  Raw<S, V> now[kSteps], next[kSteps];
  neurons.template request<false>(now, T);
  States<Neuron, A, V> before;
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) before.rows[s] = initial<A, V>(p, s, first);
  in_order();
  load_numbers<S, V>(p, first, neurons.parameters);
  before.to(neurons.state);

  int t = kFew ? T : 0;
  if constexpr (kFew) {
    if (T == kSteps) {
      neurons.template compute<true>(0, now, kSteps);
    } else {
      neurons.template compute<false>(0, now, T);
    }
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  constexpr bool kInPairs = !std::is_same_v<S, BFloat16>;  // two batches would spill its conversions
#else
  constexpr bool kInPairs = true;
#endif
#pragma unroll 1
  for (; kInPairs && t <= T - 3 * kSteps; t += 2 * kSteps) {  // so that no batch is copied
    neurons.template request<true>(next, kSteps);
    neurons.template compute<true>(t, now, kSteps);
    neurons.template request<true>(now, kSteps);
    neurons.template compute<true>(t + kSteps, next, kSteps);
  }
#pragma unroll 1
  for (; t < T; t += kSteps) {
    neurons.template request<false>(next, T - t - kSteps);
    neurons.template compute<false>(t, now, T - t);
    copy(now, next);
  }
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) {
    if (p.last[s] != nullptr) store_row(static_cast<A*>(p.last[s]) + first, s, neurons.state);
  }
}

template <typename Neuron, typename S, Reset kReset, bool kRecord>
int launch_width(const Forward<Neuron>& p, void* stream) {
  constexpr int V = kForwardWidth<S>;
  if (forward_wants_vectors(p.N, V) && shares_parameters(p) &&
      aligned(p.x, p.initial, p.spk, p.record, p.last, p.rows)) {
    if constexpr (ResetsAtOnce<Neuron> && V == 4) {  // eight neurons, or a lighter step, hide the rest
      if (p.T <= kBatch<V>) {
        return launch(forward_plain_kernel<Neuron, S, V, kReset, kRecord, true>, p.N / V, kThreads<V>, stream, p);
      }
    }
    return launch(forward_plain_kernel<Neuron, S, V, kReset, kRecord, false>, p.N / V, kThreads<V>, stream, p);
  }
  return launch(forward_plain_kernel<Neuron, S, 1, kReset, kRecord, false>, p.N, threads_for(p.N, kThreads<1>), stream,
                p);
}

template <typename Neuron, typename S>
int launch_element(const Forward<Neuron>& p, void* stream) {
  if (p.rule.reset == Reset::kZero) return launch_width<Neuron, S, Reset::kZero, false>(p, stream);
  if constexpr (!ResetsAtOnce<Neuron>) {
    if (given(p.record) != 0) return launch_width<Neuron, S, Reset::kSubtract, true>(p, stream);
  }
  return launch_width<Neuron, S, Reset::kSubtract, false>(p, stream);
}

template <typename Neuron>
bool takes(const Forward<Neuron>& p) {
  if (!is_ordinary(p) || p.reduce || p.spk == nullptr || p.bits != nullptr || p.deciding != nullptr) return false;
  const bool subtracts = p.rule.reset == Reset::kSubtract && !ResetsAtOnce<Neuron>;
  return given(p.record) == 0 || (subtracts && given(p.record) == Neuron::kStates);
}

template <typename Neuron>
int forward(Forward<Neuron> p, void* stream) {
  set_numbers(p);
  return visit_element<false>(p.dtype,
                              [&](auto element) { return launch_element<Neuron, decltype(element)>(p, stream); });
}

}  // namespace
}  // namespace snnfast::cuda::plain
