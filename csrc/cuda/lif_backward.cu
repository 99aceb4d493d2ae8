// Backward kernel: a thread takes V adjacent neurons back through all time steps.
#include "lif_backward.cuh"

namespace snnfast::cuda {
namespace {

// Adjacent neurons of a thread: as many as fill 16 bytes in arithmetic, which for 16-bit elements is 8 bytes of them.
// The state of twice as many would leave registers for an eighth of a multiprocessor's threads.
template <typename S>
constexpr int kWidth = 16 / static_cast<int>(sizeof(typename Acc<S>::type));

template <typename S, int V>
constexpr int kThreads = [] {
  const int fits = kSharedBytes / static_cast<int>(kCheckpoint * V * sizeof(typename Acc<S>::type));
  return fits < 128 ? fits : 128;
}();

// The least number of blocks at once; 0 leaves it to the compiler, which spills registers of some kernels to keep more
// threads in flight, and of others takes a few too many for four blocks.
template <typename S, int V, bool kRecorded>
constexpr int kLeastBlocks = [] {
  if (V == 1) return kRecorded || sizeof(S) != 4 ? 1 : 0;
  return sizeof(S) == 8 ? 0 : 4;
}();

template <typename S, int V, bool kRecorded>
__global__ void __launch_bounds__(kThreads<S, V>, kLeastBlocks<S, V, kRecorded>)
    lif_backward_kernel(const LifBackward p, const bool streaming) {
  using A = typename Acc<S>::type;
  __shared__ A trajectory[kRecorded ? 1 : kCheckpoint][V][kThreads<S, V>];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < p.N / V; group += stride) {
    Backward<S, V, kRecorded, kThreads<S, V>> neurons(p, group * V, trajectory, streaming);
    neurons.start_at_end();
    neurons.run(0, p.T);
    neurons.finish();
  }
}

template <typename S, bool kRecorded>
int backward(const LifBackward& p, void* stream) {
  constexpr int V = kWidth<S>;
  const bool vectors = p.N >= vector_minimum() && p.N % V == 0 &&
                       aligned({p.x, p.mem0, p.mem_rec, p.kept, p.derivative, p.grad_spk, p.grad_mem_rec,
                                p.grad_mem_last, p.grad_x, p.grad_mem0, p.grad_beta, p.grad_threshold, p.grad_graded});
  return vectors ? launch<LifBackward>(lif_backward_kernel<S, V, kRecorded>, p.N / V, kThreads<S, V>, stream, p)
                 : launch<LifBackward>(lif_backward_kernel<S, 1, kRecorded>, p.N, threads_for(p.N, kThreads<S, 1>),
                                       stream, p);
}

}  // namespace

int lif_backward(const LifBackward& p, void* stream) {
  if (wants_chunked(p)) return lif_backward_chunked(p, stream);
  return visit_element(p.dtype, [&](auto element) {
    using S = decltype(element);
    return is_recorded(p) ? backward<S, true>(p, stream) : backward<S, false>(p, stream);
  });
}

}  // namespace snnfast::cuda
