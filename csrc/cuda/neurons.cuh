// The V adjacent neurons of a thread: their parameters and their states, each neuron's in an array of its own as a step
// takes them.
#pragma once

#include "launch.cuh"

namespace snnfast::cuda {

// Number c of each neuron, in a row of memory.
template <typename S, typename A, int V, int n>
__device__ __forceinline__ void load_row(const S* from, int c, A (&to)[V][n], bool streaming = false) {
  A row[V];
  load<V>(from, row, streaming);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i][c] = row[i];
}

template <typename S, typename A, int V, int n>
__device__ __forceinline__ void store_row(S* to, int c, const A (&from)[V][n], bool streaming = false) {
  A row[V];
#pragma unroll
  for (int i = 0; i < V; ++i) row[i] = from[i][c];
  store<V>(to, row, streaming);
}

// Of a parameter that is one number.
template <typename A>
__device__ __forceinline__ A number(const Parameter& p) {
  if (p.data == nullptr) return static_cast<A>(p.value);
  switch (p.type) {
    case Number::kFloat: return static_cast<A>(*static_cast<const float*>(p.data));
    case Number::kHalf: return static_cast<A>(widen(*static_cast<const Half*>(p.data)));
    case Number::kBFloat16: return static_cast<A>(widen(*static_cast<const BFloat16*>(p.data)));
    case Number::kLong: return static_cast<A>(*static_cast<const int64_t*>(p.data));
    case Number::kDouble: break;
  }
  return static_cast<A>(*static_cast<const double*>(p.data));
}

// Of the V neurons from `first` on, as it was given.
template <typename A, int V>
__device__ __forceinline__ void parameter(const Parameter& p, int64_t first, A (&to)[V]) {
  if (p.size == 1) return fill(to, number<A>(p));
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = static_cast<const A*>(p.data)[(first + i) / p.inner % p.size];
}

// Which parameters are clamped, as bits: device code can't index the neuron's own table.
template <typename Neuron>
inline constexpr unsigned kClampedBits = [] {
  unsigned bits = 0;
  for (int k = 0; k < Neuron::kParameters; ++k) bits |= static_cast<unsigned>(Neuron::kClamped[k]) << k;
  return bits;
}();

// The parameters with which a step computes.
template <typename Neuron, typename A, int V>
__device__ __forceinline__ void load_parameters(const Problem<Neuron>& p, int64_t first,
                                                A (&to)[V][Neuron::kParameters]) {
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) {
    A given[V];
    parameter(p.parameters[k], first, given);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i][k] = kClampedBits<Neuron> >> k & 1u ? clamp_unit(given[i]) : given[i];
  }
}

// The states before the first step.
template <typename Neuron, typename A, int V>
__device__ __forceinline__ void load_initial(const Problem<Neuron>& p, int64_t first, A (&to)[V][Neuron::kStates]) {
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) {
    if (p.initial[s] != nullptr) {
      load_row(static_cast<const A*>(p.initial[s]) + first, s, to);
      continue;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) to[i][s] = A(0);
  }
}

}  // namespace snnfast::cuda
