// Backward kernel of ordinary calls with few neurons and many steps: the warps of a block divide the time of 32
// adjacent neurons among them, because one thread per neuron would leave most of a card idle.
//
// Going back is linear in the carry, the gradient of the membrane between two steps. Each warp goes through its segment
// of time with a carry of 0. This tells the carry that leaves the segment, and by which factor an entering carry would
// be multiplied. From these the warp learns its true carry, with which it goes through its segment again and writes.
//
// Where a gradient overflows, the result may be NaN, and infinite in the other kernels.
//
// Part of backward.cu.
#pragma once

#include "backward_plain.cuh"

namespace snnfast::cuda::plain {
namespace {

constexpr int kLanes = 32, kSegments = 16, kLast = kSegments - 1;

// Rows of numbers that the warps tell each other. Each thread has a column.
template <typename A>
using Told = A (*)[kSegments * kLanes];

constexpr int kChunk = static_cast<int>(kCheckpoint);

// The first step of a segment, which consists of whole chunks. The last segment is never empty.
__device__ __forceinline__ int start_of(int segment, int T) {
  const int64_t start = static_cast<int64_t>((T + kChunk - 1) / kChunk) * segment / kSegments * kChunk;
  return static_cast<int>(start < T ? start : T);
}

// The carry that enters `segment`, combined in the order of the segments. The last segment had its true carry.
template <typename A>
__device__ __forceinline__ A entering_carry(Told<A> told, int segment, int lane) {
  A carry = told[0][kLast * kLanes + lane];
  for (int later = kLast - 1; later > segment; --later) {
    const int at = later * kLanes + lane;
    carry = told[0][at] + told[1][at] * carry;
  }
  return carry;
}

template <typename Neuron, typename S, int V, Reset kReset, bool kRecorded, Sums kSums>
__global__ void __launch_bounds__(kSegments* kLanes, 1) backward_plain_chunked_kernel(const Backward<Neuron> p) {
  static_assert(V == 1, "a lane takes one neuron");
  using A = Opmath<S>;
  constexpr int kParameters = Neuron::kParameters;
  constexpr int kRows = 1 + (kSums == Sums::kNone ? 1 : kParameters);  // after the second pass: the sums over time
  __shared__ SharedMemory<kSegments * kLanes, kRows * sizeof(A), kSums == Sums::kNone ? 0 : kSumBytes<Neuron>> shared;
  auto* const told = reinterpret_cast<Told<A>>(shared.bytes);
  const int thread = static_cast<int>(threadIdx.x), segment = thread / kLanes, lane = thread % kLanes;
  const int T = static_cast<int>(p.T), begin = start_of(segment, T), end = start_of(segment + 1, T);
  const int own = static_cast<int>(blockIdx.x) * kLanes + lane;
  const bool there = own < p.N, some = there && begin < end;  // a lane without a neuron still meets the barriers
  PlainBackward<Neuron, S, V, Kind<kReset, kRecorded, kSums>, true, 1> neuron(p, there ? own : p.N - 1, nullptr);
  if (some) neuron.start(end);
  neuron.load();
  if (segment < kLast) neuron.carry[0][0] = A(0);  // only the last segment's is known
  neuron.factor[0][0] = A(1);
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    neuron.writes = pass > 0 || segment == kLast;
    if (some && segment != (pass == 0 ? 0 : kLast)) run(neuron, begin, end);
    if (pass > 0) break;
    told[0][thread] = neuron.carry[0][0];
    told[1][thread] = neuron.factor[0][0];
    if (some && segment < kLast) neuron.start(end);
    __syncthreads();
    if (segment < kLast) {
      neuron.carry[0][0] = entering_carry<A>(told, segment, lane);
      neuron.forget_sums();
    }
    __syncthreads();
  }
  told[0][thread] = neuron.grad_x_sum[0];
#pragma unroll
  for (int k = 0; kSums != Sums::kNone && k < kParameters; ++k) told[1 + k][thread] = neuron.sums[0][k];
  __syncthreads();
  [[maybe_unused]] double of_all[kParameters] = {};
  if (segment == 0 && there) {
    for (int at = kLanes + lane; at < kSegments * kLanes; at += kLanes) {
      neuron.grad_x_sum[0] += told[0][at];
#pragma unroll
      for (int k = 0; kSums != Sums::kNone && k < kParameters; ++k) neuron.sums[0][k] += told[1 + k][at];
    }
    neuron.finish(of_all);
  }
  if constexpr (kSums != Sums::kNone) {
    if (p.summed != 0) sum_parameters<kSegments * kLanes>(p, of_all, shared.bytes, kLanes);
  }
}

template <typename Neuron, typename S, typename Of>
int launch_chunked(const Backward<Neuron>& p, void* stream) {
  // One kernel serves calls with and without gradients of parameters: it is bound by latency, not by instructions. In
  // half precision, the sums would not fit into registers on every card.
  constexpr bool kLearns = Of::kReset == Reset::kSubtract && sizeof(S) >= sizeof(float);
  constexpr Sums kSums = kHasSums<Neuron> && kLearns ? Sums::kAll : Sums::kNone;
  return launch_blocks(backward_plain_chunked_kernel<Neuron, S, 1, Of::kReset, Of::kRecorded, kSums>,
                       (p.N + kLanes - 1) / kLanes, kSegments * kLanes, stream, p);
}

}  // namespace
}  // namespace snnfast::cuda::plain
