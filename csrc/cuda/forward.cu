// Forward kernel: a thread takes V adjacent neurons through all time steps. Compiled once for each neuron.
#include "forward_plain.cuh"
#include "neurons.cuh"

namespace snnfast::cuda {
namespace {

constexpr int kThreads = 256;
// Time steps whose currents are requested before the first is used, because the latency of memory limits this kernel.
constexpr int kAhead = 4;

// Only a thread of one neuron has ragged batches, and returns the membranes that decided the spikes: both hold
// registers that several neurons need.
template <typename Neuron, typename S, int V>
struct ForwardPass {
  using A = Opmath<S>;
  static constexpr int kStates = Neuron::kStates;

  const Forward<Neuron>& p;
  int64_t first;
  int64_t own_steps;  // of one neuron alone
  A parameters[V][Neuron::kParameters];
  A state[V][kStates];
  A count[V];  // spikes so far, if they are summed

  __device__ ForwardPass(const Forward<Neuron>& problem, int64_t first_neuron)
      : p(problem), first(first_neuron), own_steps(V == 1 ? problem.steps_of(first_neuron) : 0) {
    load_parameters(p, first, parameters);
    load_initial(p, first, state);
    fill(count, A(0));
  }

  __device__ __forceinline__ int64_t T() const { return V == 1 ? own_steps : p.T; }

  // Steps t to t + kAhead - 1, as far as there are any.
  __device__ __forceinline__ void steps(int64_t t) {
    Raw<S, V> x[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (t + k >= T()) break;
      x[k] = get<S, V>(static_cast<const S*>(p.x) + (p.x_repeats ? 0 : (t + k) * p.N) + first);
    }
    // For several neurons, unrolling would make four times the code, so each current moves up to the place of the one
    // before. For one neuron, these moves would be half of all instructions.
    [[maybe_unused]] constexpr int kCopies = V == 1 ? kAhead : 1;
#pragma unroll kCopies
    for (int k = 0; k < kAhead; ++k) {
      if (t + k >= T()) break;
      step(t + k, x[0]);
#pragma unroll
      for (int next = 1; next < kAhead; ++next) x[next - 1] = x[next];
    }
  }

  __device__ __forceinline__ void step(int64_t t, const Raw<S, V>& current) {
    A x[V];
    unpack(current, x);
    if (p.saved == Saved::kCheckpoints && t % kCheckpoint == 0 && t > 0) {
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        store_row(static_cast<A*>(p.rows) + ((t / kCheckpoint - 1) * kStates + s) * p.N + first, s, state);
      }
    }
    [[maybe_unused]] A v[V];
    A spk[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Fired<A> fired = Neuron::step(p.rule, x[i], state[i], parameters[i]);
      v[i] = fired.v;
      spk[i] = fired.spk;
    }
    const int64_t at = t * p.N + first;
    if constexpr (V == 1) {
      if (p.deciding != nullptr) store<V>(static_cast<A*>(p.deciding) + at, v);
    }
    if (p.reduce) {
#pragma unroll
      for (int i = 0; i < V; ++i) count[i] += spk[i];
    } else {
      store<V>(static_cast<S*>(p.spk) + at, spk);
    }
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.record[s] != nullptr) store_row(static_cast<S*>(p.record[s]) + at, s, state);
    }
  }

  // After its last step a sample keeps its states and does not spike. Nobody reads what is saved of it there.
  __device__ __forceinline__ void fill_padding() {
    A none[V];
    fill(none, A(0));
    for (int64_t t = own_steps; t < p.T; ++t) {
      const int64_t at = t * p.N + first;
      if (p.deciding != nullptr) store<V>(static_cast<A*>(p.deciding) + at, none);
      if (!p.reduce) store<V>(static_cast<S*>(p.spk) + at, none);
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        if (p.record[s] != nullptr) store_row(static_cast<S*>(p.record[s]) + at, s, state);
      }
      if (p.saved == Saved::kCheckpoints && t % kCheckpoint == 0 && t > 0) {
        A* const rows = static_cast<A*>(p.rows) + (t / kCheckpoint - 1) * kStates * p.N + first;
        for (int s = 0; s < kStates; ++s) store<V>(rows + s * p.N, none);
      }
    }
  }

  __device__ __forceinline__ void finish() {
    if constexpr (V == 1) fill_padding();
    if (p.reduce) store<V>(static_cast<S*>(p.spk) + first, count);
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.last[s] != nullptr) store_row(static_cast<A*>(p.last[s]) + first, s, state);
    }
  }
};

// The least number of blocks at once; 0 leaves it to the compiler, which takes a few registers too many with vectors,
// and in double spills to run more blocks.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  if (sizeof(S) == 8) return 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (V == 1) return 2;  // it spilled a word of 16-bit elements
#endif
  if (V == 1) return Neuron::kStates > 1 ? 2 : 0;  // with several states the compiler spilled a word
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (sizeof(S) == 2) return 0;  // 3 blocks would lack a few registers
#endif
  if (sizeof(S) == 2 && Neuron::kStates > 2) return 0;  // 8 neurons need their registers
  return sizeof(S) == 4 ? 3 : 2;
}();

template <typename Neuron, typename S, int V>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<Neuron, S, V>) forward_kernel(const Forward<Neuron> p) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group >= p.N / V) return;
  ForwardPass<Neuron, S, V> neurons(p, group * V);
  for (int64_t t = 0; t < neurons.T(); t += kAhead) neurons.steps(t);
  neurons.finish();
}

template <typename Neuron, typename S>
int launch_forward(const Forward<Neuron>& p, void* stream) {
  constexpr int V = kForwardWidth<S>;
  // For the membranes that decided the spikes, one neuron per thread is fast enough: the user's callable, which gets
  // them, takes longer.
  if constexpr (V > 2) {  // two doubles issue as many instructions per neuron as one
    if (p.deciding == nullptr && p.lengths == nullptr && forward_wants_vectors(p.N, V) &&
        aligned(p.x, p.initial, p.spk, p.record, p.last, p.rows)) {
      return launch(forward_kernel<Neuron, S, V>, p.N / V, kThreads, stream, p);
    }
  }
  return launch(forward_kernel<Neuron, S, 1>, p.N, threads_for(p.N, kThreads), stream, p);
}

}  // namespace

template <typename Neuron>
int forward(const Forward<Neuron>& p, void* stream) {
  if constexpr (HasPlain<Neuron>) {
    if (plain::takes(p)) return plain::forward(p, stream);
  }
  return visit_element(p.dtype, [&](auto element) { return launch_forward<Neuron, decltype(element)>(p, stream); });
}

template int forward<SNN_NEURON>(const Forward<SNN_NEURON>&, void*);

}  // namespace snnfast::cuda
