// Which neurons a thread has where channels are normalised, and sums over the neurons of each channel.
#pragma once

#include "../op/norm.h"
#include "plain.cuh"

namespace snnfast::cuda::norm {

constexpr int kThreads = 1 << kLogNormThreads;

// The steps of a chunk: a thread of V neurons has their rows in registers at once.
template <int V>
constexpr int kSteps = V == 1 ? 8 : 4;

// The columns of a tile at most, where a thread has V neurons of kC channels.
template <int V, int kC>
constexpr int kColumns = V == 1    ? 32
                         : kC == 1 ? 1
                                   : 8;

// The V adjacent neurons of a thread in a tile: the first of them, and its channel, of kC that they have.
template <int V, int kC>
struct Place {
  unsigned block, group, column, channel, first;

  // A block takes tiles of the group of columns that its number tells.
  __device__ __forceinline__ explicit Place(const Norm& q) {
    block = q.groups.quotient(blockIdx.x);
    group = blockIdx.x - block * q.groups.by;
    column = (group << q.shift) + (threadIdx.x & ((1u << q.shift) - 1));
    channel = column * kC;
  }

  // Moves to a tile, and returns whether the thread has neurons there.
  __device__ __forceinline__ bool move_to(const Norm& q, unsigned tile) {
    const unsigned row = (tile << (kLogNormThreads - q.shift)) + (threadIdx.x >> q.shift);
    const unsigned image = q.per.quotient(row);
    first = image * q.outer + (row - image * q.per.by) * V + column * q.inner;
    return column < q.columns && row < q.rows;
  }
};

// Hides from the compiler where a number or a pointer comes from. It would rather compute it again at each step.
template <typename T>
__device__ __forceinline__ void keep([[maybe_unused]] T& number) {
#if !defined(SNN_EMULATED)
  asm("" : "+l"(number));
#endif
}

// Bytes from the row of a step to the next one.
template <typename S>
__device__ __forceinline__ int64_t bytes_of(int64_t elements) {
  int64_t bytes = elements * static_cast<int64_t>(sizeof(S));
  keep(bytes);
  return bytes;
}

template <typename T>
__device__ __forceinline__ void move(T*& row, int64_t bytes) {
  row = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(bytes));
  keep(row);
}

// Requests the rows of a chunk, of which the call has so many, and moves on to the next chunk. Behind the last step,
// nothing is read.
template <typename S, int V, int n>
__device__ __forceinline__ void request(const S*& row, int64_t bytes, int steps, Raw<S, V> (&rows)[n]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    if (k == 0 || k < steps) rows[k] = get<S, V>(row);
    move(row, bytes);
  }
}

// The same of the first numbers of kC adjacent channels, which have `size` of them.
template <int size, int of, int n, int kC>
__device__ __forceinline__ void request(const float*& row, int64_t bytes, int steps, Raw<float, of> (&rows)[n][kC]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int j = 0; j < kC; ++j) {
      if (k == 0 || k < steps) rows[k][j] = get<float, of>(row + j * size);
    }
    move(row, bytes);
  }
}

struct Pair {
  double first, second;
};

// The sums of a block over the neurons of each channel, in shared memory: two of each step, and in front of them those
// that have no step, if a call has any. A thread adds up a few of its own in float32 before. Number i of channel j of a
// column is number i * kC + j of the column.
template <int V, int kC>
struct Sums {
  static constexpr int kOfChunk = 2 * kSteps<V> * kC, kPadding = 8;  // which leads each number to other banks

  double of_threads[kOfChunk][kThreads + kPadding];
  double of_columns[(2 * kMostNormSteps + 1) * kC * kColumns<V, kC>];

  // A constant where columns are not shared.
  static __device__ __forceinline__ int shift_of(const Norm& q) { return kColumns<V, kC> == 1 ? 0 : q.shift; }

  __device__ __forceinline__ void clear() {
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof of_columns / sizeof(double)); i += kThreads)
      of_columns[i] = 0;
  }

  // Adds the n numbers of each thread to those of its column from `at` on. All threads of a block call it.
  template <int n>
  __device__ __forceinline__ void add(const Norm& q, int at, const float (&own)[n]) {
    static_assert(n <= kOfChunk);
    const int thread = static_cast<int>(threadIdx.x), shift = shift_of(q), mask = (1 << shift) - 1;
    // 1 << log threads share the rows of a number, so that each adds up eight, or fewer where columns are many.
    const int both = kColumns<V, kC> <= 8 || shift < 3 ? 3 : shift, log = both - shift;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < n; ++k) of_threads[k][thread] = own[k];
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < n << both; i += kThreads) {
      const int item = i >> log, first = ((i & ((1 << log) - 1)) << shift) + (item & mask);
      double* const numbers = of_threads[item >> shift] + first;
      double sum = numbers[0];
#pragma unroll
      for (int k = 1; k < 8; ++k) {
        if (k << both < kThreads) sum += numbers[k << both];
      }
      if (log > 0) {
        numbers[0] = sum;
      } else {
        of_columns[(at << shift) + item] += sum;
      }
    }
    if (log == 0) return;
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < n << shift; i += kThreads) {
      const double* const numbers = of_threads[i >> shift] + (i & mask);
      double sum = numbers[0];
#pragma unroll
      for (int part = 1; part < 8; ++part) {
        if (part < 1 << log) sum += numbers[part << shift];
      }
      of_columns[(at << shift) + i] += sum;
    }
  }

  // Adds up the sums of all blocks, in the block of a group that is done last; only there it returns true. `numbers`:
  // how many a column has.
  __device__ __forceinline__ bool add_blocks(const Norm& q, const Place<V, kC>& place, int numbers) {
    const int thread = static_cast<int>(threadIdx.x), shift = shift_of(q), count = numbers << shift;
    auto* const counters = static_cast<unsigned*>(q.partial_sums);  // 0 at first
    double* const partial = static_cast<double*>(q.partial_sums) + q.groups.by;
    __syncthreads();
#pragma unroll 1
    for (int i = thread; i < count; i += kThreads)
      partial[static_cast<int64_t>(blockIdx.x) * count + i] = of_columns[i];
    __threadfence();
    __syncthreads();
    if (__syncthreads_or(thread == 0 && atomicAdd(counters + 2 * place.group, 1u) == q.blocks - 1) == 0) return false;
    __threadfence();
    const int log = count > 32 ? 0 : count > 16 ? 1 : count > 8 ? 2 : 3;  // so many threads share the blocks
#pragma unroll 1
    for (int i = thread; i < count << log; i += kThreads) {
      double sum = 0;
      const double* const at = partial + static_cast<int64_t>(place.group) * count + (i >> log);
#pragma unroll 8
      for (unsigned block = i & ((1 << log) - 1); block < q.blocks; block += 1u << log) {
        sum += __ldcg(at + static_cast<int64_t>(block) * q.groups.by * count);
      }
      (log > 0 ? of_threads[0] : of_columns)[i] = sum;
    }
    __syncthreads();
    if (log > 0 && thread < count) {
      double sum = 0;
#pragma unroll 1
      for (int part = 0; part < 1 << log; ++part) sum += of_threads[0][(thread << log) + part];
      of_columns[thread] = sum;
    }
    __syncthreads();
    return true;
  }

  // Calls f for the channels of the group and the rows of their numbers, with the two sums of each, and one over how
  // many terms these have. Then calls g once for each channel, with a function from a row to what f returned for it,
  // and the sum that has no step; `before`: whether there is one.
  template <typename F, typename G>
  __device__ __forceinline__ void finish(const Norm& q, const Place<V, kC>& place, int T, bool before, F&& f, G&& g) {
    const int rows = static_cast<int>(q.rows_of(T)), shift = shift_of(q), log = shift + (kC > 1 ? 2 : 0);
    const double share = 1 / static_cast<double>(q.B * q.S * (q.over_time ? T : 1));
    const auto sum = [&](int at, int number) -> double& {
      return of_columns[((number * kC + at % kC) << shift) + at / kC];
    };
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < rows << log; i += kThreads) {
      const int row = i >> log, at = i & ((1 << log) - 1);
      const int64_t channel = (static_cast<int64_t>(place.group) << log) + at;
      if (channel >= q.C) continue;
      double first = 0, second = 0;
#pragma unroll 1
      for (int k = row; k < T; k += rows) {
        first += sum(at, before + 2 * k);
        second += sum(at, before + 2 * k + 1);
      }
      const Pair found = f(row, channel, first, second, share);
      sum(at, before + 2 * row) = found.first;
      sum(at, before + 2 * row + 1) = found.second;
    }
    __syncthreads();
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < 1 << log; at += kThreads) {
      const int64_t channel = (static_cast<int64_t>(place.group) << log) + at;
      const auto found = [&](int row) { return Pair{sum(at, before + 2 * row), sum(at, before + 2 * row + 1)}; };
      if (channel < q.C) g(channel, rows, found, before ? sum(at, 0) : 0);
    }
  }
};

}  // namespace snnfast::cuda::norm
