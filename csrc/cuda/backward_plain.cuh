// One thread takes V adjacent neurons of an ordinary call (plain.cuh) back through time. It requests the rows of the
// next batch of steps before it computes the present one.
#pragma once

#include <optional>

#include "fused.cuh"
#include "plain.cuh"
#include "sums.cuh"

namespace snnfast::cuda::plain {

// The parameters whose gradients a kernel sums over time. The first one is the decay, which is what most calls learn.
// Its sum takes one instruction in a step, and all sums take five.
enum class Sums { kNone, kFirst, kAll };

// Calls of so few steps have kernels that keep all of them in registers, and need a third of the registers.
inline constexpr int kFewSteps = 4;

// What a kernel knows of its calls. kChunk: the steps that are recomputed, or read, at once.
template <Reset kReset_, bool kRecorded_, Sums kSums_, bool kOpen_ = false, int kChunk_ = static_cast<int>(kCheckpoint)>
struct Kind {
  static constexpr Reset kReset = kReset_;
  static constexpr bool kRecorded = kRecorded_;  // the membranes are read, not recomputed
  static constexpr Sums kSums = kSums_;
  // Whether the surrogate may also be the sigmoid. Of recorded membranes, whether the kernel also asks for the reset,
  // and for gradients of the membranes.
  static constexpr bool kOpen = kOpen_, kAsks = kOpen && kRecorded;
  static constexpr int kChunk = kChunk_;
  using OfFew = Kind<kReset, kRecorded, kSums, kOpen, kFewSteps>;
};

// Calls f with the problem as a kernel takes it, an element and a Kind, if there is a kernel for the call.
template <typename Neuron, typename F>
std::optional<int> visit(Backward<Neuron> p, F&& f) {
  const bool recorded = p.mem_rec != nullptr, subtracts = p.rule.reset == Reset::kSubtract;
  const bool sums = p.sums_parameters(), fits = Slope::fits(p.surrogate, p.coefficients);
  const bool sigmoid = fits && p.surrogate == SurrogateKind::kSigmoid;
  const bool of_spikes = given(p.grad_record) == 0 && p.grad_spk != nullptr;
  // kFirst does not sum the gradient of a constant current.
  const bool first = p.grad_parameters[0] != nullptr && given(p.grad_parameters) == 1 && p.grad_x_sum == nullptr;
  if (!is_ordinary(p) || p.derivative != nullptr) return {};
  set_numbers(p);
  p.slope = Slope::of(p.surrogate, p.coefficients);
  const auto with = [&](auto kind) {
    return visit_element<false>(p.dtype, [&](auto element) { return f(p, element, kind); });
  };
  constexpr Reset kSubtract = Reset::kSubtract, kZero = Reset::kZero;
  if constexpr (ResetsAtOnce<Neuron>) {
    const bool leaks = p.parameters[2].value > 0;
    if (!of_spikes || !fits || (sums && !(first && leaks)) || p.grad_x_sum != nullptr) return {};
    if (subtracts && first) return with(Kind<kSubtract, false, Sums::kFirst, true>{});
    if (subtracts) return with(Kind<kSubtract, false, Sums::kNone, true>{});
    if (first) return with(Kind<kZero, false, Sums::kFirst, true>{});
    return with(Kind<kZero, false, Sums::kNone, true>{});
  } else {
    const bool lean = of_spikes && fits && !sigmoid;
    if constexpr (kHasSums<Neuron>) {  // a record is in float32 alone
      const auto in_float = [&](auto kind) { return f(p, float{}, kind); };
      if (recorded && lean && subtracts) {
        if (first) return in_float(Kind<kSubtract, true, Sums::kFirst>{});
        if (sums) return in_float(Kind<kSubtract, true, Sums::kAll>{});
        return in_float(Kind<kSubtract, true, Sums::kNone>{});
      }
      const bool open = fits || (p.surrogate == SurrogateKind::kNone && given(p.grad_record) != 0);
      if (recorded) return open ? std::optional(in_float(Kind<kSubtract, true, Sums::kAll, true>{})) : std::nullopt;
      if (of_spikes && sigmoid && subtracts && p.dtype == DType::kFloat) {
        return in_float(Kind<kSubtract, false, Sums::kAll, true>{});
      }
      if (lean && subtracts && first) return with(Kind<kSubtract, false, Sums::kFirst>{});
      if (lean && subtracts && sums) return with(Kind<kSubtract, false, Sums::kAll>{});
    }
    if (!lean || sums || recorded) return {};
    return subtracts ? with(Kind<kSubtract, false, Sums::kNone>{}) : with(Kind<kZero, false, Sums::kNone>{});
  }
}

// Steps of a batch. A chunk has several batches, or is one.
template <int V>
constexpr int kBatch = V == 1 ? 8 : 4;

// Numbers that are kept of each neuron and step that is recomputed: the states after the step, but the membrane that
// decided its spike; and what the sum of the first parameter reads.
template <typename Neuron, typename Of>
constexpr int kRows = Neuron::kStates + (Neuron::kAdjointReadsX && Of::kSums != Sums::kNone ? 1 : 0);

// Shared memory of a thread. The recomputed steps of one neuron fit into registers, and so do few steps.
template <typename Neuron, typename S, int V, typename Of>
constexpr int kBytes = V == 1 || Of::kRecorded || Of::kChunk <= kFewSteps
                           ? 0
                           : Of::kChunk * kRows<Neuron, Of> * V * static_cast<int>(sizeof(Opmath<S>));

// The number of steps that the last chunk before `end` lacks at its beginning, so that it ends with its last step.
// Below it is `skip`, of a chunk or a batch that is not kWhole.
template <int kChunk>
__device__ __forceinline__ int missing(int end) {
  return kChunk <= kFewSteps ? kChunk - end : (kChunk - end % kChunk) % kChunk;
}

// Whether the batches of a chunk are a loop, which takes less code. Each batch is then copied to the registers of the
// one before, and batches of steps that lack are left out. The chunk that lacks steps is done once in a call. The steps
// of one neuron are registers, so that they can't be in a loop.
template <int V, bool kWhole, int kBatches>
constexpr bool kRolled = V > 1 && !kWhole && kBatches > 1;

// Calls f with whether all steps of a batch are there, as a constant where it is known.
template <bool kWhole, typename F>
__device__ __forceinline__ void visit_batch(bool all, F&& f) {
  if (kWhole || all) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// The part that does not depend on where the membranes come from: the given gradients, the adjoint, and the results.
// kChunked: the pass goes through a segment of time, and its carry may not be known yet.
template <typename Neuron, typename S, int V, typename Of, bool kChunked>
struct PlainAdjoint {
  using A = Opmath<S>;
  static constexpr int kStates = Neuron::kStates, kMem = kStates - 1, kParameters = Neuron::kParameters;
  static constexpr int kChunk = Of::kChunk, kSteps = kBatch<V>, kBatches = kChunk / kSteps;
  static constexpr int kLastBatch = kChunk - kSteps;
  static constexpr Sums kSums = Of::kSums;
  static constexpr bool kSumsX = kSums != Sums::kFirst && !ResetsAtOnce<Neuron>;  // the gradient of a constant current
  static constexpr bool kFew = kChunk <= kFewSteps;                               // the chunk is the only one
  // Whether a chunk has its steps from its beginning on, so that what it lacks is at its end.
  static constexpr bool kFromStart = kFew && !Of::kRecorded;

  const Backward<Neuron>& p;
  const int64_t first;
  const S* grad_spk;  // of the next step to request, going back
  S* grad_x;          // of the next step to write, going back
  const S* grad_mem;  // the same of the recorded membranes, where Of::kAsks
  Raw<S, V> gradients[kBatches][kSteps];
  Raw<S, V> of_mem[kBatches][kSteps];
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
    for (int s = 0; s < kStates; ++s) {
      given.rows[s] = get_if<V>(p.grad_last[s] != nullptr, static_cast<const A*>(p.grad_last[s]) + first);
    }
    in_order();
    load_numbers<S, V>(p, first, parameters);
    given.to(carry);
  }

  // `own` gets what the thread's neurons add to each gradient that is one number.
  template <int n>
  __device__ __forceinline__ void finish([[maybe_unused]] double (&own)[n]) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (p.grad_initial[s] != nullptr) store_row(static_cast<A*>(p.grad_initial[s]) + first, s, carry);
    }
    if (kSumsX && p.grad_x_sum != nullptr) store<V>(static_cast<S*>(p.grad_x_sum) + first, grad_x_sum);
    if constexpr (kSums != Sums::kNone) finish_parameters(p, first, sums, own);
  }

 protected:
  static __device__ __forceinline__ bool lacks(int k, int skip) { return kFromStart ? k >= kSteps - skip : k < skip; }

  __device__ __forceinline__ void start_rows(int end) {
    const int last = kFromStart ? kChunk - 1 : end - 1;
    grad_spk = further(static_cast<const S*>(p.grad_spk), (kFromStart ? 0 : last * p.grad_spk_stride) + first);
    grad_x = further(static_cast<S*>(p.grad_x), last * p.N + first);
    if constexpr (Of::kAsks) {
      grad_mem = further(static_cast<const S*>(p.grad_record[kMem]), (end - 1) * p.grad_record_stride[kMem] + first);
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void request_gradients(int b, int skip) {
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int k = kFromStart ? j : kSteps - 1 - j;
      const bool there = kWhole || !lacks(k, skip);
      if (!kFew && !there) continue;
      if (there) gradients[b][k] = get_if<V>(!Of::kAsks || p.grad_spk != nullptr, grad_spk);
      advance(grad_spk, kFromStart ? p.grad_spk_stride : -p.grad_spk_stride);
      if constexpr (Of::kAsks) {
        if (there) of_mem[b][k] = get_if<V>(p.grad_record[kMem] != nullptr, grad_mem);
        advance(grad_mem, -p.grad_record_stride[kMem]);
      }
    }
  }

  // `before`: the states before the step; v: the membrane that decided its spike. The step is k of batch b.
  __device__ __forceinline__ void adjoint(int b, int k, const A (&x)[V], const A (&before)[V][kStates],
                                          const A (&v)[V]) {
    const ResetRule rule{Of::kAsks ? p.rule.reset : Of::kReset, true};
    const bool through_spike = !Of::kAsks || p.surrogate != SurrogateKind::kNone;
    A spk[V], mem[V], dx[V], slope[V];
    unpack(gradients[b][k], spk);
    fill(mem, -A(0));  // the compiler drops an addition of -0, but not of 0, which changes -0
    if constexpr (Of::kAsks) unpack(of_mem[b][k], mem);
    slopes<Of::kOpen>(p.slope, v, parameters[Problem<Neuron>::kThreshold], slope);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      A unused[kParameters] = {}, none[kStates];
      fill(none, -A(0));
      none[kMem] = mem[i];
      const auto step = [&](const Given<A>& given, A(&passed)[kStates], A(&summed)[kParameters]) {
        return Neuron::template adjoint<Fused>(rule, x[i], before[i], v[i], given, none, parameters, passed, summed);
      };
      dx[i] = step({spk[i], slope[i], through_spike}, carry[i], kSums == Sums::kNone ? unused : sums[i / 2]);
      if constexpr (kChunked) step({A(0), A(0), false}, factor[i], unused);
      if constexpr (kSumsX) grad_x_sum[i] += dx[i];
    }
    if (p.grad_x != nullptr && (!kChunked || writes)) store<V>(grad_x, dx);
    advance(grad_x, -p.N);
  }
};

// Recomputes a chunk of steps from the states before it.
template <typename Neuron, typename S, int V, typename Of, bool kChunked, int kOf>
struct PlainRecomputed : PlainAdjoint<Neuron, S, V, Of, kChunked> {
  using Base = PlainAdjoint<Neuron, S, V, Of, kChunked>;
  using Base::kBatches, Base::kChunk, Base::kFew, Base::kMem, Base::kStates, Base::kSteps, Base::first;
  using Base::parameters, Base::p;
  using A = Opmath<S>;
  static constexpr int kKept = kRows<Neuron, Of>;
  static constexpr bool kShared = kBytes<Neuron, S, V, Of> > 0;
  struct alignas(sizeof(A) * V) Row {
    A of[V];
  };
  struct Kept {
    Row rows[kKept];
  };
  // Whether steps that a chunk lacks hold the states before it, so that no step has to be told from the first.
  static constexpr bool kPadded = V == 1 && !ResetsAtOnce<Neuron>;

  const S* x;                            // of the next step to request
  const A* checkpoint;                   // of the chunk to request next
  Raw<S, V> currents[kBatches][kSteps];  // of the chunk to do next: the first batch
  States<Neuron, A, V> before;           // the states before it
  // The kept steps of a chunk: in shared memory, where each thread has a column, or without any in registers.
  std::conditional_t<kShared, Row (*)[kOf], Kept[kChunk]> kept;

  __device__ __forceinline__ PlainRecomputed(const Backward<Neuron>& problem, int64_t first_neuron, void* shared)
      : Base(problem, first_neuron) {
    if constexpr (kShared) kept = static_cast<Row(*)[kOf]>(shared);
  }

  // Requests the first rows for going back from `end`.
  __device__ __forceinline__ void start(int end) {
    const int chunk = kFew ? 0 : (end - 1) / kChunk, skip = missing<kChunk>(end);
    Base::start_rows(end);
    x = static_cast<const S*>(p.x) + static_cast<int64_t>(chunk) * kChunk * p.x_stride() + first;
    checkpoint = further(static_cast<const A*>(p.rows), static_cast<int64_t>(chunk - 1) * kStates * p.N + first);
    request_currents<false>(0, V > 1 && !kFew ? skip % kSteps : skip);
    request_states(chunk);
    in_order();
  }

  template <bool kWhole>
  __device__ __forceinline__ void run_chunk(int chunk, int skip, int least) {
    A state[V][kStates], start_state[V][kStates];
    before.to(start_state);
    before.to(state);
    constexpr bool kLoop = kRolled<V, kWhole, kBatches>;
    [[maybe_unused]] constexpr int kCopies = kLoop ? 1 : kBatches;
    const int first_batch = kLoop ? skip / kSteps : 0;
#pragma unroll kCopies
    for (int b = first_batch; b < kBatches; ++b) {
      const int now = kLoop ? 0 : b, next = kLoop ? 1 : b + 1;
      if (b + 1 < kBatches) {
        request_currents<kWhole || kLoop>(next, skip - (b + 1) * kSteps);
      } else {
        Base::template request_gradients<kWhole>(kBatches - 1, skip - b * kSteps);
      }
      in_order();
      const auto steps = [&]<bool kAll>(std::bool_constant<kAll>) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          const bool lacks = !kAll && Base::lacks(b * kSteps + k, skip);
          if (!kPadded && lacks) continue;
          A read[V] = {};
          Fired<A> fired[V];
#pragma unroll
          for (int i = 0; i < V; ++i) fired[i].v = state[i][kMem];
          if (!lacks) {
            A current[V];
            unpack(currents[now][k], current);
            if constexpr (kKept > kStates) {
#pragma unroll
              for (int i = 0; i < V; ++i) read[i] = Neuron::driven(current[i], state[i][kMem], parameters);
            }
            step_all<Neuron>(ResetRule{Of::kReset, true}, current, parameters, state, fired);
          }
          keep(b * kSteps + k, state, fired, read);
        }
      };
      visit_batch<kWhole>(kLoop && b * kSteps >= skip, steps);
      if constexpr (kLoop) copy(currents[0], currents[1]);
    }
    Kept after = kept_of(kChunk - 1);
#pragma unroll kCopies
    for (int b = kBatches - 1; b >= first_batch; --b) {
      const int now = kLoop ? kBatches - 1 : b, next = kLoop ? 0 : b - 1;
      if (b > first_batch) {
        Base::template request_gradients<kWhole>(next, skip - (b - 1) * kSteps);
      } else if (chunk > least) {
        advance(x, (skip - 2 * kChunk) * p.x_stride());  // from the end of a chunk to the beginning of the one before
        request_currents<true>(0, 0);
        request_states(chunk - 1);
      }
      in_order();
      const auto steps = [&]<bool kAll>(std::bool_constant<kAll>) {
#pragma unroll
        for (int k = kSteps - 1; k >= 0; --k) {
          const int step = b * kSteps + k;
          if (!kAll && Base::lacks(step, skip)) {
            if constexpr (kFew) advance(Base::grad_x, -p.N);
            continue;
          }
          if constexpr (kFew) after = kept_of(step);
          // The states before it are not read where the membrane that decided the spike is another one.
          const bool begins = !ResetsAtOnce<Neuron> && step == (kWhole || kPadded || kFew ? 0 : skip);
          Kept earlier = after;
          if (!begins) earlier = kept_of(step > 0 ? step - 1 : 0);
          A states[V][kStates], read[V] = {};
          if constexpr (kKept > kStates) copy(read, after.rows[kStates].of);
#pragma unroll
          for (int i = 0; i < V; ++i) {
#pragma unroll
            for (int s = 0; s < kStates; ++s) states[i][s] = begins ? start_state[i][s] : earlier.rows[s].of[i];
          }
          Base::adjoint(now, k, read, states, after.rows[kMem].of);
          after = earlier;
        }
      };
      visit_batch<kWhole>(kLoop && b * kSteps >= skip, steps);
      if constexpr (kLoop) copy(Base::gradients[kBatches - 1], Base::gradients[0]);
    }
  }

 private:
  __device__ __forceinline__ Row& row(int k, int r) {
    if constexpr (kShared) {
      return kept[k * kKept + r][threadIdx.x];
    } else {
      return kept[k].rows[r];
    }
  }
  __device__ __forceinline__ void keep(int k, const A (&states)[V][kStates], const Fired<A> (&fired)[V],
                                       const A (&read)[V]) {
#pragma unroll
    for (int r = 0; r < kKept; ++r) {
      Row made;
#pragma unroll
      for (int i = 0; i < V; ++i) made.of[i] = r < kMem ? states[i][r] : r == kMem ? fired[i].v : read[i];
      row(k, r) = made;
    }
  }
  __device__ __forceinline__ Kept kept_of(int k) {
    Kept step;
#pragma unroll
    for (int r = 0; r < kKept; ++r) step.rows[r] = row(k, r);
    return step;
  }

  template <bool kWhole>
  __device__ __forceinline__ void request_currents(int b, int skip) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const bool there = kWhole || !Base::lacks(k, skip);
      if (!kFew && !there) continue;
      if (there) currents[b][k] = get<S, V>(x);
      advance(x, p.x_stride());
    }
  }

  // The states before a chunk.
  __device__ __forceinline__ void request_states(int chunk) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      before.rows[s] = !kFew && chunk > 0 ? get<A, V>(checkpoint + s * p.N) : initial<A, V>(p, s, first);
    }
    advance(checkpoint, -kStates * p.N);
  }
};

// Reads the membrane of every step. With a delayed reset it is the one before the next step.
template <typename Neuron, typename S, int V, typename Of, bool kChunked>
struct PlainRecorded : PlainAdjoint<Neuron, S, V, Of, kChunked> {
  using Base = PlainAdjoint<Neuron, S, V, Of, kChunked>;
  using Base::kBatches, Base::kChunk, Base::kFew, Base::kLastBatch, Base::kSteps, Base::first, Base::p;
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
    request<false>(kBatches - 1, missing<kChunk>(end) - kLastBatch, kFew ? 0 : (end - 1) / kChunk);
    in_order();
  }

  template <bool kWhole>
  __device__ __forceinline__ void run_chunk(int chunk, int skip, int least) {
    constexpr bool kLoop = kRolled<V, kWhole, kBatches>;
    [[maybe_unused]] constexpr int kCopies = kLoop ? 1 : kBatches;
    const int first_batch = kLoop ? skip / kSteps : 0;
#pragma unroll kCopies
    for (int b = kBatches - 1; b >= first_batch; --b) {
      const int now = kLoop ? kBatches - 1 : b, next = kLoop ? 0 : (now + kBatches - 1) % kBatches;
      if (b > first_batch) {
        request<kWhole>(next, skip - (b - 1) * kSteps, chunk);
      } else if (chunk > least) {
        request<true>(next, -kLastBatch, chunk - 1);
      }
      in_order();
      const auto steps = [&]<bool kAll>(std::bool_constant<kAll>) {
#pragma unroll
        for (int k = kSteps - 1; k >= 0; --k) {
          if (!kAll && b * kSteps + k < skip) continue;
          A states[V][1], v[V], none[V] = {};
          unpack(after, v);
          after = before[now][k];
          A row[V];
          unpack(after, row);
#pragma unroll
          for (int i = 0; i < V; ++i) states[i][0] = row[i];
          Base::adjoint(now, k, none, states, v);
        }
      };
      visit_batch<kWhole>(kLoop && b * kSteps >= skip, steps);
      if constexpr (kLoop) {
        copy(Base::gradients[kBatches - 1], Base::gradients[0]);
        if constexpr (Of::kAsks) copy(Base::of_mem[kBatches - 1], Base::of_mem[0]);
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
      const bool there = kWhole || k >= skip;
      if (!kFew && !there) continue;
      if (there) before[b][k] = k == skip && (kFew || chunk == 0) ? initial<A, V>(p, 0, first) : get<A, V>(mem);
      advance(mem, -p.N);
    }
  }
};

template <typename Neuron, typename S, int V, typename Of, bool kChunked, int kOf>
using PlainBackward = std::conditional_t<Of::kRecorded, PlainRecorded<Neuron, S, V, Of, kChunked>,
                                         PlainRecomputed<Neuron, S, V, Of, kChunked, kOf>>;

// Takes steps end - 1 down to `begin`, the first of a chunk, after start() with the same end.
template <typename Pass>
__device__ __forceinline__ void run(Pass& pass, int begin, int end) {
  constexpr int kChunk = Pass::kChunk;
  const int least = begin / kChunk, skip = missing<kChunk>(end);
  int chunk = (end - 1) / kChunk;
  if constexpr (Pass::kFew)
    return skip == 0 ? pass.template run_chunk<true>(0, 0, 0) : pass.template run_chunk<false>(0, skip, 0);
  if (skip != 0) pass.template run_chunk<false>(chunk--, skip, least);
#pragma unroll 1
  for (; chunk >= least; --chunk) pass.template run_chunk<true>(chunk, 0, least);
}

}  // namespace snnfast::cuda::plain
