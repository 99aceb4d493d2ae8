// The V adjacent neurons of a thread: where they are, and their parameters.
#pragma once

#include "launch.cuh"

namespace snnfast::cuda {

template <typename A>
__device__ __forceinline__ A parameter(const Parameter& p, int64_t neuron) {
  if (p.data == nullptr) return static_cast<A>(p.value);
  const A* data = static_cast<const A*>(p.data);
  return p.size == 1 ? data[0] : data[neuron / p.inner % p.size];
}

template <typename A, int V>
struct Neurons {
  Neuron<A> at[V];

  __device__ Neurons(const LifProblem& p, int64_t first) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      at[i].beta = clamp_unit(parameter<A>(p.beta, first + i));
      at[i].threshold = parameter<A>(p.threshold, first + i);
      at[i].graded = parameter<A>(p.graded, first + i);
    }
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
