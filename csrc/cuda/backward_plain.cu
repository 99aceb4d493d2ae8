// Backward kernel of the ordinary calls: a thread takes V adjacent neurons back through all time steps. Compiled once
// for each neuron.
#include <algorithm>
#include <bit>

#include "backward_plain.cuh"

namespace snnfast::cuda {
namespace {

// As in backward.cu.
template <typename S>
constexpr int kWidth = 16 / static_cast<int>(sizeof(typename Acc<S>::type));

template <typename Neuron, typename S, int V>
constexpr int kThreads = [] {
  if constexpr (V == 1) return 128;
  return static_cast<int>(std::bit_floor(static_cast<unsigned>(32 * 1024 / std::max(kBytes<Neuron, S, V>, 1))));
}();

// The least number of blocks at once: with less the compiler takes more registers, with more it spills.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr int kOf = kThreads<Neuron, S, V>;
  if (V > 1 && kRows<Neuron> > 1) return 256 / kOf;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (V > 1) return 384 / kOf;  // it takes a few registers too many for 512
#endif
  if (V > 1) return 512 / kOf;
  return (kRows<Neuron> > 1 ? 512 : 896) / kOf;
}();

template <typename Neuron, typename S, int V, Reset kReset>
__global__ void __launch_bounds__(kThreads<Neuron, S, V>, kLeastBlocks<Neuron, S, V>)
    backward_plain_kernel(const Backward<Neuron> p, const bool streaming) {
  using A = typename Acc<S>::type;
  constexpr int kOf = kThreads<Neuron, S, V>;
  __shared__ Pack<A, V> steps[V == 1 ? 1 : kChunk * kRows<Neuron>][kOf];
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (first >= p.N) return;
  PlainBackward<Neuron, S, V, kReset, kOf> neurons(p, first, streaming, steps);
  const int T = static_cast<int>(p.T);
  neurons.start(T);
  neurons.load();
  neurons.template run<false>(0, T);
  neurons.finish();
}

template <typename Neuron, typename S, Reset kReset>
int launch_width(const Backward<Neuron>& p, void* stream) {
  constexpr int V = kWidth<S>;
  if (p.N >= vector_minimum() && p.N % V == 0 &&
      aligned(p.x, p.initial, p.rows, p.grad_spk, p.grad_last, p.grad_x, p.grad_initial)) {
    return launch(backward_plain_kernel<Neuron, S, V, kReset>, p.N / V, kThreads<Neuron, S, V>, stream, p);
  }
  return launch(backward_plain_kernel<Neuron, S, 1, kReset>, p.N, threads_for(p.N, kThreads<Neuron, S, 1>), stream, p);
}

}  // namespace

template <typename Neuron>
bool is_plain_backward(const Backward<Neuron>& p) {
  if (!is_plain(p) || p.recorded() || p.grad_spk == nullptr || p.grad_x == nullptr || p.derivative != nullptr)
    return false;
  // With a negative slope the denominator may be 0, which the approximate quotient is not for.
  const bool fast_sigmoid = p.surrogate == SurrogateKind::kFastSigmoid && p.coefficients.a >= 0;
  return (p.surrogate == SurrogateKind::kATan || fast_sigmoid) && none_of(p.grad_record) && !p.sums_parameters();
}

template <typename Neuron>
int backward_plain([[maybe_unused]] const Backward<Neuron>& p, [[maybe_unused]] void* stream) {
  if constexpr (HasPlain<Neuron>) {
    return visit_plain_backward(p, [&](const Backward<Neuron>& plain, auto element, auto reset) {
      return launch_width<Neuron, decltype(element), decltype(reset)::value>(plain, stream);
    });
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

template bool is_plain_backward<SNN_NEURON>(const Backward<SNN_NEURON>&);
template int backward_plain<SNN_NEURON>(const Backward<SNN_NEURON>&, void*);

}  // namespace snnfast::cuda
