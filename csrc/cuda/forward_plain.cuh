// Forward kernel of the ordinary calls (plain.cuh). While a thread computes a batch of steps, its currents of the next
// batch are under way.
//
// Part of forward.cu.
#pragma once

#include "plain.cuh"

namespace snnfast::cuda::plain {
namespace {

// Steps of a batch: of one neuron as many as hide the latency of memory where there are few warps; a thread of several
// neurons has as much under way with less of them.
template <int V>
constexpr int kBatch = V > 1 ? 4 : 16;

template <int V>
constexpr int kThreads = V == 1 ? 128 : 256;

// Registers for 1024 threads of a multiprocessor; for fewer where a thread has eight neurons, or a neuron has more than
// four numbers.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr bool kMore = Neuron::kStates + Neuron::kParameters > 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if (V > 1 && std::is_same_v<S, BFloat16>) return 1;  // no instruction converts it there, which takes registers
#endif
  if (V == 1) return (kMore ? 896 : 1024) / kThreads<V>;
  return (sizeof(S) == 4 ? (kMore ? 768 : 1024) : (kMore ? 512 : 768)) / kThreads<V>;
}();

template <typename Neuron, typename S, int V, Reset kReset, bool kRecord>
struct PlainForward {
  using A = Opmath<S>;
  static constexpr int kSteps = kBatch<V>;
  using Batch = Raw<S, V>[kSteps];
  static constexpr int kStates = Neuron::kStates;

  const S* x;  // of the next step to request
  S* spk;      // of the next step to write, as all that follow
  S* record[kStates];
  A* checkpoint;  // nullptr: none are saved
  const int64_t N;
  const bool streaming;  // of what is written
  const bool last;       // of what is read
  A parameters[Neuron::kParameters];
  A state[V][kStates];

  __device__ __forceinline__ PlainForward(const Forward<Neuron>& p, int64_t first, bool stream)
      : x(static_cast<const S*>(p.x) + first),
        spk(static_cast<S*>(p.spk) + first),
        checkpoint(p.saved == Saved::kCheckpoints && p.rows != nullptr ? static_cast<A*>(p.rows) + first : nullptr),
        N(p.N),
        streaming(V > 1 && stream),  // of one neuron a step the question would cost an eighth
        last(streaming && p.saved != Saved::kCheckpoints) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) record[s] = kRecord ? static_cast<S*>(p.record[s]) + first : nullptr;
  }

  // `count` steps, or all of a batch where kWhole.
  template <bool kWhole>
  __device__ __forceinline__ void request(Batch& batch, int count) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!kWhole && k >= count) break;
      batch[k] = get<S, V>(x, last);
      advance(x, N);
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void compute(const Batch& batch, int count) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!kWhole && k >= count) break;
      A current[V], spikes[V];
      unpack(batch[k], current);
      step_all<Neuron, kReset>(current, parameters, state, spikes);
      store<V>(spk, spikes, streaming);
      advance(spk, N);
      if constexpr (kRecord) {
#pragma unroll
        for (int s = 0; s < kStates; ++s) {
          store_row(record[s], s, state, streaming);
          advance(record[s], N);
        }
      }
    }
  }

  __device__ __forceinline__ void save() {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      store_row(checkpoint, s, state, streaming);
      advance(checkpoint, N);
    }
  }
};

template <typename Neuron, typename S, int V, Reset kReset, bool kRecord>
__global__ void __launch_bounds__(kThreads<V>, kLeastBlocks<Neuron, S, V>)
    forward_plain_kernel(const Forward<Neuron> p, const bool streaming) {
  using A = Opmath<S>;
  constexpr int kSteps = kBatch<V>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (first >= p.N) return;
  const int whole = static_cast<int>(p.T) / kSteps, rest = static_cast<int>(p.T) % kSteps;
  PlainForward<Neuron, S, V, kReset, kRecord> neurons(p, first, streaming);
  Raw<S, V> now[kSteps], next[kSteps];
  if (whole > 0) {
    neurons.template request<true>(now, kSteps);
  } else {
    neurons.template request<false>(now, rest);
  }
  States<Neuron, A, V> initial;
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) initial.request(s, offset<A>(p.initial[s], first), false);
  in_order();
  load_shared<S>(p, neurons.parameters);
  initial.to(neurons.state);

#pragma unroll 2
  for (int batch = 0; batch < whole; ++batch) {
    if (batch + 1 < whole) {
      neurons.template request<true>(next, kSteps);
    } else {
      neurons.template request<false>(next, rest);
    }
    in_order();
    if (neurons.checkpoint != nullptr && batch > 0 && batch % (static_cast<int>(kCheckpoint) / kSteps) == 0) {
      neurons.save();
    }
    neurons.template compute<true>(now, kSteps);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) now[k] = next[k];
  }
  if (rest > 0) {
    if (neurons.checkpoint != nullptr && whole > 0 && whole % (static_cast<int>(kCheckpoint) / kSteps) == 0) {
      neurons.save();
    }
    neurons.template compute<false>(now, rest);
  }
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) {
    if (p.last[s] != nullptr) store_row(static_cast<A*>(p.last[s]) + first, s, neurons.state);
  }
}

template <typename Neuron, typename S, Reset kReset, bool kRecord>
int launch_width(const Forward<Neuron>& p, void* stream) {
  constexpr int V = kVector<S>;
  const bool vectors =
      p.N >= vector_minimum() && p.N % V == 0 && aligned(p.x, p.initial, p.spk, p.record, p.last, p.rows);
  if (vectors) {
    return launch(forward_plain_kernel<Neuron, S, V, kReset, kRecord>, p.N / V, kThreads<V>, stream, p);
  }
  return launch(forward_plain_kernel<Neuron, S, 1, kReset, kRecord>, p.N, threads_for(p.N, kThreads<1>), stream, p);
}

template <typename Neuron, typename S>
int launch_element(const Forward<Neuron>& p, void* stream) {
  if (p.rule.reset == Reset::kZero) return launch_width<Neuron, S, Reset::kZero, false>(p, stream);
  return given(p.record) == 0 ? launch_width<Neuron, S, Reset::kSubtract, false>(p, stream)
                              : launch_width<Neuron, S, Reset::kSubtract, true>(p, stream);
}

template <typename Neuron>
bool takes(const Forward<Neuron>& p) {
  if (!is_ordinary(p) || p.reduce || p.spk == nullptr || p.bits != nullptr || p.deciding != nullptr) return false;
  if (p.saved != Saved::kNothing && p.saved != Saved::kCheckpoints) return false;
  return given(p.record) == 0 || (p.rule.reset == Reset::kSubtract && given(p.record) == Neuron::kStates);
}

template <typename Neuron>
int forward(const Forward<Neuron>& p, void* stream) {
  return visit_element<false>(p.dtype,
                              [&](auto element) { return launch_element<Neuron, decltype(element)>(p, stream); });
}

}  // namespace
}  // namespace snnfast::cuda::plain
