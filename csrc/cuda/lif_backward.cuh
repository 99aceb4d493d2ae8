// V adjacent neurons, taken back through time by one thread.
//
// Where the forward pass recorded or kept the membrane it is read back; else kCheckpoint steps at a time, a chunk, are
// recomputed from the input into shared memory, each thread in a column of its own.
#pragma once

#include "neuron.cuh"

namespace snnfast::cuda {

// As in the forward kernel; not in double, whose values take two registers each and whose division is a call.
template <typename A>
constexpr int kAhead = sizeof(A) == 8 ? 1 : 4;

// Shared memory for recomputed membranes: what a block may have without asking for more is 48 KiB.
inline constexpr int kSharedBytes = 32 * 1024;

template <typename S, int V, bool kRecorded, int kThreads>
struct Backward {
  using A = typename Acc<S>::type;
  using Column = A (*)[V][kThreads];  // [kCheckpoint][V][thread]

  // A pack of what tells the membranes of a step: themselves, rounded ones, or bits. Membranes are as wide as elements.
  struct Row {
    uint32_t words[V * sizeof(S) <= 4 ? 1 : V * sizeof(S) / 4];

    template <typename E>
    static __device__ __forceinline__ Row of(const Raw<E, V>& raw) {
      Row row{};
      static_assert(sizeof raw <= sizeof row);
      memcpy(&row, &raw, sizeof raw);
      return row;
    }
    template <typename E>
    __device__ __forceinline__ Raw<E, V> as() const {
      Raw<E, V> raw;
      memcpy(&raw, this, sizeof raw);
      return raw;
    }
  };

  const LifBackward& p;
  int64_t first;
  Column column;
  Neurons<A, V> neurons;
  LifGradients<A> g[V];
  LifGradients<A> factor[V];  // on trial: of a carry of 1 and no other gradient; only its carry is of use
  A grad_x_sum[V];
  A v[V];              // recorded: the membrane that decided the spike of the next step to do
  A chunk_u[V];        // recomputed: the membrane before the chunk
  uint32_t resets[V];  // recomputed: bit k tells whether step k of the chunk began with a reset
  bool trial = false;  // nothing is written
  bool streaming;
  bool last = false;  // rows are read for the last time, and written, past the caches

  __device__ Backward(const LifBackward& problem, int64_t first_neuron, Column shared, bool stream)
      : p(problem), first(first_neuron), column(shared), neurons(problem, first_neuron), streaming(stream) {}

  // With the gradient of the membrane after the step from which run() is about to go back.
  __device__ __forceinline__ void start(const A (&carry)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      g[i] = {carry[i], A(0), A(0), A(0)};
      factor[i] = {A(1), A(0), A(0), A(0)};
    }
    fill(grad_x_sum, A(0));
  }

  __device__ __forceinline__ void start_at_end() {
    A carry[V];
    if (p.grad_mem_last == nullptr) {
      fill(carry, A(0));
    } else {
      load<V>(static_cast<const A*>(p.grad_mem_last) + first, carry);
    }
    start(carry);
  }

  // Steps end - 1 down to `begin`, which is the first of a chunk. On trial, only to learn how they pass a carry on.
  __device__ __forceinline__ void run(int64_t begin, int64_t end, bool on_trial = false) {
    if (begin == end) return;
    trial = on_trial;
    last = streaming && !trial;
    if constexpr (kRecorded) membranes(recorded(end - 1), end - 1, v);
    for (int64_t start = (end - 1) / kCheckpoint * kCheckpoint; start >= begin; start -= kCheckpoint) {
      const int count = static_cast<int>(end - start < kCheckpoint ? end - start : kCheckpoint);
      if constexpr (!kRecorded) recompute(start, count);
      for (int k = (count - 1) / kAhead<A> * kAhead<A>; k >= 0; k -= kAhead<A>) adjoint_steps(start, k, count);
    }
  }

  __device__ __forceinline__ void recompute(int64_t start, int count) {
    if (start == 0) {
      initial_membrane(p, first, chunk_u);
    } else {
      load<V>(static_cast<const A*>(p.kept) + (start / kCheckpoint - 1) * p.N + first, chunk_u, last);
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
    Raw<S, V> currents[Steps];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      currents[j] = get<S, V>(static_cast<const S*>(p.x) + (p.x_constant ? 0 : (start + k + j) * p.N) + first,
                              last && !p.x_constant);
    }
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      A x[V];
      unpack(currents[j], x);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const Neuron<A>& neuron = neurons.at[i];
        const A r = heaviside(u[i] - neuron.threshold);
        const A now = lif_integrate(p.reset, u[i], r, x[i], neuron);
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
    Raw<S, V> raw_gs[Steps], raw_gm[Steps];
    Row rows[Steps];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      const int64_t t = start + k + j;
      raw_gs[j] = gradient(p.grad_spk, p.spk_count, t);
      raw_gm[j] = gradient(p.grad_mem_rec, false, t);
      if constexpr (kRecorded) {
        if (t > 0) rows[j] = recorded(t - 1);
      }
    }
#pragma unroll
    for (int j = Steps - 1; j >= 0; --j) {
      if (k + j >= count) continue;
      const int64_t t = start + k + j;
      A gs[V], gm[V], u[V];
      unpack(raw_gs[j], gs);
      unpack(raw_gm[j], gm);
      if constexpr (!kRecorded) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          v[i] = column[k + j][i][threadIdx.x];
          u[i] = before(k + j, i);
        }
      } else if (t > 0) {
        membranes(rows[j], t - 1, u);
      } else {
        initial_membrane(p, first, u);
      }
      adjoint_step(t, u, gs, gm);
      if constexpr (kRecorded) {
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] = u[i];
      }
    }
  }

  // What was recorded or kept of step t, not yet converted.
  __device__ __forceinline__ Row recorded(int64_t t) const {
    Row row{};
    if (p.keep == Keep::kRounded) {
      row = Row::of(get<BFloat16, V>(static_cast<const BFloat16*>(p.kept) + t * p.N + first, last));
    } else if (p.keep == Keep::kBits) {
      // Not past the caches: the same for eight steps. Of the last step they are not kept.
      if (t + 1 < p.T) row = Row::of(get<uint8_t, V>(static_cast<const uint8_t*>(p.kept) + t / 8 * p.N + first, false));
    } else if constexpr (sizeof(S) == sizeof(A)) {
      row = Row::of(get<A, V>(static_cast<const A*>(p.mem_rec) + t * p.N + first, last));
    }
    return row;
  }

  // The membranes that decided the spikes of step t.
  __device__ __forceinline__ void membranes(const Row& row, int64_t t, A (&to)[V]) const {
    if (p.keep == Keep::kRounded) {
      unpack(row.template as<BFloat16>(), to);
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = membrane_at(to[i], neurons.at[i].threshold);
    } else if (p.keep == Keep::kBits) {
      const Pack<uint8_t, V> bits = pack_of(row.template as<uint8_t>());
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A threshold = neurons.at[i].threshold;
        to[i] = (bits.values[i] >> (t % 8) & 1) != 0 ? just_above(threshold) : threshold;
      }
    } else if constexpr (sizeof(S) == sizeof(A)) {
      unpack(row.template as<A>(), to);
    } else {
      fill(to, A(0));  // never: membranes recorded in 16 bits tell no spikes
    }
  }

  __device__ __forceinline__ Raw<S, V> gradient(const void* gradients, bool same, int64_t t) const {
    if (gradients == nullptr) return Raw<S, V>{};
    return get<S, V>(static_cast<const S*>(gradients) + (same ? 0 : t * p.N) + first, last && !same);
  }

  __device__ __forceinline__ void adjoint_step(int64_t t, const A (&u)[V], const A (&gs)[V], const A (&gm)[V]) {
    A sg[V], dx[V];
    const A a = static_cast<A>(p.coefficients.a), b = static_cast<A>(p.coefficients.b);
    // The same way for all threads, so these branches cost little; templating on them would multiply the kernels.
    if (p.derivative != nullptr) {
      load<V>(static_cast<const A*>(p.derivative) + t * p.N + first, sg, last);
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
    if (trial) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        lif_adjoint(p.reset, p.reset_delay, p.surrogate != SurrogateKind::kNone, u[i], v[i], sg[i], A(0), A(0),
                    neurons.at[i], factor[i]);
      }
      return;
    }
    if (p.grad_x != nullptr && !p.x_constant) store<V>(static_cast<S*>(p.grad_x) + t * p.N + first, dx, last);
  }

  __device__ __forceinline__ void finish() {
    A carry[V], beta[V], threshold[V], graded[V];
    fill(beta, A(0));
    if (p.grad_beta != nullptr) parameter(p.beta, first, beta);  // as it was given, for the clamp's own derivative
#pragma unroll
    for (int i = 0; i < V; ++i) {
      carry[i] = g[i].carry;
      beta[i] = clamp_unit_adjoint(beta[i], g[i].beta, p.clamp_closed);
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

// Whether the membranes are read back, and not recomputed.
inline bool is_recorded(const LifBackward& p) {
  return p.mem_rec != nullptr || p.keep == Keep::kRounded || p.keep == Keep::kBits;
}

// The kernel that splits time among the warps of a block, and whether a problem is one for it.
int lif_backward_chunked(const LifBackward& p, void* stream);
bool wants_chunked(const LifBackward& p);

}  // namespace snnfast::cuda
