// Forward kernel: a thread takes V adjacent neurons through all time steps. Compiled once for each neuron.
#include "forward_plain.cuh"
#include "neurons.cuh"

namespace snnfast::cuda {
namespace {

constexpr int kThreads = 256;
// Time steps whose input is under way before the first of them is used: memory latency is what limits this kernel.
constexpr int kAhead = 4;

// One neuron alone also does what holds registers that several need: its sample may have fewer steps than others, and
// the membranes that decided the spikes may be an output.
template <typename Neuron, typename S, int V>
struct ForwardPass {
  using A = Opmath<S>;
  static constexpr int kStates = Neuron::kStates;

  const Forward<Neuron>& p;
  int64_t first;
  int64_t own_steps;  // of one neuron alone
  bool streaming;
  A parameters[V][Neuron::kParameters];
  A state[V][kStates];
  A count[V];                  // spikes so far, if they are summed
  uint32_t bits[(V + 3) / 4];  // a byte to each neuron: its spikes of up to eight steps, where they are saved

  __device__ ForwardPass(const Forward<Neuron>& problem, int64_t first_neuron, bool stream)
      : p(problem), first(first_neuron), own_steps(V == 1 ? problem.steps_of(first_neuron) : 0), streaming(stream) {
    load_parameters(p, first, parameters);
    load_initial(p, first, state);
    fill(count, A(0));
    fill(bits, 0u);
  }

  __device__ __forceinline__ int64_t T() const { return V == 1 ? own_steps : p.T; }
  __device__ __forceinline__ A threshold(int i) const { return parameters[i][Problem<Neuron>::kThreshold]; }

  // Steps t to t + kAhead - 1, as far as there are any.
  __device__ __forceinline__ void steps(int64_t t) {
    Raw<S, V> x[kAhead];
    // With checkpoints, backward reads it again.
    const bool last = streaming && !p.x_repeats && p.saved != Saved::kCheckpoints;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (t + k >= T()) break;
      x[k] = get<S, V>(static_cast<const S*>(p.x) + (p.x_repeats ? 0 : (t + k) * p.N) + first, last);
    }
    // Of several neurons it would be four times as much code if it was unrolled. So each current moves up to the place
    // of the one before. Of one neuron what that takes would be half of all.
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
        store_row(static_cast<A*>(p.rows) + ((t / kCheckpoint - 1) * kStates + s) * p.N + first, s, state, streaming);
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
      if (p.deciding != nullptr) store<V>(static_cast<A*>(p.deciding) + at, v, streaming);
    }
    if (p.reduce) {
#pragma unroll
      for (int i = 0; i < V; ++i) count[i] += spk[i];
    } else {
      store<V>(static_cast<S*>(p.spk) + at, spk, streaming);
    }
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.record[s] != nullptr) store_row(static_cast<S*>(p.record[s]) + at, s, state, streaming);
    }
    if constexpr (Neuron::kRecordedMembraneSuffices) {
      if (p.saved == Saved::kSpikes) save_spikes(t);
    }
  }

  // With a delayed reset, the membrane after a step is the one that decided its spike.
  __device__ __forceinline__ void save_spikes(int64_t t) {
    const int bit = static_cast<int>(t % 8);
    if (bit == 0) fill(bits, 0u);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const bool spike = state[i][Problem<Neuron>::kMem] > threshold(i);
      bits[i / 4] |= (spike ? 1u : 0u) << (bit + i % 4 * 8);
    }
    if (bit != 7 && t + 1 < T()) return;  // the byte has room for the next step
    Pack<uint8_t, V> pack;
    memcpy(&pack, bits, sizeof pack);
    put(static_cast<uint8_t*>(p.rows) + t / 8 * p.N + first, pack, streaming);
  }

  // After its last step a sample keeps its states and does not spike. What would be saved of it nobody reads.
  __device__ __forceinline__ void fill_padding() {
    A none[V];
    fill(none, A(0));
    for (int64_t t = own_steps; t < p.T; ++t) {
      const int64_t at = t * p.N + first;
      if (p.deciding != nullptr) store<V>(static_cast<A*>(p.deciding) + at, none, streaming);
      if (!p.reduce) store<V>(static_cast<S*>(p.spk) + at, none, streaming);
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        if (p.record[s] != nullptr) store_row(static_cast<S*>(p.record[s]) + at, s, state, streaming);
      }
      if (p.saved == Saved::kCheckpoints && t % kCheckpoint == 0 && t > 0) {
        A* const rows = static_cast<A*>(p.rows) + (t / kCheckpoint - 1) * kStates * p.N + first;
        for (int s = 0; s < kStates; ++s) store<V>(rows + s * p.N, none, streaming);
      }
      if constexpr (Neuron::kRecordedMembraneSuffices) {
        if (p.saved == Saved::kSpikes && t % 8 == 0) {
          put(static_cast<uint8_t*>(p.rows) + t / 8 * p.N + first, Pack<uint8_t, V>{}, streaming);
        }
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

// The least number of blocks at once; 0 leaves it to the compiler. With vectors it would take a few registers more, and
// in double it spills some to run more blocks.
template <typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  if (sizeof(S) == 8) return 4;
  if (V == 1) return Neuron::kStates > 1 ? 2 : 0;  // left alone, it once spilled a word
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (sizeof(S) == 2) return 0;  // it has a few registers too few for 3
#endif
  if (sizeof(S) == 2 && Neuron::kStates > 2) return 0;  // of 8 neurons
  return sizeof(S) == 4 ? 3 : 2;
}();

template <typename Neuron, typename S, int V>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<Neuron, S, V>)
    forward_kernel(const Forward<Neuron> p, const bool streaming) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < p.N / V; group += stride) {
    ForwardPass<Neuron, S, V> neurons(p, group * V, streaming);
    for (int64_t t = 0; t < neurons.T(); t += kAhead) neurons.steps(t);
    neurons.finish();
  }
}

template <typename Neuron, typename S>
int launch_forward(const Forward<Neuron>& p, void* stream) {
  constexpr int V = kVector<S>;
  // For the membranes that decided the spikes one neuron to a thread will do: what a callable of the user's makes of
  // them takes longer than this.
  if constexpr (V > 2) {  // two in double would issue as much for each as one
    if (p.deciding == nullptr && p.lengths == nullptr && p.N >= vector_minimum() && p.N % V == 0 &&
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
