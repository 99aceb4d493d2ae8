// Forward kernels: a thread takes V adjacent neurons through all time steps. It requests the currents of the next batch
// of steps before it computes the present one. Compiled once for each neuron.
#include "plain.cuh"

namespace snnfast::cuda {
namespace {

// What a plain kernel knows of its calls. kFew: they have no more steps than a batch.
template <Reset kReset_, bool kRecord_, bool kFew_>
struct Plain {
  static constexpr bool kAsks = false, kRecord = kRecord_, kFew = kFew_;
  using Steps = int;  // a number of them
  static __device__ __forceinline__ ResetRule rule(ResetRule) { return {kReset_, true}; }
};
// A general kernel asks the call. Only a thread of one neuron has ragged batches, and returns the membranes that
// decided the spikes: both hold registers that several neurons need.
struct General {
  static constexpr bool kAsks = true, kRecord = true, kFew = false;
  using Steps = int64_t;
  static __device__ __forceinline__ ResetRule rule(ResetRule given) { return given; }
};

// Steps of a batch. With one neuron per thread, so many hide the latency of memory even with few warps. Several neurons
// have as many bytes under way with fewer steps. A general kernel would become too large.
template <typename Of, int V>
constexpr int kBatch = Of::kAsks ? (V > 1 ? 2 : 4)
                       : V > 1   ? 4
                                 : 16;

template <int V>
constexpr int kThreads = V == 1 ? 128 : 256;

// The least number of blocks at once leaves registers for 1024 threads of a multiprocessor, or for fewer where they do
// not suffice.
template <typename Of, typename Neuron, typename S, int V>
constexpr int kLeastBlocks = [] {
  constexpr bool kMore = ResetsAtOnce<Neuron> || Neuron::kStates > 1;
  if (Of::kAsks) return (sizeof(S) == 2 && V > 1 ? 256 : V > 1 ? 512 : 768) / kThreads<V>;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if (V > 1 && std::is_same_v<S, BFloat16>) return 1;  // there the conversion is several instructions
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (V == 1 && kMore) return (sizeof(S) == 4 ? 512 : 640) / kThreads<V>;  // without a spill
  if (ResetsAtOnce<Neuron> && V == 4) return 512 / kThreads<V>;            // as here
#endif
  if (V == 1) return (kMore || sizeof(S) == 2 ? 896 : 1024) / kThreads<V>;
  return (sizeof(S) == 4 ? (kMore ? 768 : 1024) : (kMore ? 256 : 768)) / kThreads<V>;
}();

template <typename Of, typename Neuron, typename S, int V>
struct ForwardPass {
  using A = Opmath<S>;
  using Steps = typename Of::Steps;
  static constexpr int kSteps = kBatch<Of, V>, kStates = Neuron::kStates;
  static constexpr bool kRagged = Of::kAsks && V == 1;
  using Batch = Raw<S, V>[kSteps];

  const Forward<Neuron>& p;
  const S* x;  // of the next step to request
  S* spk;      // of the next step to write, as the rows below
  S* record[kStates];
  A* deciding;
  A* checkpoint;  // nullptr: none are saved
  const int64_t N, x_stride;
  A parameters[Neuron::kParameters];
  A state[V][kStates];
  A count[V];  // of spikes, if they are summed

  __device__ __forceinline__ ForwardPass(const Forward<Neuron>& problem, int64_t first)
      : p(problem),
        x(static_cast<const S*>(p.x) + first),
        spk(static_cast<S*>(p.spk) + first),
        deciding(plain::further(static_cast<A*>(p.deciding), first)),
        checkpoint(p.saved == Saved::kCheckpoints && p.rows != nullptr ? static_cast<A*>(p.rows) + first : nullptr),
        N(p.N),
        x_stride(p.x_stride()) {
    fill(count, A(0));
#pragma unroll
    for (int s = 0; s < kStates; ++s) record[s] = plain::further(static_cast<S*>(p.record[s]), first);
  }

  // Requests the currents of `count` steps, or of a whole batch.
  template <bool kWhole>
  __device__ __forceinline__ void request(Batch& batch, Steps count) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const bool there = kWhole || k < count;
      if (!Of::kFew && !there) continue;  // to break off would take more code
      if (there) batch[k] = get<S, V>(x);
      plain::advance(x, x_stride);
    }
    plain::in_order();
  }

  // The steps from `t` on. After its `own` steps, a neuron keeps its states and does not spike.
  template <bool kWhole>
  __device__ __forceinline__ void compute(Steps t, const Batch& batch, Steps count, [[maybe_unused]] Steps own) {
    if (checkpoint != nullptr && t > 0 && t % kCheckpoint == 0) save();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!kWhole && k >= count) continue;
      A current[V];
      unpack(batch[k], current);
      Fired<A> fired[V] = {};
      if (!kRagged || t + k < own) plain::step_all<Neuron>(Of::rule(p.rule), current, parameters, state, fired);
      write(fired);
    }
  }

  __device__ __forceinline__ void write(const Fired<A> (&fired)[V]) {
    A spikes[V];
#pragma unroll
    for (int i = 0; i < V; ++i) spikes[i] = fired[i].spk;
    if (kRagged && p.deciding != nullptr) {
      *deciding = fired[0].v;
      plain::advance(deciding, N);
    }
    if (Of::kAsks && p.reduce) {
#pragma unroll
      for (int i = 0; i < V; ++i) count[i] += spikes[i];
    } else {
      store<V>(spk, spikes);
      plain::advance(spk, N);
    }
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (!Of::kRecord || (Of::kAsks && p.record[s] == nullptr)) continue;
      store_row(record[s], s, state);
      plain::advance(record[s], N);
    }
  }

  __device__ __forceinline__ void save() {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      store_row(checkpoint, s, state);
      plain::advance(checkpoint, N);
    }
  }
};

template <typename Of, typename S, int V, typename Neuron>
__device__ __forceinline__ void run(const Forward<Neuron>& p) {
  using A = Opmath<S>;
  using Pass = ForwardPass<Of, Neuron, S, V>;
  using Steps = typename Of::Steps;
  constexpr int kSteps = Pass::kSteps;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (first >= p.N) return;
  const auto T = static_cast<Steps>(p.T), own = Pass::kRagged ? static_cast<Steps>(p.steps_of(first)) : T;
  Pass neurons(p, first);
  typename Pass::Batch now, next;
  neurons.template request<false>(now, T);
  const auto before = initial_states<A, V>(p, first);
  plain::in_order();
  if constexpr (Of::kAsks) {
    load_parameters<V>(p, first, neurons.parameters);
  } else {
    plain::load_numbers<S, V>(p, first, neurons.parameters);
  }
  before.to(neurons.state);

  Steps t = Of::kFew ? T : 0;
  if constexpr (Of::kFew) {
    if (T == kSteps) {
      neurons.template compute<true>(0, now, kSteps, own);
    } else {
      neurons.template compute<false>(0, now, T, own);
    }
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  constexpr bool kInPairs = !Of::kAsks && !std::is_same_v<S, BFloat16>;  // two batches would spill its conversions
#else
  constexpr bool kInPairs = !Of::kAsks;
#endif
#pragma unroll 1
  for (; kInPairs && t <= T - 3 * kSteps; t += 2 * kSteps) {  // so that no batch is copied
    neurons.template request<true>(next, kSteps);
    neurons.template compute<true>(t, now, kSteps, own);
    neurons.template request<true>(now, kSteps);
    neurons.template compute<true>(t + kSteps, next, kSteps, own);
  }
#pragma unroll 1
  for (; t < T; t += kSteps) {
    neurons.template request<false>(next, T - t - kSteps);
    neurons.template compute<false>(t, now, T - t, own);
    plain::copy(now, next);
  }
  if (Of::kAsks && p.reduce) store<V>(neurons.spk, neurons.count);
#pragma unroll
  for (int s = 0; s < Neuron::kStates; ++s) {
    if (p.last[s] != nullptr) store_row(static_cast<A*>(p.last[s]) + first, s, neurons.state);
  }
}

template <typename Neuron, typename S, int V, Reset kReset, bool kRecord, bool kFew>
__global__ void __launch_bounds__(kThreads<V>, kLeastBlocks<Plain<kReset, kRecord, kFew>, Neuron, S, V>)
    forward_plain_kernel(const Forward<Neuron> p) {
  run<Plain<kReset, kRecord, kFew>, S, V>(p);
}

template <typename Neuron, typename S, int V>
__global__ void __launch_bounds__(kThreads<V>, kLeastBlocks<General, Neuron, S, V>)
    forward_kernel(const Forward<Neuron> p) {
  run<General, S, V>(p);
}

template <typename Neuron, typename S, Reset kReset, bool kRecord>
int launch_plain(const Forward<Neuron>& p, void* stream) {
  constexpr int V = kForwardWidth<S>;
  if (!takes_vectors(p, V)) {
    return launch<1>(forward_plain_kernel<Neuron, S, 1, kReset, kRecord, false>, kThreads<1>, stream, p);
  }
  if constexpr (ResetsAtOnce<Neuron> && V == 4) {  // eight neurons, or a lighter step, hide the rest
    if (p.T <= kBatch<Plain<kReset, kRecord, true>, V>) {
      return launch<V>(forward_plain_kernel<Neuron, S, V, kReset, kRecord, true>, kThreads<V>, stream, p);
    }
  }
  return launch<V>(forward_plain_kernel<Neuron, S, V, kReset, kRecord, false>, kThreads<V>, stream, p);
}

// Whether the plain kernels take a call of a neuron that has some.
template <typename Neuron>
bool takes_plain(const Forward<Neuron>& p) {
  if (!plain::is_ordinary(p) || p.reduce || p.deciding != nullptr) return false;
  const bool subtracts = p.rule.reset == Reset::kSubtract && !ResetsAtOnce<Neuron>;
  return given(p.record) == 0 || (subtracts && given(p.record) == Neuron::kStates);
}

template <typename Neuron, typename S>
int launch_element(const Forward<Neuron>& p, void* stream) {
  if constexpr (HasPlain<Neuron> && !std::is_same_v<S, double>) {
    if (takes_plain(p)) {
      Forward<Neuron> prepared = p;
      plain::set_numbers(prepared);
      if (p.rule.reset == Reset::kZero) return launch_plain<Neuron, S, Reset::kZero, false>(prepared, stream);
      if constexpr (!ResetsAtOnce<Neuron>) {
        if (given(p.record) != 0) return launch_plain<Neuron, S, Reset::kSubtract, true>(prepared, stream);
      }
      return launch_plain<Neuron, S, Reset::kSubtract, false>(prepared, stream);
    }
  }
  constexpr int V = kForwardWidth<S>;
  if constexpr (V > 2) {  // two doubles issue as many instructions per neuron as one
    if (takes_vectors(p, V)) return launch<V>(forward_kernel<Neuron, S, V>, kThreads<V>, stream, p);
  }
  return launch<1>(forward_kernel<Neuron, S, 1>, kThreads<1>, stream, p);
}

}  // namespace

template <typename Neuron>
int forward(const Forward<Neuron>& p, void* stream) {
  return visit_element(p.dtype, [&](auto element) { return launch_element<Neuron, decltype(element)>(p, stream); });
}

template int forward<SNN_NEURON>(const Forward<SNN_NEURON>&, void*);

}  // namespace snnfast::cuda
