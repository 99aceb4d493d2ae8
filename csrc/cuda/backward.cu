// Backward kernels: a thread takes V adjacent neurons back through all time steps. Compiled once for each neuron.
#include "backward.cuh"
#include "backward_chunked.cuh"

namespace snnfast::cuda {
namespace plain {
namespace {

template <typename Neuron, typename S, int V, typename Of>
constexpr int kThreads = threads_in(kBytes<Neuron, S, V, Of>);

// The least number of blocks at once. With fewer the compiler takes more registers, and with more it spills.
template <typename Neuron, typename S, int V, typename Of>
constexpr int kLeastBlocks = [] {
  constexpr int kOf = kThreads<Neuron, S, V, Of>;
  if (Of::kChunk <= kFewSteps) return (Of::kSums != Sums::kNone ? 640 : ResetsAtOnce<Neuron> ? 896 : 1024) / kOf;
  if (Of::kAsks) return (V > 1 ? 256 : 512) / kOf;
  if (V > 1) return (kRows<Neuron, Of> > 1 ? 256 : sizeof(S) < sizeof(float) ? 512 : 384) / kOf;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // It takes a few registers more there.
  constexpr bool kLearnsOrClears = Of::kSums == Sums::kAll || Of::kReset == Reset::kZero;
  return (kRows<Neuron, Of> > 1 || (kLearnsOrClears && sizeof(S) < sizeof(float)) ? 512 : 640) / kOf;
#else
  constexpr bool kMore = Of::kReset == Reset::kZero || Of::kSums == Sums::kAll;
  return ((kRows<Neuron, Of> > 1 ? 640 : 768) - (kMore ? 128 : 0)) / kOf;
#endif
}();

template <typename Neuron, typename S, int V, typename Of>
__global__ void __launch_bounds__(kThreads<Neuron, S, V, Of>, kLeastBlocks<Neuron, S, V, Of>)
    backward_plain_kernel(const Backward<Neuron> p) {
  constexpr Sums kSums = Of::kSums;
  constexpr int kOf = kThreads<Neuron, S, V, Of>, kOwn = kSums == Sums::kFirst ? 1 : Neuron::kParameters;
  __shared__ SharedMemory<kOf, kBytes<Neuron, S, V, Of>, kSums == Sums::kNone ? 1 : kOwn * sizeof(double)> shared;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  [[maybe_unused]] double own[kOwn] = {};
  if (first < p.N) {
    PlainBackward<Neuron, S, V, Of, false, kOf> neurons(p, first, shared.bytes);
    const int T = static_cast<int>(p.T);
    neurons.start(T);
    neurons.load();
    run(neurons, 0, T);
    neurons.finish(own);
  }
  if constexpr (kSums != Sums::kNone) {
    if (p.summed != 0) sum_parameters<kOf, (V > 1)>(p, own, shared.bytes, static_cast<int>(blockDim.x));
  }
}

template <typename Neuron, typename S, int V, typename Of>
int launch_kind(const Backward<Neuron>& p, void* stream) {
  return launch<V>(backward_plain_kernel<Neuron, S, V, Of>, kThreads<Neuron, S, V, Of>, stream, p);
}

template <typename Neuron, typename S, typename Of>
int launch_width(const Backward<Neuron>& p, void* stream) {
  // Few calls in half precision learn anything. Those that do have fewer kernels.
  constexpr bool kHalf = sizeof(S) < sizeof(float);
  constexpr int V = kBackwardWidth<S>;
  if constexpr (!kHalf || Of::kSums == Sums::kNone || (Of::kSums == Sums::kFirst && !ResetsAtOnce<Neuron>)) {
    if (takes_vectors(p, V)) {
      constexpr bool kOfLeaky = kHasSums<Neuron> && (Of::kSums != Sums::kAll || Of::kAsks) &&
                                (!kHalf || (Of::kSums == Sums::kNone && Of::kReset == Reset::kSubtract));
      if constexpr (ResetsAtOnce<Neuron> || kOfLeaky) {
        if (p.T <= kFewSteps) return launch_kind<Neuron, S, V, typename Of::OfFew>(p, stream);
      }
      return launch_kind<Neuron, S, V, Of>(p, stream);
    }
  }
  constexpr Sums kInHalf = kHalf && Of::kSums == Sums::kFirst ? Sums::kAll : Of::kSums;
  constexpr Sums kSums = ResetsAtOnce<Neuron> ? Sums::kFirst : kInHalf;
  return launch_kind<Neuron, S, 1, Kind<Of::kReset, Of::kRecorded, kSums, Of::kOpen>>(p, stream);
}

// Nothing where no plain kernel takes the call.
template <typename Neuron>
std::optional<int> backward(const Backward<Neuron>& p, void* stream) {
  return visit(p, [&](const Backward<Neuron>& prepared, auto element, auto kind) {
    using S = decltype(element);
    using Of = decltype(kind);
    constexpr bool kLearnsInHalf = sizeof(S) < sizeof(float) && Of::kSums != Sums::kNone;
    if constexpr (kHasSums<Neuron> && !Of::kOpen && !kLearnsInHalf) {
      if (wants_chunked(p.T, p.N)) return launch_chunked<Neuron, S, Of>(prepared, stream);
    }
    return launch_width<Neuron, S, Of>(prepared, stream);
  });
}

}  // namespace
}  // namespace plain

namespace {

template <typename Neuron, typename S, int V>
constexpr int kBytes = kCheckpoint * kKeptRows<Neuron> * V * static_cast<int>(sizeof(Opmath<S>));

// The least number of blocks at once. Without it the compiler takes a few registers too many for so many threads, and
// with a larger one it spills. Shared memory may allow fewer: a multiprocessor has 228 KiB at most, and a block takes
// 1 KiB more than it asks for.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr int kBytesOfThread = kBytes<Neuron, S, V>;
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
constexpr int kThreads = threads_in(kBytes<Neuron, S, V>);

template <typename Neuron, typename S, int V>
__global__ void __launch_bounds__(kThreads<Neuron, S, V>, kLeastBlocks<Neuron, S, V>)
    backward_kernel(const Backward<Neuron> p) {
  using A = Opmath<S>;
  constexpr int kColumns = kThreads<Neuron, S, V>;
  __shared__ SharedMemory<kColumns, kBytes<Neuron, S, V>, kSumBytes<Neuron>> shared;
  double own[Neuron::kParameters] = {};
  const int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group < p.N / V) {
    BackwardPass<Neuron, S, V, kColumns> neurons(p, group * V, reinterpret_cast<A(*)[V][kColumns]>(shared.bytes));
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

template <typename Neuron, typename S>
int launch_backward(const Backward<Neuron>& p, void* stream) {
  constexpr int V = kBackwardWidth<S>;
  if constexpr (V > 2) {  // two doubles issue as many instructions per neuron as one
    if (takes_vectors(p, V)) return launch<V>(backward_kernel<Neuron, S, V>, kThreads<Neuron, S, V>, stream, p);
  }
  return launch<1>(backward_kernel<Neuron, S, 1>, kThreads<Neuron, S, 1>, stream, p);
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
  return visit_element(p.dtype, [&](auto element) { return launch_backward<Neuron, decltype(element)>(p, stream); });
}

template int backward<SNN_NEURON>(const Backward<SNN_NEURON>&, void*);

}  // namespace snnfast::cuda
