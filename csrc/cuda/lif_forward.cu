// Forward kernel: a thread takes V adjacent neurons through all time steps.
#include "neuron.cuh"

namespace snnfast::cuda {
namespace {

constexpr int kThreads = 256;
// Time steps whose input is under way before the first of them is used: memory latency is what limits this kernel.
constexpr int kAhead = 4;

int64_t g_vector_minimum = int64_t{1} << 18;

template <typename S, int V>
struct Forward {
  using A = typename Acc<S>::type;

  const LifForward& p;
  int64_t first;
  bool streaming;
  Neurons<A, V> neurons;
  A mem[V];
  A count[V];                  // spikes so far, if they are summed
  uint32_t bits[(V + 3) / 4];  // a byte to each neuron: its spikes of up to eight steps, where they are kept

  __device__ Forward(const LifForward& problem, int64_t first_neuron, bool stream)
      : p(problem), first(first_neuron), streaming(stream), neurons(problem, first_neuron) {
    initial_membrane(p, first, mem);
    fill(count, A(0));
    fill(bits, 0u);
  }

  // Steps t to t + kAhead - 1, as far as there are any.
  __device__ __forceinline__ void steps(int64_t t) {
    Raw<S, V> x[kAhead];
    // With checkpoints, backward reads it again.
    const bool last = streaming && !p.x_constant && p.keep != Keep::kCheckpoints;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (t + k >= p.T) break;
      x[k] = get<S, V>(static_cast<const S*>(p.x) + (p.x_constant ? 0 : (t + k) * p.N) + first, last);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (t + k >= p.T) break;
      step(t + k, x[k]);
    }
  }

  __device__ __forceinline__ void step(int64_t t, const Raw<S, V>& current) {
    A x[V];
    unpack(current, x);
    if (p.keep == Keep::kCheckpoints && t % kCheckpoint == 0 && t > 0) {
      store<V>(static_cast<A*>(p.kept) + (t / kCheckpoint - 1) * p.N + first, mem, streaming);
    }
    A spk[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Neuron<A>& neuron = neurons.at[i];
      const A r = heaviside(mem[i] - neuron.threshold);
      const A v = lif_integrate(p.reset, mem[i], r, x[i], neuron);
      const A s = heaviside(v - neuron.threshold);
      spk[i] = s * neuron.graded;
      count[i] += spk[i];
      mem[i] = lif_settle(p.reset, p.reset_delay, v, s, r, neuron);
    }
    const int64_t at = t * p.N + first;
    if (!p.spk_count) store<V>(static_cast<S*>(p.spk) + at, spk, streaming);
    if (p.mem_rec != nullptr) store<V>(static_cast<S*>(p.mem_rec) + at, mem, streaming);
    if (p.keep == Keep::kRounded) keep_rounded(at);
    if (p.keep == Keep::kBits && t + 1 < p.T) keep_bits(t);
  }

  // With a delayed reset, the membrane after a step is the one that decided its spike.
  __device__ __forceinline__ void keep_rounded(int64_t at) {
    Pack<BFloat16, V> rounded;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const A z = mem[i] - neurons.at[i].threshold;
      rounded.values[i] = narrow<BFloat16>(static_cast<float>(z));
      rounded.values[i].bits = keep_side(z, rounded.values[i].bits);  // the spikes, and so the resets, stay exact
    }
    put(static_cast<BFloat16*>(p.kept) + at, rounded, streaming);
  }

  __device__ __forceinline__ void keep_bits(int64_t t) {
    const int bit = static_cast<int>(t % 8);
    if (bit == 0) fill(bits, 0u);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool spike = mem[i] - neurons.at[i].threshold > A(0);
      bits[i / 4] |= (spike ? 1u : 0u) << (bit + i % 4 * 8);
    }
    if (bit != 7 && t + 2 < p.T) return;  // the byte has room for the next step
    Pack<uint8_t, V> pack;
    memcpy(&pack, bits, sizeof pack);
    put(static_cast<uint8_t*>(p.kept) + t / 8 * p.N + first, pack, streaming);
  }
};

// The least number of blocks at once; 0 leaves it to the compiler. In float it would take a few registers more, in
// double it spills for want of them.
template <typename S, int V>
constexpr int kLeastBlocks = V > 1 && sizeof(S) == 4 ? 4 : 0;

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<S, V>)
    lif_forward_kernel(const LifForward p, const bool streaming) {
  using A = typename Acc<S>::type;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < p.N / V; group += stride) {
    Forward<S, V> neurons(p, group * V, streaming);
    for (int64_t t = 0; t < p.T; t += kAhead) neurons.steps(t);
    if (p.spk_count) store<V>(static_cast<S*>(p.spk) + group * V, neurons.count);
    if (p.mem_last != nullptr) store<V>(static_cast<A*>(p.mem_last) + group * V, neurons.mem);
  }
}

template <typename S>
int forward(const LifForward& p, void* stream) {
  constexpr int V = kVector<S>;
  const bool vectors =
      p.N >= g_vector_minimum && p.N % V == 0 && aligned({p.x, p.mem0, p.spk, p.mem_rec, p.mem_last, p.kept});
  return vectors ? launch<LifForward>(lif_forward_kernel<S, V>, p.N / V, kThreads, stream, p)
                 : launch<LifForward>(lif_forward_kernel<S, 1>, p.N, threads_for(p.N, kThreads), stream, p);
}

}  // namespace

int lif_forward(const LifForward& p, void* stream) {
  return visit_element(p.dtype, [&](auto element) { return forward<decltype(element)>(p, stream); });
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int64_t vector_minimum() { return g_vector_minimum; }
void set_vector_minimum(int64_t neurons) { g_vector_minimum = neurons; }

}  // namespace snnfast::cuda
