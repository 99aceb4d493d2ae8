// Backward kernel for few neurons and many steps: the warps of a block share out the time of 32 adjacent neurons.
//
// One thread per neuron would leave most of a card idle. Going back is linear in the carry, the gradient of the
// membrane between two steps: each warp goes through its segment of time with a carry of 0, to learn what leaves it,
// and by what factor a carry from later segments would; from that it knows its true carry, and goes through it again to
// write.
//
// Where a gradient overflows, the sum of what overflowed and a multiple of it may be NaN, where step by step it would
// have stayed infinite, and a factor may overflow that times its carry would not have.
#include "lif_backward.cuh"

namespace snnfast::cuda {
namespace {

constexpr int kLanes = 32;

// As many as leave the trajectory in kSharedBytes.
template <typename A>
constexpr int kSegments = kSharedBytes / static_cast<int>(kCheckpoint * kLanes * sizeof(A));

// From so many steps on each warp of 16 has a chunk. Up to so many neurons there are 256 blocks at most, about what the
// largest cards hold at once, two to a multiprocessor; and the plain kernel has less than two warps there to hide the
// latency of memory with. With more neurons both fill the card, and the plain one reads its inputs only once.
int64_t g_least_steps = 16 * kCheckpoint;
int64_t g_most_neurons = 8192;

// What warps tell each other, in the column of the thread: before the second pass, and after it.
enum Row : int { kCarry, kFactor, kBeta = 0, kThreshold, kGraded, kGradX, kRows };

template <typename A>
using Shared = A (*)[1][kSegments<A> * kLanes];

// The step with which a segment of whole chunks begins, and the one before ends. The last segment is never empty.
template <typename A>
__device__ __forceinline__ int64_t start_of(int segment, int64_t T) {
  const int64_t start = (T + kCheckpoint - 1) / kCheckpoint * segment / kSegments<A> * kCheckpoint;
  return start < T ? start : T;
}

// The carry that enters `segment`, always in the same order of those after it, the last of which had its true carry.
template <typename A>
__device__ __forceinline__ A entering_carry(Shared<A> shared, int segment, int lane) {
  A carry = shared[kCarry][0][(kSegments<A> - 1) * kLanes + lane];
  for (int later = kSegments<A> - 2; later > segment; --later) {
    const int at = later * kLanes + lane;
    carry = lif_carry_through(shared[kCarry][0][at], shared[kFactor][0][at], carry);
  }
  return carry;
}

template <typename S, int V, bool kRecorded>
__global__ void __launch_bounds__(kSegments<typename Acc<S>::type>* kLanes, 2)
    lif_backward_chunked_kernel(const LifBackward p, const bool streaming) {
  static_assert(V == 1, "a lane takes one neuron");
  using A = typename Acc<S>::type;
  constexpr int kLast = kSegments<A> - 1;
  __shared__ A shared[kRecorded ? static_cast<int>(kRows) : kCheckpoint][V][kSegments<A> * kLanes];
  const int segment = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t begin = start_of<A>(segment, p.T), end = start_of<A>(segment + 1, p.T);
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kLanes + lane;
  const bool there = own < p.N;  // lanes without a neuron come to the barriers
  Backward<S, V, kRecorded, kSegments<A> * kLanes> neuron(p, there ? own : p.N - 1, shared, streaming);

  neuron.start({A(0)});
  if (segment == kLast) neuron.start_at_end();  // its carry is known
  if (there && segment > 0) neuron.run(begin, end, /*on_trial=*/segment < kLast);
  if (there) {
    shared[kCarry][0][threadIdx.x] = neuron.g[0].carry;
    shared[kFactor][0][threadIdx.x] = neuron.factor[0].carry;
  }
  __syncthreads();
  const A carry = there ? entering_carry<A>(shared, segment, lane) : A(0);
  __syncthreads();
  if (there && segment < kLast) {
    neuron.start({carry});
    neuron.run(begin, end);
  }
  if (segment > 0 && there) {
    shared[kBeta][0][threadIdx.x] = neuron.g[0].beta;
    shared[kThreshold][0][threadIdx.x] = neuron.g[0].threshold;
    shared[kGraded][0][threadIdx.x] = neuron.g[0].graded;
    shared[kGradX][0][threadIdx.x] = neuron.grad_x_sum[0];
  }
  __syncthreads();
  if (segment > 0 || !there) return;
  for (int later = 1; later < kSegments<A>; ++later) {
    const int at = later * kLanes + lane;
    neuron.g[0].beta += shared[kBeta][0][at];
    neuron.g[0].threshold += shared[kThreshold][0][at];
    neuron.g[0].graded += shared[kGraded][0][at];
    neuron.grad_x_sum[0] += shared[kGradX][0][at];
  }
  neuron.finish();
}

template <typename S, bool kRecorded>
int chunked(const LifBackward& p, void* stream) {
  constexpr int kThreads = kSegments<typename Acc<S>::type> * kLanes;
  return launch_blocks<LifBackward>(lif_backward_chunked_kernel<S, 1, kRecorded>, (p.N + kLanes - 1) / kLanes, kThreads,
                                    stream, p);
}

}  // namespace

bool wants_chunked(const LifBackward& p) { return p.T >= g_least_steps && p.N <= g_most_neurons; }

void set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  g_least_steps = least_steps;
  g_most_neurons = most_neurons;
}

int lif_backward_chunked(const LifBackward& p, void* stream) {
  return visit_element(p.dtype, [&](auto element) {
    using S = decltype(element);
    return is_recorded(p) ? chunked<S, true>(p, stream) : chunked<S, false>(p, stream);
  });
}

}  // namespace snnfast::cuda
