// One thread takes V adjacent neurons back through time.
//
// It recomputes a chunk of kCheckpoint steps from the current into shared memory, where each thread has a column of its
// own, so that no barrier is needed; or copies there the membranes that forward recorded.
#pragma once

#include "plain.cuh"
#include "sums.cuh"

namespace snnfast::cuda {

// Steps whose rows are requested before the first is used. Doubles take two registers each, and a call to divide.
template <typename A>
constexpr int kAhead = sizeof(A) == 8 ? 1 : 4;

template <typename Neuron, typename S, int V, int kThreads>
struct BackwardPass {
  using A = Opmath<S>;
  // A column has kKeptRows numbers of each step and neuron. Of the membrane it has the one that decided the spike,
  // because the one after the step follows from it.
  using Column = A (*)[V][kThreads];  // [kCheckpoint * kKeptRows][V][thread]
  static constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters;
  static constexpr int kMem = Problem<Neuron>::kMem;

  // The given gradients of a step, not yet converted.
  struct Gradients {
    Raw<S, V> spk, record[kStates];
  };

  const Backward<Neuron>& p;
  int64_t first;
  Column column;
  A parameters[kParameters];
  A carry[V][kStates];     // gradients with respect to the states between two steps
  A sums[V][kParameters];  // gradients of the parameters, over the steps done
  A grad_x_sum[V];
  A chunk_state[V][kStates];  // the states before the chunk
  uint32_t resets[V];         // bit k tells whether step k of the chunk began with a reset
  __device__ BackwardPass(const Backward<Neuron>& problem, int64_t first_neuron, Column shared)
      : p(problem), first(first_neuron), column(shared) {
    load_parameters<V>(p, first, parameters);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      fill(carry[i], A(0));
      fill(sums[i], A(0));
    }
    fill(grad_x_sum, A(0));
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_last[s] != nullptr) load_row(static_cast<const A*>(p.grad_last[s]) + first, s, carry);
    }
  }

  __device__ __forceinline__ A threshold() const { return parameters[Problem<Neuron>::kThreshold]; }

  // Begins behind the `steps` that a sample has. The records there repeat its last state, which gets their gradients.
  __device__ __forceinline__ void start_behind(int64_t steps) {
    for (int64_t t = steps; t < p.T; ++t) {
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        if (p.grad_record[s] == nullptr) continue;
        carry[0][s] += widen(static_cast<const S*>(p.grad_record[s])[t * p.grad_record_stride[s] + first]);
      }
      if (p.grad_x != nullptr) static_cast<S*>(p.grad_x)[t * p.N + first] = narrow<S>(A(0));
    }
  }

  // Steps end - 1 down to 0.
  __device__ __forceinline__ void run(int64_t end) {
    if (end == 0) return;
    for (int64_t start = (end - 1) / kCheckpoint * kCheckpoint; start >= 0; start -= kCheckpoint) {
      const int count = static_cast<int>(end - start < kCheckpoint ? end - start : kCheckpoint);
      recompute(start, count);
      for (int k = (count - 1) / kAhead<A> * kAhead<A>; k >= 0; k -= kAhead<A>) adjoint_steps(start, k, count);
    }
  }

  // ---- the membranes

  // Whether they are read. With a delayed reset, those after a step are the ones that decided its spikes.
  __device__ __forceinline__ bool reads() const {
    return Neuron::kRecordedMembraneSuffices && std::is_same_v<S, A> && p.mem_rec != nullptr;
  }

  __device__ __forceinline__ A& kept(int k, int row, int i) const {
    return column[k * kKeptRows<Neuron> + row][i][threadIdx.x];
  }

  __device__ __forceinline__ void recompute(int64_t start, int count) {
    if (start == 0) {
      initial_states<A, V>(p, first).to(chunk_state);
    } else if (reads()) {
      load_row(static_cast<const A*>(p.mem_rec) + (start - 1) * p.N + first, kMem, chunk_state);
    } else {
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        const int64_t row = (start / kCheckpoint - 1) * kStates + s;
        load_row(static_cast<const A*>(p.rows) + row * p.N + first, s, chunk_state);
      }
    }
    A state[V][kStates];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      plain::copy(state[i], chunk_state[i]);
      resets[i] = 0;
    }
    for (int k = 0; k < count; k += kAhead<A>) recompute_steps(start, k, count, state);
  }

  // Steps k to k + kAhead - 1 of the chunk, as far as it has them.
  __device__ __forceinline__ void recompute_steps(int64_t start, int k, int count, A (&state)[V][kStates]) {
    constexpr int Steps = kAhead<A>;
    const auto* const from = static_cast<const S*>(reads() ? p.mem_rec : p.x) + first;
    const int64_t stride = reads() ? p.N : p.x_stride();
    Raw<S, V> rows[Steps];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      rows[j] = get<S, V>(from + (start + k + j) * stride);
    }
    // A loop that moves each row up needs a fourth of the code of an unrolled one.
#pragma unroll 1
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      A x[V];
      unpack(rows[0], x);
#pragma unroll
      for (int next = 1; next < Steps; ++next) rows[next - 1] = rows[next];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        kept(k + j, kMem, i) = x[i];
        if (reads()) continue;
        resets[i] |= static_cast<uint32_t>(state[i][kMem] > threshold()) << (k + j);
        kept(k + j, kMem, i) = Neuron::step(p.rule, x[i], state[i], parameters).v;
#pragma unroll
        for (int s = 0; s < kMem; ++s) kept(k + j, s, i) = state[i][s];
        if constexpr (Neuron::kAdjointReadsX) kept(k + j, kStates, i) = x[i];
      }
    }
  }

  // State s after step k of the chunk, from what recompute() left.
  __device__ __forceinline__ A after(int k, int s, int i) const {
    const A state = kept(k, s, i);
    return s == kMem ? membrane_after<Neuron>(p.rule, state, (resets[i] >> k & 1u) != 0, parameters) : state;
  }

  // ---- the adjoint

  __device__ __forceinline__ Raw<S, V> gradient(const void* gradients, int64_t stride, int64_t t) const {
    if (gradients == nullptr) return Raw<S, V>{};
    return get<S, V>(static_cast<const S*>(gradients) + t * stride + first);
  }

  // Steps k + kAhead - 1 down to k of the chunk, as far as it has them.
  __device__ __forceinline__ void adjoint_steps(int64_t start, int k, int count) {
    constexpr int Steps = kAhead<A>;
    Gradients given[Steps];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      const int64_t t = start + k + j;
      given[j].spk = gradient(p.grad_spk, p.grad_spk_stride, t);
#pragma unroll
      for (int s = 0; s < kStates; ++s) given[j].record[s] = gradient(p.grad_record[s], p.grad_record_stride[s], t);
    }
#pragma unroll 1
    for (int j = Steps - 1; j >= 0; --j) {
      if (k + j < count) adjoint_step(start, k + j, given[Steps - 1]);
#pragma unroll
      for (int next = Steps - 1; next > 0; --next) given[next] = given[next - 1];
    }
  }

  // Step k of the chunk that begins at `start`.
  __device__ __forceinline__ void adjoint_step(int64_t start, int k, const Gradients& given) {
    const int64_t t = start + k;
    A spk[V], record[V][kStates], derivative[V], dx[V];
    A x[V] = {}, before[V][kStates], v[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if constexpr (Neuron::kAdjointReadsX) x[i] = kept(k, kStates, i);
      v[i] = kept(k, kMem, i);
#pragma unroll
      for (int s = 0; s < kStates; ++s) before[i][s] = k == 0 ? chunk_state[i][s] : after(k - 1, s, i);
    }
    unpack(given.spk, spk);
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      A row[V];
      unpack(given.record[s], row);
#pragma unroll
      for (int i = 0; i < V; ++i) record[i][s] = row[i];
    }
    // All threads branch the same way, which costs little. Templates for it would multiply the kernels.
    if (p.derivative != nullptr) {
      load<V>(static_cast<const A*>(p.derivative) + t * p.N + first, derivative);
    } else {
      const A a = static_cast<A>(p.coefficients.a), b = static_cast<A>(p.coefficients.b);
      visit_surrogate(p.surrogate, [&](auto kind) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          derivative[i] = decltype(kind)::derivative(v[i] - threshold(), a, b);
        }
      });
    }
    const bool through_spike = p.surrogate != SurrogateKind::kNone;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      dx[i] = Neuron::adjoint(p.rule, x[i], before[i], v[i], Given<A>{spk[i], derivative[i], through_spike}, record[i],
                              parameters, carry[i], sums[i]);
      grad_x_sum[i] += dx[i];
    }
    if (p.grad_x != nullptr) store<V>(static_cast<S*>(p.grad_x) + t * p.N + first, dx);
  }

  // `own` gets what the thread's neurons add to each gradient that is one number.
  __device__ __forceinline__ void finish(double (&own)[kParameters]) {
    if (p.grad_x_sum != nullptr) store<V>(static_cast<S*>(p.grad_x_sum) + first, grad_x_sum);
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_initial[s] != nullptr) store_row(static_cast<A*>(p.grad_initial[s]) + first, s, carry);
    }
    finish_parameters(p, first, sums, own);
  }
};

}  // namespace snnfast::cuda
