// Backward kernel for few neurons and many steps: the warps of a block share out the time of 32 adjacent neurons.
//
// One thread per neuron would leave most of a card idle. Going back is linear in the carry, the gradient of the
// membrane between two steps: each warp goes through its segment of time with a carry of 0, to learn what leaves it,
// and by what factor a carry from later segments would; from that it knows its true carry, and goes through it again to
// write.
//
// Where a gradient overflows, the sum of what overflowed and a multiple of it may be NaN, where step by step it would
// have stayed infinite, and a factor may overflow that times its carry would not have.
//
// Part of backward.cu.
#pragma once

#include "backward.cuh"
#include "backward_plain.cuh"

namespace snnfast::cuda {
namespace {

constexpr int kLanes = 32;

// As many as leave the recomputed steps in kSharedBytes.
template <typename Neuron, typename A>
constexpr int kSegments = kSharedBytes / static_cast<int>(kCheckpoint * kKeptRows<Neuron> * kLanes * sizeof(A));

template <int a, int b>
constexpr int kMost = a > b ? a : b;

// What warps tell each other, in the column of the thread: before the second pass, and after it.
enum Told : int { kCarry, kFactor, kGradX = 0, kSums };

template <typename Neuron, typename A>
using Shared = A (*)[1][kSegments<Neuron, A> * kLanes];

// The step with which a segment of whole chunks begins, and the one before ends. The last segment is never empty.
template <int kOf>
__device__ __forceinline__ int64_t start_of(int segment, int64_t T) {
  const int64_t start = (T + kCheckpoint - 1) / kCheckpoint * segment / kOf * kCheckpoint;
  return start < T ? start : T;
}

// The carry that enters `segment`, always in the same order of those after it, the last of which had its true carry.
template <typename Neuron, typename A>
__device__ __forceinline__ A entering_carry(Shared<Neuron, A> shared, int segment, int lane) {
  A carry = shared[kCarry][0][(kSegments<Neuron, A> - 1) * kLanes + lane];
  for (int later = kSegments<Neuron, A> - 2; later > segment; --later) {
    const int at = later * kLanes + lane;
    carry = carry_through(shared[kCarry][0][at], shared[kFactor][0][at], carry);
  }
  return carry;
}

template <typename Neuron, typename S, int V, bool kRecorded>
__global__ void __launch_bounds__(kSegments<Neuron, Opmath<S>>* kLanes, kRecorded ? 2 : 1)
    backward_chunked_kernel(const Backward<Neuron> p, const bool streaming) {
  static_assert(V == 1, "a lane takes one neuron");
  using A = Opmath<S>;
  constexpr int kOf = kSegments<Neuron, A>, kLast = kOf - 1, kParameters = Neuron::kParameters;
  constexpr int kKept = kCheckpoint * kKeptRows<Neuron>, kTold = kMost<kSums + kParameters, kSumRows<Neuron, A>>;
  static_assert(kTold <= kKept);
  __shared__ A shared[kRecorded ? kTold : kKept][V][kOf * kLanes];
  const int segment = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t begin = start_of<kOf>(segment, p.T), end = start_of<kOf>(segment + 1, p.T);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kLanes + lane;
  const bool there = own < p.N;  // lanes without a neuron come to the barriers
  BackwardPass<Neuron, S, V, kRecorded, kOf * kLanes> neuron(p, there ? own : p.N - 1, shared, streaming);

  neuron.start();
  if (segment == kLast) neuron.start_at_end();  // its carry is known
  if (there && segment > 0) neuron.run(begin, end, /*on_trial=*/segment < kLast);
  if (there) {
    shared[kCarry][0][threadIdx.x] = neuron.carry[0][0];
    shared[kFactor][0][threadIdx.x] = neuron.factor[0][0];
  }
  __syncthreads();
  const A carry = there ? entering_carry<Neuron, A>(shared, segment, lane) : A(0);
  __syncthreads();
  if (there && segment < kLast) {
    neuron.start();
    neuron.carry[0][0] = carry;
    neuron.run(begin, end);
  }
  if (segment > 0 && there) {
    shared[kGradX][0][threadIdx.x] = neuron.grad_x_sum[0];
#pragma unroll
    for (int k = 0; k < kParameters; ++k) shared[kSums + k][0][threadIdx.x] = neuron.sums[0][k];
  }
  __syncthreads();
  const Sums<A, V, kOf * kLanes> sums{shared};
  if (segment == 0 && there) {
    for (int later = 1; later < kOf; ++later) {
      const int at = later * kLanes + lane;
      neuron.grad_x_sum[0] += shared[kGradX][0][at];
#pragma unroll
      for (int k = 0; k < kParameters; ++k) neuron.sums[0][k] += shared[kSums + k][0][at];
    }
    neuron.finish();
  } else if (segment == 0) {
    for (int k = 0; k < kParameters; ++k) sums.put(k, lane, 0);
  }
  if (p.summed != 0) sum_parameters(p, sums, kLanes);
}

// The same of an ordinary call (plain.cuh), whose options are template arguments.
template <typename Neuron, typename S, int V, Reset kReset>
__global__ void __launch_bounds__(kSegments<Neuron, Opmath<S>>* kLanes, 1)
    backward_plain_chunked_kernel(const Backward<Neuron> p, const bool streaming) {
  static_assert(V == 1, "a lane takes one neuron");
  using A = Opmath<S>;
  constexpr int kOf = kSegments<Neuron, A>, kLast = kOf - 1;
  __shared__ A shared[kFactor + 1][V][kOf * kLanes];
  const int segment = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const int begin = static_cast<int>(start_of<kOf>(segment, p.T));
  const int end = static_cast<int>(start_of<kOf>(segment + 1, p.T));
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kLanes + lane;
  const bool there = own < p.N, some = there && begin < end;
  plain::PlainBackward<Neuron, S, V, kReset, 1> neuron(p, there ? own : p.N - 1, false, nullptr);
  neuron.streaming = streaming && segment == kLast;
  if (some) neuron.start(end);
  neuron.load();
  if (segment < kLast) neuron.carry[0][0] = A(0);  // that of the last is known
  neuron.factor[0][0] = A(1);
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool mine = pass == 0 ? segment > 0 : segment < kLast;
    if (mine && some) {
      if (pass == 0 && segment < kLast) {
        neuron.template run<true>(begin, end);
      } else {
        neuron.template run<false>(begin, end);
      }
    }
    if (pass > 0) break;
    if (there) {
      shared[kCarry][0][threadIdx.x] = neuron.carry[0][0];
      shared[kFactor][0][threadIdx.x] = neuron.factor[0][0];
    }
    neuron.streaming = streaming;
    if (some && segment < kLast) neuron.start(end);
    __syncthreads();
    if (there && segment < kLast) neuron.carry[0][0] = entering_carry<Neuron, A>(shared, segment, lane);
  }
  if (segment == 0 && there) neuron.finish();
}

template <typename Neuron, typename S, Reset kReset>
int launch_plain_chunked(const Backward<Neuron>& p, void* stream) {
  constexpr int kThreads = kSegments<Neuron, Opmath<S>> * kLanes;
  return launch_blocks(backward_plain_chunked_kernel<Neuron, S, 1, kReset>, (p.N + kLanes - 1) / kLanes, kThreads,
                       stream, p);
}

template <typename Neuron, typename S, bool kRecorded>
int launch_chunked(const Backward<Neuron>& p, void* stream) {
  constexpr int kThreads = kSegments<Neuron, Opmath<S>> * kLanes;
  return launch_blocks(backward_chunked_kernel<Neuron, S, 1, kRecorded>, (p.N + kLanes - 1) / kLanes, kThreads, stream,
                       p);
}

template <typename Neuron>
int backward_chunked(const Backward<Neuron>& p, void* stream) {
  if constexpr (HasPlain<Neuron>) {
    if (plain::takes(p)) {
      return plain::visit(p, [&](const Backward<Neuron>& prepared, auto element, auto reset) {
        return launch_plain_chunked<Neuron, decltype(element), decltype(reset)::value>(prepared, stream);
      });
    }
  }
  return visit_element(p.dtype, [&](auto element) {
    using S = decltype(element);
    return p.recorded() ? launch_chunked<Neuron, S, true>(p, stream) : launch_chunked<Neuron, S, false>(p, stream);
  });
}

}  // namespace
}  // namespace snnfast::cuda
