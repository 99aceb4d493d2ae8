// V adjacent neurons of an ordinary call (plain.cuh), taken back through time by one thread, with gradients of the
// current and the initial states. While it computes a batch of steps, what it reads for the next batch is under way.
#pragma once

#include "fused.cuh"
#include "plain.cuh"

namespace snnfast::cuda::plain {

template <typename Neuron>
bool takes(const Backward<Neuron>& p) {
  if (!is_ordinary(p) || p.recorded() || p.grad_spk == nullptr || p.grad_x == nullptr || p.derivative != nullptr)
    return false;
  // With a negative slope the denominator may be 0, which the approximate quotient is not for.
  const bool fast_sigmoid = p.surrogate == SurrogateKind::kFastSigmoid && p.coefficients.a >= 0;
  return (p.surrogate == SurrogateKind::kATan || fast_sigmoid) && given(p.grad_record) == 0 && !p.sums_parameters();
}

// Calls f with the problem as a kernel takes it, an element, and the reset as a type, of a call for which
// takes() is true.
template <typename Neuron, typename F>
int visit(Backward<Neuron> p, F&& f) {
  p.rational = Rational::of(p.surrogate, p.coefficients);
  // The kernel computes an address from it before it knows that the first chunk has no checkpoint.
  if (p.rows == nullptr) p.rows = p.x;
  return visit_element<false>(p.dtype, [&](auto element) {
    return p.rule.reset == Reset::kZero ? f(p, element, std::integral_constant<Reset, Reset::kZero>{})
                                        : f(p, element, std::integral_constant<Reset, Reset::kSubtract>{});
  });
}

inline constexpr int kChunk = static_cast<int>(kCheckpoint);

// Steps of a batch, of which a chunk has several.
template <int V>
constexpr int kBatch = V == 1 ? 8 : 4;

// What is kept of each recomputed step and neuron: its states, and the current where an adjoint reads it.
template <typename Neuron>
constexpr int kRows = Neuron::kStates + (Neuron::kAdjointReadsX ? 1 : 0);

// The recomputed steps of one neuron are in registers; those of several are in shared memory, a column for each thread.
template <typename Neuron, typename S, int V>
constexpr int kBytes = V == 1 ? 0 : kChunk * kRows<Neuron> * V * static_cast<int>(sizeof(Opmath<S>));

template <typename Neuron, typename A, int V>
struct Kept {
  static constexpr int kStates = Neuron::kStates;

  A rows[kRows<Neuron>][V];  // the states after a step, and its current where an adjoint reads it

  Kept() = default;
  __device__ __forceinline__ Kept(const A (&states)[V][kStates], [[maybe_unused]] const A (&currents)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
#pragma unroll
      for (int s = 0; s < kStates; ++s) rows[s][i] = states[i][s];
      if constexpr (Neuron::kAdjointReadsX) rows[kStates][i] = currents[i];
    }
  }
  __device__ __forceinline__ A current([[maybe_unused]] int i) const {
    if constexpr (Neuron::kAdjointReadsX) return rows[kStates][i];
    return A(0);
  }
};

// The kept steps of a chunk.
template <typename Neuron, typename A, int V, int kOf>
struct Trajectory {
  Pack<A, V> (*column)[kOf];

  __device__ __forceinline__ explicit Trajectory(Pack<A, V> (*shared)[kOf]) : column(shared) {}
  __device__ __forceinline__ void put(int k, const Kept<Neuron, A, V>& step) {
#pragma unroll
    for (int row = 0; row < kRows<Neuron>; ++row) {
      Pack<A, V> pack;
#pragma unroll
      for (int i = 0; i < V; ++i) pack.values[i] = step.rows[row][i];
      column[k * kRows<Neuron> + row][threadIdx.x] = pack;
    }
  }
  __device__ __forceinline__ Kept<Neuron, A, V> get(int k) const {
    Kept<Neuron, A, V> step;
#pragma unroll
    for (int row = 0; row < kRows<Neuron>; ++row) {
      const Pack<A, V> pack = column[k * kRows<Neuron> + row][threadIdx.x];
#pragma unroll
      for (int i = 0; i < V; ++i) step.rows[row][i] = pack.values[i];
    }
    return step;
  }
};
template <typename Neuron, typename A, int kOf>
struct Trajectory<Neuron, A, 1, kOf> {
  Kept<Neuron, A, 1> steps[kChunk];

  __device__ __forceinline__ explicit Trajectory(Pack<A, 1> (*)[kOf]) {}
  __device__ __forceinline__ void put(int k, const Kept<Neuron, A, 1>& step) { steps[k] = step; }
  __device__ __forceinline__ Kept<Neuron, A, 1> get(int k) const { return steps[k]; }
};

template <typename Neuron, typename S, int V, Reset kReset, int kOf>
struct PlainBackward {
  using A = Opmath<S>;
  using Batch = Raw<S, V>[kBatch<V>];
  static constexpr int kStates = Neuron::kStates, kMem = kStates - 1, kParameters = Neuron::kParameters;
  static constexpr int kThreshold = Problem<Neuron>::kThreshold;
  static constexpr int kSteps = kBatch<V>, kBatches = kChunk / kSteps;

  const Backward<Neuron>& p;
  const int64_t first;
  bool streaming;               // rows are read for the last time, or written
  const S* x;                   // of the next step to request, as the one that follows
  const S* grad_spk;            // going back
  S* grad_x;                    // of the next step to write, going back
  Batch currents[kBatches];     // of the chunk to do next: the first batch, or all of one that time does not fill
  Batch gradients;              // the last ones of the latter
  States<Neuron, A, V> before;  // the states before it
  Trajectory<Neuron, A, V, kOf> trajectory;
  A parameters[kParameters];
  A carry[V][kStates];   // gradients with respect to the states between two steps
  A factor[V][kStates];  // on trial: what the steps done make of a carry of 1 without any other gradient

  __device__ __forceinline__ PlainBackward(const Backward<Neuron>& problem, int64_t first_neuron, bool stream,
                                           Pack<A, V> (*shared)[kOf])
      : p(problem), first(first_neuron), streaming(stream), trajectory(shared) {}

  // Requests what going back from `end` begins with.
  __device__ __forceinline__ void start(int end) {
    const int64_t last = end - 1;
    const int chunk = (end - 1) / kChunk, skip = missing(end);
    grad_spk = static_cast<const S*>(p.grad_spk) + last * p.grad_spk_stride + first;
    grad_x = static_cast<S*>(p.grad_x) + last * p.N + first;
    x = static_cast<const S*>(p.x) + static_cast<int64_t>(chunk) * kChunk * p.N + first;
#pragma unroll
    for (int b = 0; b < kBatches; ++b) request_currents<false>(currents[b], skip - b * kSteps);
    request_states(chunk);
    if constexpr (V > 1) request_gradients<false>(gradients, skip - (kBatches - 1) * kSteps);
    in_order();
  }

  // The states' gradients after the last step, and the parameters: loaded once the first currents are under way.
  __device__ __forceinline__ void load() {
    States<Neuron, A, V> given;
#pragma unroll
    for (int s = 0; s < kStates; ++s) given.request(s, offset<A>(p.grad_last[s], first), false);
    in_order();
    load_shared<S>(p, parameters);
    given.to(carry);
  }

  // Steps end - 1 down to `begin`, the first of a chunk, after start() with the same end. On trial nothing is written;
  // what is learnt is how the steps pass a carry on.
  template <bool kTrial>
  __device__ __forceinline__ void run(int begin, int end) {
    const int least = begin / kChunk;
    int chunk = (end - 1) / kChunk;
    run_chunk<false, kTrial>(chunk, missing(end), least);
#pragma unroll 1
    for (--chunk; chunk >= least; --chunk) run_chunk<true, kTrial>(chunk, 0, least);
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_initial[s] != nullptr) store_row(static_cast<A*>(p.grad_initial[s]) + first, s, carry);
    }
  }

 private:
  // Of the last chunk before `end`: it ends where its last step does, and if time does not fill it, begins with some
  // steps that are not there. `skip` is their number, below of a chunk or a batch that is not kWhole.
  static __device__ __forceinline__ int missing(int end) { return (kChunk - end % kChunk) % kChunk; }

  template <bool kWhole>
  __device__ __forceinline__ void request_currents(Batch& batch, int skip) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!kWhole && k < skip) continue;
      batch[k] = get<S, V>(x, streaming);
      advance(x, p.N);
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void request_gradients(Batch& batch, int skip) {
#pragma unroll
    for (int k = kSteps - 1; k >= 0; --k) {
      if (!kWhole && k < skip) continue;
      batch[k] = get<S, V>(grad_spk, streaming);
      advance(grad_spk, -p.grad_spk_stride);
    }
  }

  // The states before a chunk.
  __device__ __forceinline__ void request_states(int chunk) {
    const A* checkpoint = static_cast<const A*>(p.rows) + static_cast<int64_t>(chunk - 1) * kStates * p.N;
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      const A* from = chunk > 0 ? checkpoint + s * p.N : static_cast<const A*>(p.initial[s]);
      before.request(s, offset<A>(from, first), streaming && chunk > 0);
    }
  }

  template <bool kWhole, bool kTrial>
  __device__ __forceinline__ void run_chunk(int chunk, int skip, int least) {
    Batch given[kBatches];
    A state[V][kStates], start_state[V][kStates];
    before.to(start_state);
    before.to(state);
#pragma unroll
    for (int b = 0; b < kBatches; ++b) {
      if constexpr (kWhole) {
        if (b + 1 < kBatches) {
          request_currents<true>(currents[b + 1], 0);
        } else {
          request_gradients<true>(given[b], 0);
        }
        in_order();
      } else if (V == 1 && b + 1 == kBatches) {
        request_gradients<false>(gradients, skip - b * kSteps);
        in_order();
      }
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        A current[V] = {};
        if (kWhole || b * kSteps + k >= skip) {
          A unused[V];
          unpack(currents[b][k], current);
          step_all<Neuron, kReset>(current, parameters, state, unused);
        }
        trajectory.put(b * kSteps + k, Kept<Neuron, A, V>(state, current));
      }
    }
    Kept<Neuron, A, V> after = trajectory.get(kChunk - 1);
#pragma unroll
    for (int b = kBatches - 1; b >= 0; --b) {
      if (b > 0) {
        request_gradients<kWhole>(given[b - 1], skip - (b - 1) * kSteps);
      } else if (chunk > least) {
        x = static_cast<const S*>(p.x) + static_cast<int64_t>(chunk - 1) * kChunk * p.N + first;
        request_currents<true>(currents[0], 0);
        request_states(chunk - 1);
      }
      in_order();
#pragma unroll
      for (int k = kSteps - 1; k >= 0; --k) {
        const int step = b * kSteps + k;
        if (!kWhole && step < skip) continue;
        Kept<Neuron, A, V> earlier = after;
        if (step > 0) earlier = trajectory.get(step - 1);
        A states[V][kStates];
#pragma unroll
        for (int i = 0; i < V; ++i) {
#pragma unroll
          for (int s = 0; s < kStates; ++s) states[i][s] = step > 0 ? earlier.rows[s][i] : start_state[i][s];
        }
        adjoint<kTrial>(!kWhole && b == kBatches - 1 ? gradients[k] : given[b][k], states, after);
        after = earlier;
      }
    }
  }

  // With a delayed reset, the membrane after the step is the one that decided its spike.
  template <bool kTrial>
  __device__ __forceinline__ void adjoint(const Raw<S, V>& gradient, const A (&earlier)[V][kStates],
                                          const Kept<Neuron, A, V>& after) {
    constexpr ResetRule kRule{kReset, true};
    A spk[V], dx[V], none[kStates];
    fill(none, -A(0));  // the compiler may leave it out of a sum, which 0 would change
    unpack(gradient, spk);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const A v = after.rows[kMem][i], x_of_step = after.current(i);
      A unused[kParameters] = {};
      const A slope = derivative(p.rational, v - parameters[kThreshold]);
      dx[i] = Neuron::template adjoint<Fused>(kRule, x_of_step, earlier[i], v, Given<A>{spk[i], slope, true}, none,
                                              parameters, carry[i], unused);
      if constexpr (kTrial) {
        Neuron::template adjoint<Fused>(kRule, x_of_step, earlier[i], v, Given<A>{A(0), A(0), false}, none, parameters,
                                        factor[i], unused);
      }
    }
    if constexpr (!kTrial) {
      store<V>(grad_x, dx, streaming);
      advance(grad_x, -p.N);
    }
  }
};

}  // namespace snnfast::cuda::plain
