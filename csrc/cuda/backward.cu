// Backward kernel: a thread takes V adjacent neurons back through all time steps. Compiled once for each neuron.
#include "backward.cuh"
#include "backward_plain_kernel.cuh"

namespace snnfast::cuda {
namespace {

template <typename Neuron, typename S, int V, bool kRecorded>
constexpr int kBytes = kRecorded ? 0 : kCheckpoint * kKeptRows<Neuron> * V * static_cast<int>(sizeof(Opmath<S>));

// The least number of blocks at once. Without it the compiler takes a few registers too many for so many threads, and
// with a larger one it spills. Shared memory may allow fewer: a multiprocessor has 228 KiB at most, and a block takes
// 1 KiB more than it asks for.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr int kBytesOfThread = kBytes<Neuron, S, V, false>;
  constexpr int kOf = threads_in(kBytesOfThread);
  constexpr int kFit = 228 * 1024 / (kOf * kBytesOfThread + 1024);
  constexpr bool kMany = Neuron::kStates + Neuron::kParameters > 7;  // values of a neuron
  constexpr int kOfOne = kMany ? 768 : Neuron::kStates > 1 ? 896 : 1024;
  constexpr int kOfSeveral = Neuron::kStates > 1 ? 256 : 384;
  constexpr int kOfDoubles = Neuron::kParameters > 3 ? 640 : 768;
  constexpr int kWanted = sizeof(S) == 8 ? kOfDoubles : V > 1 ? kOfSeveral : kOfOne;
  return std::min(kFit, kWanted / kOf);
}();

template <typename Neuron, typename S, int V>
constexpr int kThreads = threads_in(kBytes<Neuron, S, V, false>);

template <typename Neuron, typename S, int V, bool kRecorded>
__global__ void __launch_bounds__(kThreads<Neuron, S, V>, kLeastBlocks<Neuron, S, V>)
    backward_kernel(const Backward<Neuron> p) {
  using A = Opmath<S>;
  constexpr int kColumns = kThreads<Neuron, S, V>;
  __shared__ SharedMemory<kColumns, kBytes<Neuron, S, V, kRecorded>, kSumBytes<Neuron>> shared;
  double own[Neuron::kParameters] = {};
  const int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group < p.N / V) {
    BackwardPass<Neuron, S, V, kRecorded, kColumns> neurons(p, group * V,
                                                            reinterpret_cast<A(*)[V][kColumns]>(shared.bytes));
    int64_t end = p.T;
    if constexpr (V == 1) {  // vectors never have a ragged batch
      end = p.steps_of(group);
      neurons.start_behind(end);
    }
    neurons.run(end);
    neurons.finish(own);
  }
  if (p.summed != 0) sum_parameters<kColumns>(p, own, shared.bytes, static_cast<int>(blockDim.x));
}

template <typename Neuron, typename S, bool kRecorded>
int launch_backward(const Backward<Neuron>& p, void* stream) {
  constexpr int V = kBackwardWidth<S>;
  if constexpr (V > 2) {  // two doubles issue as many instructions per neuron as one
    if (p.lengths == nullptr && backward_wants_vectors(p.N, V) &&
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
  if (p.summed != 0) {  // the counter of blocks starts at 0
    if (const int error = clear(p.partial_sums, sizeof(double), stream); error != 0) return error;
  }
  if constexpr (HasPlain<Neuron>) {
    if (const auto error = plain::backward(p, stream)) return *error;
  }
  return visit_element(p.dtype, [&](auto element) {
    using S = decltype(element);
    if constexpr (Neuron::kRecordedMembraneSuffices && std::is_same_v<S, Opmath<S>>) {
      if (p.mem_rec != nullptr) return launch_backward<Neuron, S, true>(p, stream);
    }
    return launch_backward<Neuron, S, false>(p, stream);
  });
}

template int backward<SNN_NEURON>(const Backward<SNN_NEURON>&, void*);

}  // namespace snnfast::cuda
