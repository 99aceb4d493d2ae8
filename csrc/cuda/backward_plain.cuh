// One thread takes V adjacent neurons of an ordinary call (plain.cuh) back through time. It requests the rows of the
// next batch of steps before it computes the present one.
#pragma once

#include "fused.cuh"
#include "plain.cuh"
#include "sums.cuh"

namespace snnfast::cuda::plain {

template <typename Neuron>
bool takes(const Backward<Neuron>& p) {
  if (!is_ordinary(p) || p.grad_spk == nullptr || p.derivative != nullptr || given(p.grad_record) != 0) return false;
  // A negative slope may make the denominator 0, where the approximate reciprocal is wrong.
  const bool fast_sigmoid = p.surrogate == SurrogateKind::kFastSigmoid && p.coefficients.a >= 0;
  if (p.surrogate != SurrogateKind::kATan && !fast_sigmoid) return false;
  if (p.dtype != DType::kFloat && p.mem_rec != nullptr) return false;
  if (p.rule.reset == Reset::kZero) return p.mem_rec == nullptr && !p.sums_parameters();
  return kHasSums<Neuron> || !p.sums_parameters();
}

// The parameters whose gradients a kernel sums over time. The first one is the decay, which is what most calls learn.
// Its sum takes one instruction in a step, and all sums take five.
enum class Sums { kNone, kFirst, kAll };

// The template arguments of a kernel that depend on the call.
template <Reset kReset_, bool kRecorded_, Sums kSums_>
struct Kind {
  static constexpr Reset kReset = kReset_;
  static constexpr bool kRecorded = kRecorded_;  // the membranes are read, not recomputed
  static constexpr Sums kSums = kSums_;
};

// Calls f with the problem as a kernel takes it, an element and a Kind. takes() must be true.
template <typename Neuron, typename F>
int visit(Backward<Neuron> p, F&& f) {
  p.rational = Rational::of(p.surrogate, p.coefficients);
  return visit_element<false>(p.dtype, [&](auto element) {
    if (p.rule.reset == Reset::kZero) return f(p, element, Kind<Reset::kZero, false, Sums::kNone>{});
    const auto with = [&]<bool kRecorded>(std::bool_constant<kRecorded>) {
      if constexpr (kHasSums<Neuron>) {
        // kFirst does not sum the gradient of a constant current.
        const bool first = p.grad_parameters[0] != nullptr && given(p.grad_parameters) == 1 && p.grad_x_sum == nullptr;
        if (first) return f(p, element, Kind<Reset::kSubtract, kRecorded, Sums::kFirst>{});
        if (p.sums_parameters()) return f(p, element, Kind<Reset::kSubtract, kRecorded, Sums::kAll>{});
      }
      return f(p, element, Kind<Reset::kSubtract, kRecorded, Sums::kNone>{});
    };
    if constexpr (Neuron::kRecordedMembraneSuffices && std::is_same_v<decltype(element), float>) {
      if (p.mem_rec != nullptr) return with(std::true_type{});
    }
    return with(std::false_type{});
  });
}

inline constexpr int kChunk = static_cast<int>(kCheckpoint);

// Steps of a batch. A chunk has several batches.
template <int V>
constexpr int kBatch = V == 1 ? 8 : 4;

// Shared memory of a thread. The recomputed steps of one neuron fit into registers.
template <typename Neuron, typename S, int V, typename Of>
constexpr int kBytes =
    V == 1 || Of::kRecorded ? 0 : kChunk * kKeptRows<Neuron> * V * static_cast<int>(sizeof(Opmath<S>));

template <typename Neuron, typename A, int V>
struct Kept {
  static constexpr int kStates = Neuron::kStates;

  A rows[kKeptRows<Neuron>][V];  // after a step

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

  __device__ __forceinline__ explicit Trajectory(void* shared) : column(static_cast<Pack<A, V> (*)[kOf]>(shared)) {}
  __device__ __forceinline__ void put(int k, const Kept<Neuron, A, V>& step) {
#pragma unroll
    for (int row = 0; row < kKeptRows<Neuron>; ++row) {
      Pack<A, V> pack;
#pragma unroll
      for (int i = 0; i < V; ++i) pack.values[i] = step.rows[row][i];
      column[k * kKeptRows<Neuron> + row][threadIdx.x] = pack;
    }
  }
  __device__ __forceinline__ Kept<Neuron, A, V> get(int k) const {
    Kept<Neuron, A, V> step;
#pragma unroll
    for (int row = 0; row < kKeptRows<Neuron>; ++row) {
      const Pack<A, V> pack = column[k * kKeptRows<Neuron> + row][threadIdx.x];
#pragma unroll
      for (int i = 0; i < V; ++i) step.rows[row][i] = pack.values[i];
    }
    return step;
  }
};
template <typename Neuron, typename A, int kOf>
struct Trajectory<Neuron, A, 1, kOf> {
  Kept<Neuron, A, 1> steps[kChunk];

  __device__ __forceinline__ explicit Trajectory(void*) {}
  __device__ __forceinline__ void put(int k, const Kept<Neuron, A, 1>& step) { steps[k] = step; }
  __device__ __forceinline__ Kept<Neuron, A, 1> get(int k) const { return steps[k]; }
};

// The number of steps that the last chunk before `end` lacks at its beginning, so that it ends with its last step.
// Below it is `skip`, of a chunk or a batch that is not kWhole.
__device__ __forceinline__ int missing(int end) { return (kChunk - end % kChunk) % kChunk; }

// Whether the batches of a chunk are a loop, which takes less code. Each batch is then copied to the registers of the
// one before. The chunk that lacks steps is done once in a call. The steps of one neuron are registers, so that they
// can't be in a loop.
template <int V, bool kWhole>
constexpr bool kRolled = V > 1 && !kWhole;

// The part that does not depend on where the membranes come from: the given gradients, the adjoint, and the results.
// kChunked: the pass goes through a segment of time, and its carry may not be known yet.
template <typename Neuron, typename S, int V, Reset kReset, Sums kSums, bool kChunked>
struct PlainAdjoint {
  using A = Opmath<S>;
  static constexpr int kStates = Neuron::kStates, kMem = kStates - 1, kParameters = Neuron::kParameters;
  static constexpr int kSteps = kBatch<V>, kBatches = kChunk / kSteps, kLastBatch = kChunk - kSteps;

  const Backward<Neuron>& p;
  const int64_t first;
  const S* grad_spk;  // of the next step to request, going back
  S* grad_x;          // of the next step to write, going back
  Raw<S, V> gradients[kBatches][kSteps];
  A parameters[kParameters];
  A carry[V][kStates];     // gradients with respect to the states between two steps
  A grad_x_sum[V];         // over the steps done, for a constant current
  A sums[V][kParameters];  // the same of the parameters' gradients; two neurons share one
  A factor[V][kStates];    // chunked: what the steps done make of a carry of 1 without any other gradient
  bool writes = true;      // chunked: whether the carry is known, and so the gradients of the current

  __device__ __forceinline__ PlainAdjoint(const Backward<Neuron>& problem, int64_t first_neuron)
      : p(problem), first(first_neuron) {
    forget_sums();
  }

  __device__ __forceinline__ void forget_sums() {
    fill(grad_x_sum, A(0));
#pragma unroll
    for (int i = 0; i < V; ++i) fill(sums[i], A(0));
  }

  // Loads the gradients of the last states, and the parameters. The first rows are under way already.
  __device__ __forceinline__ void load() {
    States<Neuron, A, V> given;
#pragma unroll
    for (int s = 0; s < kStates; ++s) given.request(s, offset<A>(p.grad_last[s], first));
    in_order();
    load_numbers<S, V>(p, first, parameters);
    parameters[kParameters - 1] *= p.rational.numerator;  // the height of a spike, which only gradients read here
    given.to(carry);
  }

  // `own` gets what the thread's neurons add to each gradient that is one number.
  template <int n>
  __device__ __forceinline__ void finish([[maybe_unused]] double (&own)[n]) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_initial[s] != nullptr) store_row(static_cast<A*>(p.grad_initial[s]) + first, s, carry);
    }
    if (kSums != Sums::kFirst && p.grad_x_sum != nullptr) store<V>(static_cast<S*>(p.grad_x_sum) + first, grad_x_sum);
    if constexpr (kSums != Sums::kNone) finish_parameters<(V > 1)>(p, first, sums, own);
  }

 protected:
  __device__ __forceinline__ void start_rows(int end) {
    grad_spk = static_cast<const S*>(p.grad_spk) + (end - 1) * p.grad_spk_stride + first;
    grad_x = further(static_cast<S*>(p.grad_x), (end - 1) * p.N + first);
  }

  template <bool kWhole>
  __device__ __forceinline__ void request_gradients(int b, int skip) {
#pragma unroll
    for (int k = kSteps - 1; k >= 0; --k) {
      if (!kWhole && k < skip) continue;
      gradients[b][k] = get<S, V>(grad_spk);
      advance(grad_spk, -p.grad_spk_stride);
    }
  }

  // `before`: the states before the step; v: the membrane after it, which with a delayed reset decided its spike.
  __device__ __forceinline__ void adjoint(const Raw<S, V>& gradient, const A (&x)[V], const A (&before)[V][kStates],
                                          const A (&v)[V]) {
    constexpr ResetRule kRule{kReset, true};
    A spk[V], dx[V], none[kStates];
    fill(none, -A(0));  // the compiler drops an addition of -0, but not of 0, which changes -0
    unpack(gradient, spk);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A unused[kParameters] = {};
      const A slope = derivative(p.rational, v[i] - parameters[Problem<Neuron>::kThreshold]);
      const auto step = [&](const Given<A>& given, A(&passed)[kStates], A(&summed)[kParameters]) {
        return Neuron::template adjoint<Fused>(kRule, x[i], before[i], v[i], given, none, parameters, passed, summed);
      };
      dx[i] = step({spk[i], slope, true}, carry[i], kSums == Sums::kNone ? unused : sums[i / 2]);
      if constexpr (kChunked) step({A(0), A(0), false}, factor[i], unused);
      if constexpr (kSums != Sums::kFirst) grad_x_sum[i] += dx[i];
    }
    if (p.grad_x != nullptr && (!kChunked || writes)) store<V>(grad_x, dx);
    advance(grad_x, -p.N);
  }
};

// Recomputes a chunk of steps from the states before it.
template <typename Neuron, typename S, int V, Reset kReset, Sums kSums, bool kChunked, int kOf>
struct PlainRecomputed : PlainAdjoint<Neuron, S, V, kReset, kSums, kChunked> {
  using Base = PlainAdjoint<Neuron, S, V, kReset, kSums, kChunked>;
  using Base::kBatches, Base::kMem, Base::kStates, Base::kSteps, Base::first, Base::gradients, Base::p;
  using A = Opmath<S>;

  const S* x;                            // of the next step to request
  const A* checkpoint;                   // of the chunk to request next
  Raw<S, V> currents[kBatches][kSteps];  // of the chunk to do next: the first batch
  States<Neuron, A, V> before;           // the states before it
  Trajectory<Neuron, A, V, kOf> trajectory;

  __device__ __forceinline__ PlainRecomputed(const Backward<Neuron>& problem, int64_t first_neuron, void* shared)
      : Base(problem, first_neuron), trajectory(shared) {}

  // Requests the first rows for going back from `end`.
  __device__ __forceinline__ void start(int end) {
    const int chunk = (end - 1) / kChunk, skip = missing(end);
    Base::start_rows(end);
    x = static_cast<const S*>(p.x) + static_cast<int64_t>(chunk) * kChunk * p.x_stride() + first;
    checkpoint = further(static_cast<const A*>(p.rows), static_cast<int64_t>(chunk - 1) * kStates * p.N + first);
    request_currents<false>(0, skip);
    request_states(chunk);
    in_order();
  }

  template <bool kWhole>
  __device__ __forceinline__ void run_chunk(int chunk, int skip, int least) {
    A state[V][kStates], start_state[V][kStates];
    before.to(start_state);
    before.to(state);
    constexpr bool kLoop = kRolled<V, kWhole>;
    [[maybe_unused]] constexpr int kCopies = kLoop ? 1 : kBatches;
#pragma unroll kCopies
    for (int b = 0; b < kBatches; ++b) {
      const int now = kLoop ? 0 : b, next = kLoop ? 1 : b + 1;
      if (b + 1 < kBatches) {
        request_currents<kWhole>(next, skip - (b + 1) * kSteps);
      } else {
        Base::template request_gradients<kWhole>(kBatches - 1, skip - b * kSteps);
      }
      in_order();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        A current[V] = {};
        if (kWhole || b * kSteps + k >= skip) {
          A unused[V];
          unpack(currents[now][k], current);
          step_all<Neuron, kReset>(current, this->parameters, state, unused);
        }
        trajectory.put(b * kSteps + k, Kept<Neuron, A, V>(state, current));
      }
      if constexpr (kLoop) copy(currents[0], currents[1]);
    }
    Kept<Neuron, A, V> after = trajectory.get(kChunk - 1);
#pragma unroll kCopies
    for (int b = kBatches - 1; b >= 0; --b) {
      const int now = kLoop ? kBatches - 1 : b, next = kLoop ? 0 : b - 1;
      if (b > 0) {
        Base::template request_gradients<kWhole>(next, skip - (b - 1) * kSteps);
      } else if (chunk > least) {
        advance(x, (skip - 2 * kChunk) * p.x_stride());  // from the end of a chunk to the beginning of the one before
        request_currents<true>(0, 0);
        request_states(chunk - 1);
      }
      in_order();
#pragma unroll
      for (int k = kSteps - 1; k >= 0; --k) {
        const int step = b * kSteps + k;
        if (!kWhole && step < skip) continue;
        Kept<Neuron, A, V> earlier = after;
        if (step > 0) earlier = trajectory.get(step - 1);
        A states[V][kStates], current[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          current[i] = after.current(i);
#pragma unroll
          for (int s = 0; s < kStates; ++s) states[i][s] = step > 0 ? earlier.rows[s][i] : start_state[i][s];
        }
        Base::adjoint(gradients[now][k], current, states, after.rows[kMem]);
        after = earlier;
      }
      if constexpr (kLoop) copy(gradients[kBatches - 1], gradients[0]);
    }
  }

 private:
  template <bool kWhole>
  __device__ __forceinline__ void request_currents(int b, int skip) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!kWhole && k < skip) continue;
      currents[b][k] = get<S, V>(x);
      advance(x, p.x_stride());
    }
  }

  // The states before a chunk.
  __device__ __forceinline__ void request_states(int chunk) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      before.request(s, chunk > 0 ? checkpoint + s * p.N : offset<A>(p.initial[s], first));
    }
    advance(checkpoint, -kStates * p.N);
  }
};

// Reads the membrane of every step. With a delayed reset it is the one before the next step.
template <typename Neuron, typename S, int V, Reset kReset, Sums kSums, bool kChunked>
struct PlainRecorded : PlainAdjoint<Neuron, S, V, kReset, kSums, kChunked> {
  using Base = PlainAdjoint<Neuron, S, V, kReset, kSums, kChunked>;
  using Base::kBatches, Base::kLastBatch, Base::kSteps, Base::first, Base::gradients, Base::p;
  using A = Opmath<S>;
  static_assert(Base::kStates == 1 && std::is_same_v<S, A>);

  const A* mem;                        // of the next step to request, going back
  Raw<A, V> before[kBatches][kSteps];  // the membranes before the steps
  Raw<A, V> after;                     // the one after the step to do next

  __device__ __forceinline__ PlainRecorded(const Backward<Neuron>& problem, int64_t first_neuron, void*)
      : Base(problem, first_neuron) {}

  __device__ __forceinline__ void start(int end) {
    Base::start_rows(end);
    mem = static_cast<const A*>(p.mem_rec) + static_cast<int64_t>(end - 1) * p.N + first;
    after = get<A, V>(mem);
    advance(mem, -p.N);
    request<false>(kBatches - 1, missing(end) - kLastBatch, (end - 1) / kChunk);
    in_order();
  }

  template <bool kWhole>
  __device__ __forceinline__ void run_chunk(int chunk, int skip, int least) {
    constexpr bool kLoop = kRolled<V, kWhole>;
    [[maybe_unused]] constexpr int kCopies = kLoop ? 1 : kBatches;
#pragma unroll kCopies
    for (int b = kBatches - 1; b >= 0; --b) {
      const int now = kLoop ? kBatches - 1 : b, next = kLoop ? 0 : (now + kBatches - 1) % kBatches;
      if (b > 0) {
        request<kWhole>(next, skip - (b - 1) * kSteps, chunk);
      } else if (chunk > least) {
        request<true>(next, -kLastBatch, chunk - 1);
      }
      in_order();
#pragma unroll
      for (int k = kSteps - 1; k >= 0; --k) {
        if (!kWhole && b * kSteps + k < skip) continue;
        A states[V][1], v[V], none[V] = {};
        unpack(after, v);
        after = before[now][k];
        A row[V];
        unpack(after, row);
#pragma unroll
        for (int i = 0; i < V; ++i) states[i][0] = row[i];
        Base::adjoint(gradients[now][k], none, states, v);
      }
      if constexpr (kLoop) {
        copy(gradients[kBatches - 1], gradients[0]);
        copy(before[kBatches - 1], before[0]);
      }
    }
  }

 private:
  // Requests a batch, in whose chunk `skip` is the first step, as counted from the batch.
  template <bool kWhole>
  __device__ __forceinline__ void request(int b, int skip, int chunk) {
    Base::template request_gradients<kWhole>(b, skip);
#pragma unroll
    for (int k = kSteps - 1; k >= 0; --k) {
      if (!kWhole && k < skip) continue;
      if (k == skip && chunk == 0) {
        before[b][k] = Raw<A, V>{};
        if (p.initial[0] != nullptr) before[b][k] = get<A, V>(static_cast<const A*>(p.initial[0]) + first);
      } else {
        before[b][k] = get<A, V>(mem);
        advance(mem, -p.N);
      }
    }
  }
};

template <typename Neuron, typename S, int V, typename Of, bool kChunked, int kOf>
using PlainBackward = std::conditional_t<Of::kRecorded, PlainRecorded<Neuron, S, V, Of::kReset, Of::kSums, kChunked>,
                                         PlainRecomputed<Neuron, S, V, Of::kReset, Of::kSums, kChunked, kOf>>;

// Takes steps end - 1 down to `begin`, the first of a chunk, after start() with the same end.
template <typename Pass>
__device__ __forceinline__ void run(Pass& pass, int begin, int end) {
  const int least = begin / kChunk;
  int chunk = (end - 1) / kChunk;
  pass.template run_chunk<false>(chunk, missing(end), least);
#pragma unroll 1
  for (--chunk; chunk >= least; --chunk) pass.template run_chunk<true>(chunk, 0, least);
}

}  // namespace snnfast::cuda::plain
