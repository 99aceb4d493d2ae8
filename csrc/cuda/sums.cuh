// Gradients of parameters that are one number: the sum over all neurons, in double. Its order depends on the shape and
// the memory layout of a call alone.
//
// Each block adds up its neurons' and leaves the result in memory; the last block to do so adds up those of all blocks.
// Blocks count themselves in a word of the call's own memory, which is cleared before the launch: calls on several
// streams do not meet, and a graph may replay the call.
#pragma once

#include "neurons.cuh"

namespace snnfast::cuda {

// Rows of shared memory, a number of type A for each thread, that hold the doubles of a thread.
template <typename Neuron, typename A>
inline constexpr int kSumRows = Neuron::kParameters * static_cast<int>(sizeof(double) / sizeof(A));

// The gradients of a thread's own neurons, in its column of shared memory; nobody else's column is touched.
template <typename A, int V, int kThreads>
struct Sums {
  A (*rows)[V][kThreads];

  __device__ __forceinline__ double get(int k, int thread) const {
    constexpr int kWords = sizeof(double) / sizeof(A);
    A words[kWords];
    for (int w = 0; w < kWords; ++w) words[w] = rows[k * kWords + w][0][thread];
    double sum;
    memcpy(&sum, words, sizeof sum);
    return sum;
  }

  __device__ __forceinline__ void put(int k, int thread, double sum) const {
    constexpr int kWords = sizeof(double) / sizeof(A);
    A words[kWords];
    memcpy(words, &sum, sizeof sum);
    for (int w = 0; w < kWords; ++w) rows[k * kWords + w][0][thread] = words[w];
  }

  // Of the first threads of a block, into the column of the first, by halves: their number is a power of two.
  __device__ __forceinline__ void add_up(unsigned wanted, int threads) const {
    const int thread = static_cast<int>(threadIdx.x);
    for (int half = threads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (thread >= half) continue;
#pragma unroll 1
      for (int k = 0; wanted >> k != 0; ++k) {
        if ((wanted >> k & 1u) != 0) put(k, thread, get(k, thread) + get(k, thread + half));
      }
    }
    __syncthreads();
  }
};

// Counts a block that is done, and tells whether all are.
__device__ __forceinline__ bool is_last_block(void* counter) {
  return atomicAdd(static_cast<unsigned*>(counter), 1u) == gridDim.x - 1;
}

__device__ __forceinline__ void put_number(void* to, Number type, double value) {
  const auto rounded = static_cast<float>(value);
  switch (type) {
    case Number::kFloat: *static_cast<float*>(to) = rounded; return;
    case Number::kHalf: *static_cast<Half*>(to) = narrow<Half>(rounded); return;
    case Number::kBFloat16: *static_cast<BFloat16*>(to) = narrow<BFloat16>(rounded); return;
    case Number::kDouble: *static_cast<double*>(to) = value; return;
    case Number::kLong: return;  // never: it has no gradient
  }
}

// All threads of a block come here, once; `threads`, the first of them, have put the sums of their neurons.
template <typename Neuron, typename A, int V, int kThreads>
__device__ __forceinline__ void sum_parameters(const Backward<Neuron>& p, const Sums<A, V, kThreads>& sums,
                                               int threads) {
  constexpr int kParameters = Neuron::kParameters;
  const int thread = static_cast<int>(threadIdx.x);
  auto* const partial = static_cast<double*>(p.partial_sums) + 1;  // behind the counter
  sums.add_up(p.summed, threads);
  const bool wanted = thread < kParameters && (p.summed >> thread & 1u) != 0;
  if (wanted) partial[static_cast<int64_t>(blockIdx.x) * kParameters + thread] = sums.get(thread, 0);
  __threadfence();
  __syncthreads();
  if (__syncthreads_or(thread == 0 && is_last_block(p.partial_sums)) == 0) return;
  __threadfence();
#pragma unroll 1
  for (int k = 0; p.summed >> k != 0 && thread < threads; ++k) {
    if ((p.summed >> k & 1u) == 0) continue;  // no block has written one
    double sum = 0;
    for (int64_t block = thread; block < gridDim.x; block += threads) {
      sum += *static_cast<const volatile double*>(partial + block * kParameters + k);
    }
    sums.put(k, thread, sum);
  }
  sums.add_up(p.summed, threads);
  if (wanted) put_number(p.grad_parameters[thread], p.sum_types[thread], sums.get(thread, 0));
}

}  // namespace snnfast::cuda
