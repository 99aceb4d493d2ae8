// The gradient of a parameter that is one number is the sum over all neurons, in double. Its order depends only on the
// shape and the memory layout of a call.
//
// Each block adds up its neurons and leaves the result in memory. The last block to do so adds up those of all blocks.
// Blocks count themselves in a word of the call's own memory, which is cleared before the launch, so that calls on
// several streams do not meet, and a graph can replay the call.
#pragma once

#include <algorithm>
#include <bit>

#include "neurons.cuh"

namespace snnfast::cuda {

// Shared memory of a block, with so many bytes for each thread. Recomputed steps use it first, and sums at the end.
template <int kThreads, int kOfSteps, int kOfSums>
struct alignas(16) SharedMemory {
  unsigned char bytes[kThreads * (kOfSteps > kOfSums ? kOfSteps : kOfSums)];
};

template <typename Neuron>
constexpr int kSumBytes = Neuron::kParameters * static_cast<int>(sizeof(double));  // of a thread

// The threads of a block that fit into its shared memory. A block has 48 KiB at most without asking for more.
constexpr int threads_in(int bytes) {
  return std::min(128, static_cast<int>(std::bit_floor(32u * 1024 / static_cast<unsigned>(std::max(bytes, 1)))));
}

// Stores the gradients of the first n parameters, which a thread has summed over time for its neurons. Of a gradient
// that is one number, as all are where neurons share a thread, `own` gets their share.
template <typename Neuron, typename A, int V, int n>
__device__ __forceinline__ void finish_parameters(const Backward<Neuron>& p, int64_t first,
                                                  A (&sums)[V][Neuron::kParameters], double (&own)[n]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    if (p.grad_parameters[k] == nullptr) continue;
    if (kClampedBits<Neuron> >> k & 1u) {
      const A given = number<A>(p.parameters[k], place<V>(p.parameters[k], first));
#pragma unroll
      for (int i = 0; i < V; ++i) sums[i][k] = clamp_unit_adjoint(given, sums[i][k], p.clamp_closed);
    }
    if (V == 1 && (p.summed >> k & 1u) == 0) {
      store_row(static_cast<A*>(p.grad_parameters[k]) + first, k, sums);
      continue;
    }
    double sum = sums[0][k];
#pragma unroll
    for (int i = 1; i < V; ++i) sum += sums[i][k];
    own[k] = sum;
  }
}

// Counts a block that is done, and returns whether all are.
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

// Adds up the numbers of the first threads of a block, a power of two, into that of the first one, by halves. kWhole:
// these are all that there is room for. The sum of a single parameter, which many calls have, then takes few
// instructions.
template <int kParameters, bool kWhole, int kThreads>
__device__ __forceinline__ void add_up(double (*numbers)[kThreads], unsigned wanted, int threads) {
  constexpr bool kLean = kWhole && kParameters == 1;
  [[maybe_unused]] constexpr int kCopies = kLean ? 16 : 1;
  const int thread = static_cast<int>(threadIdx.x);
  [[maybe_unused]] double only = kLean ? numbers[0][thread] : 0;
#pragma unroll kCopies
  for (int half = (kWhole ? kThreads : threads) / 2; half > 0; half /= 2) {
    __syncthreads();
    if constexpr (kLean) {
      if (thread < half) numbers[0][thread] = only += numbers[0][thread + half];
    } else {
#pragma unroll 1
      for (int k = 0; thread < half && k < kParameters; ++k) {
        if ((wanted >> k & 1u) != 0) numbers[k][thread] += numbers[k][thread + half];
      }
    }
  }
  __syncthreads();
}

// Adds up the partial sums of the blocks from `first` on, at a distance of `stride`. Several loads are under way at
// once, because each takes as long as hundreds of additions.
__device__ __forceinline__ double sum_of_blocks(const double* partial, int first, int stride, int parameters) {
  constexpr int kAtOnce = 8;
  const int blocks = static_cast<int>(gridDim.x);
  double sum = 0;
  for (int64_t block = first; block < blocks; block += kAtOnce * static_cast<int64_t>(stride)) {
    double values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t at = block + i * static_cast<int64_t>(stride);
      values[i] = at < blocks ? __ldcg(partial + at * parameters) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += values[i];
  }
  return sum;
}

// All threads of a block call this once. `own` is what the neurons of a thread add to each sum, for the first `threads`
// of the block. `shared` has a row of doubles for each parameter, and may hold something else before.
template <int kThreads, bool kWhole = false, typename Neuron, int kParameters>
__device__ __forceinline__ void sum_parameters(const Backward<Neuron>& p, const double (&own)[kParameters],
                                               void* shared, int threads) {
  auto* const numbers = static_cast<double (*)[kThreads]>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  auto* const partial = static_cast<double*>(p.partial_sums) + 1;  // behind the counter
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kParameters; ++k) {
    if (thread < threads) numbers[k][thread] = own[k];
  }
  add_up<kParameters, kWhole>(numbers, p.summed, threads);
  const bool wanted = thread < kParameters && (kParameters == 1 || (p.summed >> thread & 1u) != 0);
  if (wanted) partial[static_cast<int64_t>(blockIdx.x) * kParameters + thread] = numbers[thread][0];
  __threadfence();
  __syncthreads();
  if (__syncthreads_or(thread == 0 && is_last_block(p.partial_sums)) == 0) return;
  __threadfence();
#pragma unroll 1
  for (int k = 0; thread < threads && k < kParameters; ++k) {
    if ((p.summed >> k & 1u) != 0) numbers[k][thread] = sum_of_blocks(partial + k, thread, threads, kParameters);
  }
  add_up<kParameters, kWhole>(numbers, p.summed, threads);
  if (wanted) put_number(p.grad_parameters[thread], p.sum_types[thread], numbers[thread][0]);
}

}  // namespace snnfast::cuda
