// Backward kernel: a thread takes V adjacent neurons back through all time steps.
//
// Where the forward pass recorded or kept the membrane it is read back; else kCheckpoint steps at a time are recomputed
// from the input into shared memory, each thread in a column of its own.
#include "neuron.cuh"

namespace snnfast::cuda {
namespace {

// As in the forward kernel; not in double, whose values take two registers each and whose division is a call.
template <typename A>
constexpr int kAhead = sizeof(A) == 8 ? 1 : 4;

// Shared memory for recomputed membranes: what a block may have without asking for more is 48 KiB.
constexpr int kSharedBytes = 32 * 1024;

template <typename S, int V>
constexpr int kThreads = [] {
  const int fits = kSharedBytes / static_cast<int>(kCheckpoint * V * sizeof(typename Acc<S>::type));
  return fits < 128 ? fits : 128;
}();

template <typename S, int V, bool kRecorded>
struct Backward {
  using A = typename Acc<S>::type;
  using Column = A (*)[V][kThreads<S, V>];  // [kCheckpoint][V][thread]

  const LifBackward& p;
  int64_t first;
  Column column;
  Neurons<A, V> neurons;
  LifGradients<A> g[V];
  A grad_x_sum[V];
  A v[V];              // recorded: the membrane that decided the spike of the next step to do
  A chunk_u[V];        // recomputed: the membrane before the chunk
  uint32_t resets[V];  // recomputed: bit k tells whether step k of the chunk began with a reset

  __device__ Backward(const LifBackward& problem, int64_t first_neuron, Column shared)
      : p(problem), first(first_neuron), column(shared), neurons(problem, first_neuron) {
    A carry[V];
    if (p.grad_mem_last == nullptr) {
      fill(carry, A(0));
    } else {
      load<V>(static_cast<const S*>(p.grad_mem_last) + first, carry);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = {carry[i], A(0), A(0), A(0)};
    fill(grad_x_sum, A(0));
    if constexpr (kRecorded) {
      if (p.T > 0) recorded(p.T - 1, v);
    }
  }

  __device__ __forceinline__ void run() {
    for (int64_t start = p.T > 0 ? (p.T - 1) / kCheckpoint * kCheckpoint : -1; start >= 0; start -= kCheckpoint) {
      const int count = static_cast<int>(p.T - start < kCheckpoint ? p.T - start : kCheckpoint);
      if constexpr (!kRecorded) recompute(start, count);
      for (int k = (count - 1) / kAhead<A> * kAhead<A>; k >= 0; k -= kAhead<A>) adjoint_steps(start, k, count);
    }
    finish();
  }

  __device__ __forceinline__ void recompute(int64_t start, int count) {
    if (start == 0) {
      initial_membrane(p, first, chunk_u);
    } else {
      load<V>(static_cast<const A*>(p.kept) + (start / kCheckpoint - 1) * p.N + first, chunk_u);
    }
    A u[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      u[i] = chunk_u[i];
      resets[i] = 0;
    }
    for (int k = 0; k < count; k += kAhead<A>) recompute_steps(start, k, count, u);
  }

  // Steps k to k + kAhead - 1 of the chunk, as far as it has them.
  __device__ __forceinline__ void recompute_steps(int64_t start, int k, int count, A (&u)[V]) {
    constexpr int Steps = kAhead<A>;
    A x[Steps][V];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      load<V>(static_cast<const S*>(p.x) + (p.x_constant ? 0 : (start + k + j) * p.N) + first, x[j]);
    }
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const Neuron<A>& neuron = neurons.at[i];
        const A r = heaviside(u[i] - neuron.threshold);
        const A now = lif_integrate(p.reset, u[i], r, x[j][i], neuron);
        column[k + j][i][threadIdx.x] = now;
        resets[i] |= static_cast<uint32_t>(r > A(0)) << (k + j);
        u[i] = lif_settle(p.reset, p.reset_delay, now, heaviside(now - neuron.threshold), r, neuron);
      }
    }
  }

  // The membrane before step k of the chunk, from what recompute() left.
  __device__ __forceinline__ A before(int k, int i) const {
    if (k == 0) return chunk_u[i];
    const A then = column[k - 1][i][threadIdx.x];
    const A r = static_cast<A>(resets[i] >> (k - 1) & 1u);
    const A s = heaviside(then - neurons.at[i].threshold);
    return lif_settle(p.reset, p.reset_delay, then, s, r, neurons.at[i]);
  }

  // Steps k + kAhead - 1 down to k of the chunk, as far as it has them.
  __device__ __forceinline__ void adjoint_steps(int64_t start, int k, int count) {
    constexpr int Steps = kAhead<A>;
    A gs[Steps][V], gm[Steps][V], u[Steps][V];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      const int64_t t = start + k + j;
      gradient(p.grad_spk, p.spk_count, t, gs[j]);
      gradient(p.grad_mem_rec, false, t, gm[j]);
      if constexpr (kRecorded) {
        if (t == 0) {
          initial_membrane(p, first, u[j]);
        } else {
          recorded(t - 1, u[j]);
        }
      }
    }
#pragma unroll
    for (int j = Steps - 1; j >= 0; --j) {
      if (k + j >= count) continue;
      if constexpr (!kRecorded) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          v[i] = column[k + j][i][threadIdx.x];
          u[j][i] = before(k + j, i);
        }
      }
      adjoint_step(start + k + j, u[j], gs[j], gm[j]);
      if constexpr (kRecorded) {
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] = u[j][i];
      }
    }
  }

  // The membrane that decided the spike of step t.
  __device__ __forceinline__ void recorded(int64_t t, A (&to)[V]) const {
    if (p.keep == Keep::kRounded) {
      load<V>(static_cast<const BFloat16*>(p.kept) + t * p.N + first, to);
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = membrane_at(to[i], neurons.at[i].threshold);
    } else if (p.keep == Keep::kBits) {
      Pack<uint8_t, V> bits{};  // of the last step, which are not kept
      if (t + 1 < p.T) {
        bits = *reinterpret_cast<const Pack<uint8_t, V>*>(static_cast<const uint8_t*>(p.kept) + t / 8 * p.N + first);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A threshold = neurons.at[i].threshold;
        to[i] = (bits.values[i] >> (t % 8) & 1) != 0 ? just_above(threshold) : threshold;
      }
    } else {
      load<V>(static_cast<const A*>(p.mem_rec) + t * p.N + first, to);
    }
  }

  __device__ __forceinline__ void gradient(const void* gradients, bool same, int64_t t, A (&to)[V]) const {
    if (gradients == nullptr) {
      fill(to, A(0));
    } else if (same) {
      load<V>(static_cast<const S*>(gradients) + first, to);
    } else {
      load<V>(static_cast<const S*>(gradients) + t * p.N + first, to);
    }
  }

  __device__ __forceinline__ void adjoint_step(int64_t t, const A (&u)[V], const A (&gs)[V], const A (&gm)[V]) {
    A sg[V], dx[V];
    const A a = static_cast<A>(p.coefficients.a), b = static_cast<A>(p.coefficients.b);
    // The same way for all threads, so these branches cost little; templating on them would multiply the kernels.
    if (p.derivative != nullptr) {
      load<V>(static_cast<const A*>(p.derivative) + t * p.N + first, sg);
    } else {
      visit_surrogate(p.surrogate, [&](auto kind) {
#pragma unroll
        for (int i = 0; i < V; ++i) sg[i] = decltype(kind)::derivative(v[i] - neurons.at[i].threshold, a, b);
      });
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      dx[i] = lif_adjoint(p.reset, p.reset_delay, p.surrogate != SurrogateKind::kNone, u[i], v[i], sg[i], gs[i], gm[i],
                          neurons.at[i], g[i]);
      grad_x_sum[i] += dx[i];
    }
    if (p.grad_x != nullptr && !p.x_constant) store<V>(static_cast<S*>(p.grad_x) + t * p.N + first, dx);
  }

  __device__ __forceinline__ void finish() {
    A carry[V], beta[V], threshold[V], graded[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      carry[i] = g[i].carry;
      // The clamp's own derivative needs beta as it was given.
      beta[i] = p.grad_beta == nullptr ? A(0) : clamp_unit_adjoint(parameter<A>(p.beta, first + i), g[i].beta);
      threshold[i] = g[i].threshold;
      graded[i] = g[i].graded;
    }
    if (p.grad_x != nullptr && p.x_constant) store<V>(static_cast<S*>(p.grad_x) + first, grad_x_sum);
    put(p.grad_mem0, carry);
    put(p.grad_beta, beta);
    put(p.grad_threshold, threshold);
    put(p.grad_graded, graded);
  }

  __device__ __forceinline__ void put(void* to, const A (&from)[V]) const {
    if (to != nullptr) store<V>(static_cast<A*>(to) + first, from);
  }
};

// The least number of blocks at once; 0 leaves it to the compiler. For compute capability 9.0 that spills registers of
// one kernel to keep more threads in flight.
template <int V, bool kRecorded>
constexpr int kLeastBlocks = V == 1 && kRecorded ? 1 : 0;

template <typename S, int V, bool kRecorded>
__global__ void __launch_bounds__(kThreads<S, V>, kLeastBlocks<V, kRecorded>) lif_backward_kernel(const LifBackward p) {
  using A = typename Acc<S>::type;
  __shared__ A trajectory[kRecorded ? 1 : kCheckpoint][V][kThreads<S, V>];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < p.N / V; group += stride) {
    Backward<S, V, kRecorded>(p, group * V, trajectory).run();
  }
}

template <typename S, bool kRecorded>
int backward(const LifBackward& p, void* stream) {
  constexpr int V = kVector<S>;
  const bool vectors = p.N >= vector_minimum() && p.N % V == 0 &&
                       aligned({p.x, p.mem0, p.mem_rec, p.kept, p.derivative, p.grad_spk, p.grad_mem_rec,
                                p.grad_mem_last, p.grad_x, p.grad_mem0, p.grad_beta, p.grad_threshold, p.grad_graded});
  return vectors ? launch<LifBackward>(lif_backward_kernel<S, V, kRecorded>, p.N / V, kThreads<S, V>, stream, p)
                 : launch<LifBackward>(lif_backward_kernel<S, 1, kRecorded>, p.N, kThreads<S, 1>, stream, p);
}

template <typename S>
int backward(const LifBackward& p, void* stream) {
  const bool recorded = p.mem_rec != nullptr || p.keep == Keep::kRounded || p.keep == Keep::kBits;
  return recorded ? backward<S, true>(p, stream) : backward<S, false>(p, stream);
}

}  // namespace

int lif_backward(const LifBackward& p, void* stream) {
  switch (p.dtype) {
    case DType::kFloat: return backward<float>(p, stream);
    case DType::kDouble: return backward<double>(p, stream);
    case DType::kHalf: return backward<Half>(p, stream);
    case DType::kBFloat16: return backward<BFloat16>(p, stream);
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

}  // namespace snnfast::cuda
