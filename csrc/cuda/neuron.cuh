// The V adjacent neurons of a thread: where they are, and their parameters.
#pragma once

#include "launch.cuh"

namespace snnfast::cuda {

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

// Of the V neurons from `first` on.
template <typename A, int V>
__device__ __forceinline__ void parameter(const Parameter& p, int64_t first, A (&to)[V]) {
  if (p.size == 1) return fill(to, number<A>(p));
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = static_cast<const A*>(p.data)[(first + i) / p.inner % p.size];
}

template <typename A, int V>
struct Neurons {
  Neuron<A> at[V];

  __device__ Neurons(const LifProblem& p, int64_t first) {
    A beta[V], threshold[V], graded[V];
    parameter(p.beta, first, beta);
    parameter(p.threshold, first, threshold);
    parameter(p.graded, first, graded);
#pragma unroll
    for (int i = 0; i < V; ++i) at[i] = {clamp_unit(beta[i]), threshold[i], graded[i]};
  }
};

// The membrane before the first step.
template <typename A, int V>
__device__ __forceinline__ void initial_membrane(const LifProblem& p, int64_t first, A (&mem)[V]) {
  if (p.mem0 == nullptr) {
    fill(mem, A(0));
  } else {
    load<V>(static_cast<const A*>(p.mem0) + first, mem);
  }
}

}  // namespace snnfast::cuda
