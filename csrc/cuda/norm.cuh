// Which neurons a thread has where channels are normalised, and sums over the neurons of each channel.
#pragma once

#include "../op/norm.h"
#include "plain.cuh"

namespace snnfast::cuda::norm {

constexpr int kThreads = 1 << kLogNormThreads;

// The V adjacent neurons of a thread: the first of them, and its channel, of kC that they have.
template <int V, int kC>
struct Place {
  unsigned channel, first;
  bool there;

  __device__ __forceinline__ explicit Place(const Norm& q) {
    const unsigned block = q.groups.quotient(blockIdx.x), group = blockIdx.x - block * q.groups.by;
    const unsigned column = (group << q.shift) + (threadIdx.x & ((1u << q.shift) - 1));
    const unsigned row = block * (kThreads >> q.shift) + (threadIdx.x >> q.shift), image = q.per.quotient(row);
    there = column < q.columns && row < q.rows;
    first = image * q.outer + (row - image * q.per.by) * V + column * q.inner;
    channel = column * kC;
  }
};

// Requests a row of each step. Behind the last one it is requested again, which costs no branch.
template <typename S, int V, int kT>
__device__ __forceinline__ void request(const S* row, int64_t stride, int T, Raw<S, V> (&rows)[kT]) {
#pragma unroll
  for (int k = 0; k < kT; ++k) {
    rows[k] = get<S, V>(row);
    plain::advance(row, k + 1 < T ? stride : 0);
  }
}

// The same of `of` numbers of each channel, which has `size` of them.
template <int of, int kC, int kT>
__device__ __forceinline__ void request(const Norm& q, const float* numbers, int size, unsigned channel, int T,
                                        Raw<float, of> (&rows)[kC][kT]) {
  const int64_t stride = q.over_time ? 0 : q.C * size;
#pragma unroll
  for (int j = 0; j < kC; ++j)
    request<float, of>(numbers + static_cast<int64_t>(channel + j) * size, stride, T, rows[j]);
}

// Adds up the rows of each column, in place, sixteen at a time, of so many numbers. All threads share the work.
__device__ __forceinline__ void add_rows(double (*memory)[kThreads], int numbers, int shift) {
  constexpr int kLog = 4;
  __syncthreads();
#pragma unroll 1
  for (int log = kLogNormThreads, next; log > shift; log = next) {
    next = log - kLog > shift ? log - kLog : shift;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < numbers << next; i += kThreads) {
      double* const row = memory[i >> next] + (i & ((1 << next) - 1));
      double sum = row[0];
#pragma unroll
      for (int k = 1; k < 1 << kLog; ++k) {
        if (k << next < 1 << log) sum += row[k << next];
      }
      row[0] = sum;
    }
    __syncthreads();
  }
}

struct Pair {
  double first, second;
};

// All threads of a block call this once with n numbers each, of which the first `numbers` are summed over the rows of
// each column in all blocks: two of each step and channel, and behind them those that have no step, one of each
// channel. In the block of a column that is done last, f is called for its channels and the rows of their numbers, with
// the two sums of each, and one over how many terms these have. Then g is called once for each channel, with a function
// from a row to what f returned for it, and the sum that has no step.
template <int kC, int n, typename A, typename F, typename G>
__device__ __forceinline__ void sum_channels(const Norm& q, int T, const A (&own)[n], int numbers,
                                             double (*memory)[kThreads], F&& f, G&& g) {
  const int thread = static_cast<int>(threadIdx.x);
  const int group = static_cast<int>(blockIdx.x - q.groups.quotient(blockIdx.x) * q.groups.by);
  const int column = thread & ((1 << q.shift) - 1), sums = numbers << q.shift;
  auto* const counters = static_cast<unsigned*>(q.partial_sums);  // 0 at first
  double* const partial = static_cast<double*>(q.partial_sums) + q.groups.by;
#pragma unroll
  for (int k = 0; k < n; ++k) memory[k][thread] = own[k];
  add_rows(memory, numbers, q.shift);
#pragma unroll 1
  for (int i = thread; i < sums; i += kThreads) {
    partial[static_cast<int64_t>(blockIdx.x) * sums + i] = memory[i >> q.shift][i & ((1 << q.shift) - 1)];
  }
  __threadfence();
  __syncthreads();
  if (__syncthreads_or(thread == 0 && atomicAdd(counters + 2 * group, 1u) == q.blocks - 1) == 0) return;
  __threadfence();
#pragma unroll 1
  for (int k = 0; k < numbers; ++k) {
    double sum = 0;
    const double* const at = partial + static_cast<int64_t>(group) * sums + (k << q.shift) + column;
#pragma unroll 4
    for (unsigned block = threadIdx.x >> q.shift; block < q.blocks; block += kThreads >> q.shift) {
      sum += __ldcg(at + static_cast<int64_t>(block) * q.groups.by * sums);
    }
    memory[k][thread] = sum;
  }
  add_rows(memory, numbers, q.shift);
  const int rows = static_cast<int>(q.rows_of(T)), log = q.shift + (kC > 1 ? 2 : 0);
  const double share = 1 / static_cast<double>(q.B * q.S * (q.over_time ? T : 1));
#pragma unroll 1
  for (int i = thread; i < rows << log; i += kThreads) {
    const int row = i >> log, at = i & ((1 << log) - 1);
    const int64_t channel = (static_cast<int64_t>(group) << log) + at;
    if (channel >= q.C) continue;
    double first = 0, second = 0;
#pragma unroll 1
    for (int k = row; k < T; k += rows) {
      first += memory[2 * (k * kC + at % kC)][at / kC];
      second += memory[2 * (k * kC + at % kC) + 1][at / kC];
    }
    const Pair found = f(row * q.C + channel, channel, first, second, share);
    memory[2 * (row * kC + at % kC)][at / kC] = found.first;
    memory[2 * (row * kC + at % kC) + 1][at / kC] = found.second;
  }
  __syncthreads();
#pragma unroll 1
  for (int at = thread; at < 1 << log; at += kThreads) {
    const int64_t channel = (static_cast<int64_t>(group) << log) + at;
    const auto found = [&](int row) {
      const int k = 2 * (row * kC + at % kC);
      return Pair{memory[k][at / kC], memory[k + 1][at / kC]};
    };
    if (channel < q.C) g(channel, rows, found, memory[n - kC + at % kC][at / kC]);
  }
}

}  // namespace snnfast::cuda::norm
