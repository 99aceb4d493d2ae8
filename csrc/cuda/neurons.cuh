// Loads and stores of the parameters and states of the V neurons of a thread. A step takes each neuron's in an array of
// its own.
#pragma once

#include "launch.cuh"

namespace snnfast::cuda {

// Moves number c of each neuron, which are adjacent in memory.
template <typename S, typename A, int V, int n>
__device__ __forceinline__ void load_row(const S* from, int c, A (&to)[V][n]) {
  A row[V];
  load<V>(from, row);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i][c] = row[i];
}

template <typename S, typename A, int V, int n>
__device__ __forceinline__ void store_row(S* to, int c, const A (&from)[V][n]) {
  A row[V];
#pragma unroll
  for (int i = 0; i < V; ++i) row[i] = from[i][c];
  store<V>(to, row);
}

// Element `at` of a parameter.
template <typename A>
__device__ __forceinline__ A number(const Parameter& p, int64_t at) {
  if (p.data == nullptr) return static_cast<A>(p.value);
  switch (p.type) {
    case Number::kFloat: return static_cast<A>(static_cast<const float*>(p.data)[at]);
    case Number::kHalf: return static_cast<A>(widen(static_cast<const Half*>(p.data)[at]));
    case Number::kBFloat16: return static_cast<A>(widen(static_cast<const BFloat16*>(p.data)[at]));
    case Number::kLong: return static_cast<A>(static_cast<const int64_t*>(p.data)[at]);
    case Number::kDouble: break;
  }
  return static_cast<A>(static_cast<const double*>(p.data)[at]);
}

// Numbers that a backward pass keeps of each neuron and step that it recomputes: the states after the step, and the
// current where an adjoint reads it.
template <typename Neuron>
constexpr int kKeptRows = Neuron::kStates + (Neuron::kAdjointReadsX ? 1 : 0);

// Which parameters are clamped, as bits: device code can't index the neuron's own table.
template <typename Neuron>
inline constexpr unsigned kClampedBits = [] {
  unsigned bits = 0;
  for (int k = 0; k < Neuron::kParameters; ++k) bits |= static_cast<unsigned>(Neuron::kClamped[k]) << k;
  return bits;
}();

// Which number of a parameter the V neurons of a thread have: only neurons that share them share a thread.
template <int V>
__device__ __forceinline__ int64_t place(const Parameter& p, int64_t first) {
  return V == 1 ? p.at(first) : 0;
}

// The parameters with which a step computes.
template <int V, typename Neuron, typename A>
__device__ __forceinline__ void load_parameters(const Problem<Neuron>& p, int64_t first, A (&to)[Neuron::kParameters]) {
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) {
    to[k] = number<A>(p.parameters[k], place<V>(p.parameters[k], first));
    if (kClampedBits<Neuron> >> k & 1u) to[k] = clamp_unit(to[k]);
  }
}

// States that were requested and not yet converted.
template <typename Neuron, typename A, int V>
struct States {
  Raw<A, V> rows[Neuron::kStates];

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

// State s before the first step, not yet converted.
template <typename A, int V, typename Neuron>
__device__ __forceinline__ Raw<A, V> initial(const Problem<Neuron>& p, int s, int64_t first) {
  const auto* const from = static_cast<const A*>(p.initial[s]);
  if (from == nullptr) return Raw<A, V>{};
  if ((p.initial_repeats >> s & 1u) == 0) return get<A, V>(from + first);
  A row[V];
  fill(row, *from);
  return raw_of(row);
}

template <typename A, int V, typename Neuron>
__device__ __forceinline__ States<Neuron, A, V> initial_states(const Problem<Neuron>& p, int64_t first) {
  States<Neuron, A, V> states;
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) states.rows[s] = initial<A, V>(p, s, first);
  return states;
}

}  // namespace snnfast::cuda
