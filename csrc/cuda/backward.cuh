// V adjacent neurons, taken back through time by one thread.
//
// Where forward recorded or saved the membrane it is read back; else kCheckpoint steps at a time, a chunk, are
// recomputed from the input into shared memory, each thread in a column of its own.
#pragma once

#include "sums.cuh"

namespace snnfast::cuda {

// As in the forward kernel; not in double, whose values take two registers each and whose division is a call.
template <typename A>
constexpr int kAhead = sizeof(A) == 8 ? 1 : 4;

// Shared memory for recomputed steps: what a block may have without asking for more is 48 KiB.
inline constexpr int kSharedBytes = 32 * 1024;

// What is kept there of each step and neuron: the states after the step, but of the membrane the one that decided its
// spike, from which the one after it follows; and the input, where an adjoint reads it.
template <typename Neuron>
constexpr int kKeptRows = Neuron::kStates + (Neuron::kAdjointReadsX ? 1 : 0);

// Whether the warps of a block can share out the time of a neuron (backward_chunked.cuh): the carry is one number, and
// so is the factor by which a stretch of time hands it on.
template <typename Neuron>
inline constexpr bool kSharesTime = Neuron::kStates == 1 && Neuron::kRecordedMembraneSuffices;

template <typename Neuron, typename S, int V, bool kRecorded, int kThreads>
struct BackwardPass {
  using A = Opmath<S>;
  using Column = A (*)[V][kThreads];  // [kCheckpoint * kKeptRows][V][thread]
  static constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters;
  static constexpr int kMem = Problem<Neuron>::kMem;
  static_assert(!kRecorded || (Neuron::kRecordedMembraneSuffices && kStates == 1));

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

  // The given gradients of a step, not yet converted.
  struct Gradients {
    Raw<S, V> spk, record[kStates];
  };

  // What the adjoint of a step reads, beside the gradients.
  struct Step {
    A x[V];  // 0 where no adjoint reads it
    A before[V][kStates];
    A v[V];
  };

  const Backward<Neuron>& p;
  int64_t first;
  Column column;
  A parameters[V][kParameters];
  A carry[V][kStates];     // gradients with respect to the states between two steps
  A sums[V][kParameters];  // gradients of the parameters, over the steps done
  A grad_x_sum[V];
  A factor[V][kStates];       // on trial: what the steps done make of a carry of 1 without any other gradient
  A recorded_v[V];            // recorded: the membrane that decided the spike of the next step to do
  A chunk_state[V][kStates];  // recomputed: the states before the chunk
  uint32_t resets[V];         // recomputed: bit k tells whether step k of the chunk began with a reset
  bool trial = false;         // nothing is written
  bool streaming;
  bool last = false;  // rows are read for the last time, and need not stay in the caches

  __device__ BackwardPass(const Backward<Neuron>& problem, int64_t first_neuron, Column shared, bool stream)
      : p(problem), first(first_neuron), column(shared), streaming(stream) {
    load_parameters(p, first, parameters);
  }

  __device__ __forceinline__ A threshold(int i) const { return parameters[i][Problem<Neuron>::kThreshold]; }

  // With no gradient of the states after the step from which run() is about to go back.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      fill(carry[i], A(0));
      fill(factor[i], A(1));
      fill(sums[i], A(0));
    }
    fill(grad_x_sum, A(0));
  }

  __device__ __forceinline__ void start_at_end() {
    start();
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_last[s] != nullptr) load_row(static_cast<const A*>(p.grad_last[s]) + first, s, carry);
    }
  }

  // From behind the `steps` that a sample has: what is recorded there is its last state, over and over.
  __device__ __forceinline__ void start_behind(int64_t steps) {
    A none[V];
    fill(none, A(0));
    for (int64_t t = steps; t < p.T; ++t) {
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        if (p.grad_record[s] == nullptr) continue;
        A row[V];
        load<V>(static_cast<const S*>(p.grad_record[s]) + t * p.grad_record_stride[s] + first, row, streaming);
#pragma unroll
        for (int i = 0; i < V; ++i) carry[i][s] += row[i];
      }
      if (p.grad_x != nullptr) store<V>(static_cast<S*>(p.grad_x) + t * p.N + first, none, streaming);
    }
  }

  // Steps end - 1 down to `begin`, which is the first of a chunk. On trial, only to learn how they pass a carry on.
  __device__ __forceinline__ void run(int64_t begin, int64_t end, bool on_trial = false) {
    if (begin == end) return;
    trial = on_trial;
    last = streaming && !trial;
    if constexpr (kRecorded) membranes(recorded(end - 1), end - 1, recorded_v);
    for (int64_t start = (end - 1) / kCheckpoint * kCheckpoint; start >= begin; start -= kCheckpoint) {
      const int count = static_cast<int>(end - start < kCheckpoint ? end - start : kCheckpoint);
      if constexpr (!kRecorded) recompute(start, count);
      for (int k = (count - 1) / kAhead<A> * kAhead<A>; k >= 0; k -= kAhead<A>) adjoint_steps(start, k, count);
    }
  }

  // ---- recomputed steps

  __device__ __forceinline__ A& kept(int k, int row, int i) const {
    return column[k * kKeptRows<Neuron> + row][i][threadIdx.x];
  }

  __device__ __forceinline__ void recompute(int64_t start, int count) {
    if (start == 0) {
      load_initial(p, first, chunk_state);
    } else {
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        const int64_t row = (start / kCheckpoint - 1) * kStates + s;
        load_row(static_cast<const A*>(p.rows) + row * p.N + first, s, chunk_state, last);
      }
    }
    A state[V][kStates];
#pragma unroll
    for (int i = 0; i < V; ++i) {
#pragma unroll
      for (int s = 0; s < kStates; ++s) state[i][s] = chunk_state[i][s];
      resets[i] = 0;
    }
    for (int k = 0; k < count; k += kAhead<A>) recompute_steps(start, k, count, state);
  }

  // Steps k to k + kAhead - 1 of the chunk, as far as it has them.
  __device__ __forceinline__ void recompute_steps(int64_t start, int k, int count, A (&state)[V][kStates]) {
    constexpr int Steps = kAhead<A>;
    Raw<S, V> currents[Steps];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      currents[j] = get<S, V>(static_cast<const S*>(p.x) + (p.x_repeats ? 0 : (start + k + j) * p.N) + first,
                              last && !p.x_repeats);
    }
    // One after the other in the same place, as in forward.
#pragma unroll 1
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      A x[V];
      unpack(currents[0], x);
#pragma unroll
      for (int next = 1; next < Steps; ++next) currents[next - 1] = currents[next];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        resets[i] |= static_cast<uint32_t>(state[i][kMem] > threshold(i)) << (k + j);
        kept(k + j, kMem, i) = Neuron::step(p.rule, x[i], state[i], parameters[i]).v;
#pragma unroll
        for (int s = 0; s < kMem; ++s) kept(k + j, s, i) = state[i][s];
        if constexpr (Neuron::kAdjointReadsX) kept(k + j, kStates, i) = x[i];
      }
    }
  }

  // Step k of the chunk, from what recompute() left.
  __device__ __forceinline__ void read_back(int k, Step& step) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      step.x[i] = A(0);
      if constexpr (Neuron::kAdjointReadsX) step.x[i] = kept(k, kStates, i);
      step.v[i] = kept(k, kMem, i);
#pragma unroll
      for (int s = 0; s < kStates; ++s) step.before[i][s] = k == 0 ? chunk_state[i][s] : after(k - 1, s, i);
    }
  }

  __device__ __forceinline__ A after(int k, int s, int i) const {
    const A state = kept(k, s, i);
    return s == kMem ? membrane_after<Neuron>(p.rule, state, (resets[i] >> k & 1u) != 0, parameters[i]) : state;
  }

  // ---- recorded steps

  // What was recorded or saved of step t, not yet converted.
  __device__ __forceinline__ Row recorded(int64_t t) const {
    Row row{};
    if (p.saved == Saved::kSpikes) {
      // Not evict-first: the row is the same for eight steps.
      row = Row::of(get<uint8_t, V>(static_cast<const uint8_t*>(p.rows) + t / 8 * p.N + first, false));
    } else if constexpr (sizeof(S) == sizeof(A)) {
      row = Row::of(get<A, V>(static_cast<const A*>(p.mem_rec) + t * p.N + first, last));
    }
    return row;
  }

  // The membranes that decided the spikes of step t.
  __device__ __forceinline__ void membranes(const Row& row, int64_t t, A (&to)[V]) const {
    if (p.saved == Saved::kSpikes) {
      const Pack<uint8_t, V> bits = pack_of(row.template as<uint8_t>());
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A at = threshold(i);
        to[i] = (bits.values[i] >> (t % 8) & 1) != 0 ? just_above(at) : at;
      }
    } else if constexpr (sizeof(S) == sizeof(A)) {
      unpack(row.template as<A>(), to);
    } else {
      fill(to, A(0));  // never: membranes recorded in 16 bits tell no spikes
    }
  }

  // With a delayed reset, the membrane before step t is the one that decided the spike of the step before.
  __device__ __forceinline__ void read_back(const Row& row, int64_t t, Step& step) {
    A mem[V];
    if (t > 0) {
      membranes(row, t - 1, mem);
    } else {
      load_initial(p, first, step.before);
#pragma unroll
      for (int i = 0; i < V; ++i) mem[i] = step.before[i][kMem];
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      step.x[i] = A(0);
      step.before[i][kMem] = mem[i];
      step.v[i] = recorded_v[i];
      recorded_v[i] = mem[i];
    }
  }

  // ---- the adjoint

  __device__ __forceinline__ Raw<S, V> gradient(const void* gradients, bool same, int64_t t) const {
    if (gradients == nullptr) return Raw<S, V>{};
    return get<S, V>(static_cast<const S*>(gradients) + (same ? 0 : t * p.N) + first, last && !same);
  }

  // Steps k + kAhead - 1 down to k of the chunk, as far as it has them.
  __device__ __forceinline__ void adjoint_steps(int64_t start, int k, int count) {
    constexpr int Steps = kAhead<A>;
    Gradients given[Steps];
    [[maybe_unused]] Row rows[Steps];
#pragma unroll
    for (int j = 0; j < Steps; ++j) {
      if (k + j >= count) break;
      const int64_t t = start + k + j;
      given[j].spk = gradient(p.grad_spk, p.grad_spk_stride == 0, t);
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        given[j].record[s] = gradient(p.grad_record[s], p.grad_record_stride[s] == 0, t);
      }
      if constexpr (kRecorded) {
        if (t > 0) rows[j] = recorded(t - 1);
      }
    }
    // Unrolled for the records of a training loop alone.
    [[maybe_unused]] constexpr int kCopies = kRecorded ? Steps : 1;
#pragma unroll kCopies
    for (int j = Steps - 1; j >= 0; --j) {
      if (k + j < count) {
        const int64_t t = start + k + j;
        Step step;
        if constexpr (kRecorded) {
          read_back(rows[Steps - 1], t, step);
        } else {
          read_back(k + j, step);
        }
        adjoint_step(t, step, given[Steps - 1]);
      }
#pragma unroll
      for (int next = Steps - 1; next > 0; --next) {
        given[next] = given[next - 1];
        if constexpr (kRecorded) rows[next] = rows[next - 1];
      }
    }
  }

  __device__ __forceinline__ void adjoint_step(int64_t t, const Step& step, const Gradients& given) {
    A spk[V], record[V][kStates], derivative[V], dx[V];
    unpack(given.spk, spk);
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      A row[V];
      unpack(given.record[s], row);
#pragma unroll
      for (int i = 0; i < V; ++i) record[i][s] = row[i];
    }
    // The same way for all threads, so these branches cost little; templating on them would multiply the kernels.
    if (p.derivative != nullptr) {
      load<V>(static_cast<const A*>(p.derivative) + t * p.N + first, derivative, last);
    } else {
      const A a = static_cast<A>(p.coefficients.a), b = static_cast<A>(p.coefficients.b);
      visit_surrogate(p.surrogate, [&](auto kind) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          derivative[i] = decltype(kind)::derivative(step.v[i] - threshold(i), a, b);
        }
      });
    }
    const bool through_spike = p.surrogate != SurrogateKind::kNone;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      dx[i] =
          Neuron::adjoint(p.rule, step.x[i], step.before[i], step.v[i], Given<A>{spk[i], derivative[i], through_spike},
                          record[i], parameters[i], carry[i], sums[i]);
      grad_x_sum[i] += dx[i];
    }
    if constexpr (kSharesTime<Neuron>) {
      if (trial) {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const A none[kStates] = {};
          A unused[kParameters] = {};
          Neuron::adjoint(p.rule, step.x[i], step.before[i], step.v[i], Given<A>{A(0), derivative[i], through_spike},
                          none, parameters[i], factor[i], unused);
        }
        return;
      }
    }
    if (p.grad_x != nullptr) store<V>(static_cast<S*>(p.grad_x) + t * p.N + first, dx, last);
  }

  __device__ __forceinline__ void finish() {
    const Sums<A, V, kThreads> of_all{column};
    if (p.grad_x_sum != nullptr) store<V>(static_cast<S*>(p.grad_x_sum) + first, grad_x_sum);
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_initial[s] != nullptr) store_row(static_cast<A*>(p.grad_initial[s]) + first, s, carry);
    }
#pragma unroll
    for (int k = 0; k < kParameters; ++k) {
      if (p.grad_parameters[k] == nullptr) continue;
      if (kClampedBits<Neuron> >> k & 1u) {
        A given[V];
        parameter(p.parameters[k], first, given);
#pragma unroll
        for (int i = 0; i < V; ++i) sums[i][k] = clamp_unit_adjoint(given[i], sums[i][k], p.clamp_closed);
      }
      if ((p.summed >> k & 1u) != 0) {
        double sum = 0;
#pragma unroll
        for (int i = 0; i < V; ++i) sum += sums[i][k];
        of_all.put(k, static_cast<int>(threadIdx.x), sum);
      } else {
        store_row(static_cast<A*>(p.grad_parameters[k]) + first, k, sums);
      }
    }
  }
};

}  // namespace snnfast::cuda
