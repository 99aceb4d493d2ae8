// Backward kernel: a thread takes V adjacent neurons back through all time steps. Compiled once for each neuron.
#include <algorithm>
#include <bit>

#include "backward.cuh"
#include "backward_chunked.cuh"
#include "backward_plain_kernel.cuh"

namespace snnfast::cuda {
namespace {

// Adjacent neurons of a thread: as many as fill 16 bytes in opmath, which for 16-bit elements is 8 bytes of them. The
// state of twice as many would leave registers for an eighth of a multiprocessor's threads.
template <typename S>
constexpr int kWidth = 16 / static_cast<int>(sizeof(Opmath<S>));

// Shared memory of a thread that recomputes.
template <typename Neuron, typename S, int V>
constexpr int kBytes = kCheckpoint * kKeptRows<Neuron> * V * static_cast<int>(sizeof(Opmath<S>));

// As many as kSharedBytes allow, by powers of two.
template <typename Neuron, typename S, int V>
constexpr int kThreads = std::min(128, static_cast<int>(std::bit_floor(unsigned{kSharedBytes / kBytes<Neuron, S, V>})));

// The least number of blocks at once: without it the compiler takes a few registers too many for so many threads, with
// a larger one it spills. With several states shared memory allows less: a multiprocessor has 228 KiB at most, and a
// block takes 1 KiB more than it asks for.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr int kOf = kThreads<Neuron, S, V>;
  constexpr int kFit = 228 * 1024 / (kOf * kBytes<Neuron, S, V> + 1024);
  constexpr bool kMany = Neuron::kStates + Neuron::kParameters > 7;  // values of a neuron
  constexpr int kOfOne = kMany ? 768 : Neuron::kStates > 1 ? 896 : 1024;
  constexpr int kOfSeveral = Neuron::kStates > 1 ? 256 : 384;
  constexpr int kOfDoubles = Neuron::kParameters > 4 ? 640 : 896;
  constexpr int kWanted = sizeof(S) == 8 ? kOfDoubles : V > 1 ? kOfSeveral : kOfOne;
  return std::min(kFit, kWanted / kOf);
}();

template <typename Neuron, typename S, int V, bool kRecorded>
__global__ void __launch_bounds__(kThreads<Neuron, S, V>, kLeastBlocks<Neuron, S, V>)
    backward_kernel(const Backward<Neuron> p, const bool streaming) {
  using A = Opmath<S>;
  constexpr int kColumns = kThreads<Neuron, S, V>;
  static_assert(kSumRows<Neuron, A> <= kCheckpoint);
  __shared__ A steps[kRecorded ? kSumRows<Neuron, A> : kCheckpoint * kKeptRows<Neuron>][V][kColumns];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t own = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t group = own; group < p.N / V; group += stride) {
    BackwardPass<Neuron, S, V, kRecorded, kColumns> neurons(p, group * V, steps, streaming);
    neurons.start_at_end();
    int64_t end = p.T;
    if constexpr (V == 1) {  // a ragged batch takes no vectors
      end = p.steps_of(group);
      neurons.start_behind(end);
    }
    neurons.run(0, end);
    neurons.finish();
  }
  if (p.summed == 0) return;
  // A thread has one group or none: no memory holds the neurons of two.
  const Sums<A, V, kColumns> sums{steps};
  for (int k = 0; k < Neuron::kParameters && own >= p.N / V; ++k) sums.put(k, static_cast<int>(threadIdx.x), 0);
  sum_parameters(p, sums, static_cast<int>(blockDim.x));
}

template <typename Neuron, typename S, bool kRecorded>
int launch_backward(const Backward<Neuron>& p, void* stream) {
  constexpr int V = kWidth<S>;
  if constexpr (V > 2) {  // two in double would issue as much for each as one
    if (p.lengths == nullptr && p.N >= vector_minimum() && p.N % V == 0 &&
        aligned(p.x, p.initial, p.mem_rec, p.rows, p.derivative, p.grad_spk, p.grad_record, p.grad_last, p.grad_x,
                p.grad_x_sum, p.grad_initial, p.grad_parameters)) {
      return launch(backward_kernel<Neuron, S, V, kRecorded>, p.N / V, kThreads<Neuron, S, V>, stream, p);
    }
  }
  return launch(backward_kernel<Neuron, S, 1, kRecorded>, p.N, threads_for(p.N, kThreads<Neuron, S, 1>), stream, p);
}

}  // namespace

template <typename Neuron>
int backward(const Backward<Neuron>& p, void* stream) {
  if (p.summed != 0) {  // the counter of blocks
    if (const int error = clear(p.partial_sums, sizeof(double), stream); error != 0) return error;
  }
  if constexpr (kSharesTime<Neuron>) {
    if (p.lengths == nullptr && wants_chunked(p.T, p.N)) return backward_chunked(p, stream);
  }
  if constexpr (HasPlain<Neuron>) {
    if (plain::takes(p)) return plain::backward(p, stream);
  }
  return visit_element(p.dtype, [&](auto element) {
    using S = decltype(element);
    if constexpr (Neuron::kRecordedMembraneSuffices) {
      if (p.recorded()) return launch_backward<Neuron, S, true>(p, stream);
    }
    return launch_backward<Neuron, S, false>(p, stream);
  });
}

template int backward<SNN_NEURON>(const Backward<SNN_NEURON>&, void*);

}  // namespace snnfast::cuda
