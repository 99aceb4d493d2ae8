// What the plain kernels share. They are for the ordinary calls of a training loop: a current of every step, spikes of
// every step, a delayed reset, parameters that are one number each. For these each option is a template argument, and
// nothing is asked in the loop over time. Whatever else there is goes to the general kernels of forward.cu and
// backward.cu, which ask. That is all of float64, in which nobody trains, and of neurons that are rare on a GPU: each
// kernel is in the library once for every architecture.
#pragma once

#include <limits>

#include "fused.cuh"
#include "neurons.cuh"

namespace snnfast::cuda {

// Whether there are plain kernels for a neuron: where its adjoint takes the arithmetic.
template <typename Neuron>
concept HasPlain =
    requires(float x, float (&states)[Neuron::kStates], float (&numbers)[Neuron::kParameters], Given<float> given) {
      Neuron::template adjoint<Fused>(ResetRule{}, x, states, x, given, states, numbers, states, numbers);
    };

namespace plain {

// Of one call, what both passes ask for.
template <typename Neuron>
bool is_ordinary(const Problem<Neuron>& p) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  if (!p.rule.delay || p.rule.reset == Reset::kNone || p.x_repeats || p.lengths != nullptr) return false;
  for (const Parameter& parameter : p.parameters) {
    if (!parameter.uniform()) return false;
  }
  return p.dtype != DType::kDouble && p.T > 0 && p.T < kMost && p.N < kMost;
}

// Loads before it are issued before what follows. The compiler would rather load where a value is used, and wait there.
__device__ __forceinline__ void in_order() {
#if !defined(SNN_EMULATED)
  asm volatile("" ::: "memory");
#endif
}

// Numbers of one dtype, all of which are under way before one is converted.
template <typename T, typename Neuron, typename A>
__device__ __forceinline__ void load_numbers(const Problem<Neuron>& p, A (&to)[Neuron::kParameters]) {
  T given[Neuron::kParameters];
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) {
    const T* const from = static_cast<const T*>(p.parameters[k].data);
    given[k] = from != nullptr ? *from : T{};
  }
  in_order();
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) {
    const Parameter& parameter = p.parameters[k];
    to[k] = parameter.data != nullptr ? static_cast<A>(widen(given[k])) : static_cast<A>(parameter.value);
  }
}

// The dtype that the numbers of a layer most often have: S, that of the current.
template <typename S>
inline constexpr Number kNumber = std::is_same_v<S, float>  ? Number::kFloat
                                  : std::is_same_v<S, Half> ? Number::kHalf
                                                            : Number::kBFloat16;

// The parameters of all neurons, with which a step computes. What is to be under way meanwhile is requested before.
template <typename S, typename Neuron, typename A>
__device__ __forceinline__ void load_shared(const Problem<Neuron>& p, A (&to)[Neuron::kParameters]) {
  bool alike = true;
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) {
    alike = alike && (p.parameters[k].data == nullptr || p.parameters[k].type == kNumber<S>);
  }
  if (alike) {
    load_numbers<S>(p, to);
  } else {
#pragma unroll
    for (int k = 0; k < Neuron::kParameters; ++k) to[k] = number<A>(p.parameters[k]);
  }
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) {
    if (kClampedBits<Neuron> >> k & 1u) to[k] = clamp_unit(to[k]);
  }
}

// States on their way from a row of memory for each, or from nowhere: then they are 0.
template <typename Neuron, typename A, int V>
struct States {
  Raw<A, V> rows[Neuron::kStates];

  __device__ __forceinline__ void request(int s, const A* from, bool streaming) {
    rows[s] = from != nullptr ? get<A, V>(from, streaming) : Raw<A, V>{};
  }

  __device__ __forceinline__ void to(A (&states)[V][Neuron::kStates]) const {
#pragma unroll
    for (int s = 0; s < Neuron::kStates; ++s) {
      A row[V];
      unpack(rows[s], row);
#pragma unroll
      for (int i = 0; i < V; ++i) states[i][s] = row[i];
    }
  }
};

// On to the row that is so many elements further. The compiler would rather compute the address of each row from a
// base, for three or four times the instructions; the empty instruction hides from it where the pointer comes from.
template <typename T>
__device__ __forceinline__ void advance(T*& row, int64_t elements) {
  row += elements;
#if !defined(SNN_EMULATED)
  asm("" : "+l"(row));
#endif
}

template <typename A>
__device__ __forceinline__ const A* offset(const void* row, int64_t first) {
  return row == nullptr ? nullptr : static_cast<const A*>(row) + first;
}

// The step of each of the V neurons of a thread, which share their parameters.
template <typename Neuron, Reset kReset, typename A, int V>
__device__ __forceinline__ void step_all(const A (&x)[V], const A (&parameters)[Neuron::kParameters],
                                         A (&state)[V][Neuron::kStates], A (&spk)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) spk[i] = Neuron::step(ResetRule{kReset, true}, x[i], state[i], parameters).spk;
}

}  // namespace plain
}  // namespace snnfast::cuda
