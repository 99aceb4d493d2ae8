// The CPU kernels: time runs inside a block of neurons, and each step is a vectorised loop over the block.
//
// Compiled once for each neuron (SNN_NEURON) and each instruction set, with SNN_ISA naming the namespace. Nothing here
// may have external linkage but `kernels`, and nothing inline from other headers may be emitted: the linker would keep
// one copy for all sets.
#include <memory>

#include "kernels.h"
#include "saved.h"
#include "stage.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename A>
void zero(int n, A* row) {
  for (int i = 0; i < n; ++i) row[i] = A(0);
}

// Neurons that a block takes at once, and whether it has done some of the same problem before.
struct Span {
  int64_t first;
  int n;
  bool next;
};

// The spans of a range. Neurons at the end that are no whole column are the end of one which begins among those done
// already, and does them again to the same result; where there are not enough for that, they pass through scratch rows.
template <typename A>
class Spans {
 public:
  Spans(int64_t first, int64_t last, int64_t size)
      : first_(first), last_(last), size_(size), at_(first), whole_(first + (last - first) / kColumn<A> * kColumn<A>) {}

  bool take(Span& span) {
    if (at_ == last_) return false;
    const bool next = at_ > first_;
    if (at_ < whole_) {
      span = {at_, static_cast<int>(whole_ - at_ < size_ ? whole_ - at_ : size_), next};
    } else {
      const int64_t rest = next ? last_ - kColumn<A> : at_;
      span = {rest, static_cast<int>(last_ - rest), next};
    }
    at_ = span.first + span.n;
    return true;
  }

 private:
  int64_t first_, last_, size_, at_, whole_;
};

// With a few steps, long rows matter less than that states and parameters stay in the L1 cache; with 16-bit rows, that
// the converted ones do. `usual`: otherwise.
template <typename S, typename Neuron>
int block_size(const Problem<Neuron>& p, int usual) {
  if (p.T < kSteps) return kShortBlock;
  if (sizeof(S) <= sizeof(float) && p.T * p.N >= kFar / static_cast<int64_t>(sizeof(S))) return kLongBlock;
  return sizeof(S) == 2 ? kShortBlock : usual;
}

// ---- forward

template <typename Neuron, typename S>
struct ForwardBlock {
  using A = typename Acc<S>::type;
  static constexpr int kStates = Neuron::kStates, kMem = kStates - 1;

  Forward<Neuron> p;
  Either<ForwardLoop<Neuron, A>> loops;
  ForwardRows<Neuron, A> rows;
  bool stream;
  int64_t first;
  int n;
  Lanes<A, Neuron::kParameters> lanes;
  alignas(64) A state[kStates][kLongBlock];
  alignas(64) A x_scratch[kSteps][kLongBlock], spk_scratch[kSteps][kLongBlock];
  alignas(64) A record_scratch[kStates][kSteps][kLongBlock], deciding_scratch[kSteps][kLongBlock];

  void open(const Forward<Neuron>& problem, bool non_temporal) {
    p = problem;
    stream = non_temporal;
    bool record = tells_membrane(p.saved) || p.deciding != nullptr;
    for (const void* row : p.record) record |= row != nullptr;
    loops = choose_forward<Neuron, A>(p, record);
  }

  // All steps of some neurons.
  void run(const Span& span) {
    first = span.first;
    n = span.n;
    open_lanes(first, n, p, span.next, lanes);
    pad_all(n, state);
    pad_all(n, x_scratch);
    rows.stream_spk = stream && in_place<S, A>(n);
    // A membrane that is saved but not recorded is in a scratch row.
    rows.stream_record = rows.stream_spk && !(tells_membrane(p.saved) && p.record[kMem] == nullptr);
    for (int s = 0; s < kStates; ++s) {
      rows.before[s] = open_for_reading(row_of<const A>(p.initial[s], 0, p.N, first), n, state[s]);
    }
    S* const spk_sum = p.reduce ? row_of<S>(p.spk, 0, p.N, first) : nullptr;
    rows.sum = open_for_writing(spk_sum, n, spk_scratch[0]);
    if (rows.sum != nullptr) zero(in_columns<A>(n), rows.sum);
    for (int64_t t = 0, steps; t < p.T; t += steps) {
      steps = t + kSteps <= p.T ? kSteps : 1;
      run_steps(t, static_cast<int>(steps));
    }
    close(spk_sum, n, rows.sum);
    for (int s = 0; p.T == 0 && s < kStates; ++s) {  // no step has written the last states
      if (p.last[s] == nullptr) continue;
      if (rows.before[s] == nullptr) zero(n, state[s]);
      store_row(row_of<A>(p.last[s], 0, p.N, first), n, rows.before[s] == nullptr ? state[s] : rows.before[s]);
    }
  }

  void run_steps(int64_t t, int steps) {
    S* const spk = p.reduce ? nullptr : row_of<S>(p.spk, t, p.N, first);
    A* const deciding = row_of<A>(p.deciding, t, p.N, first);
    const int64_t x_stride = p.constant ? 0 : p.N, end = t + steps;
    rows.x = open_for_reading(row_of<const S>(p.x, t, x_stride, first), x_stride, steps, n, x_scratch);
    rows.spk = open_for_writing(spk, p.N, n, spk_scratch);
    rows.deciding = {nullptr, 0};
    if (deciding != nullptr) rows.deciding = open_for_writing(deciding, p.N, n, deciding_scratch);
    S* record[kStates];
    A* kept[kStates];
    for (int s = 0; s < kStates; ++s) {
      record[s] = row_of<S>(p.record[s], t, p.N, first);
      const bool needed = record[s] != nullptr || (s == kMem && tells_membrane(p.saved));
      rows.record[s] = {nullptr, 0};
      if (needed) rows.record[s] = open_for_writing(record[s], p.N, n, record_scratch[s]);
      kept[s] = row_to_keep(s, end);
      rows.after[s] = kept[s] == nullptr ? state[s] : open_for_writing(kept[s], n, state[s]);
    }
    loops(steps)(n, rows, lanes);
    for (int s = 0; s < kStates; ++s) {
      close(kept[s], n, rows.after[s]);
      close(record[s], p.N, steps, n, rows.record[s], stream);
      rows.before[s] = rows.after[s];
    }
    close(spk, p.N, steps, n, rows.spk, stream);
    close(deciding, p.N, steps, n, rows.deciding, stream);
    for (int k = 0; k < steps && tells_membrane(p.saved); ++k) save(t + k, rows.record[kMem][k]);
  }

  // Where the state after `end` steps goes, if anywhere but to the next ones.
  A* row_to_keep(int s, int64_t end) {
    if (end == p.T) return row_of<A>(p.last[s], 0, p.N, first);
    if (p.saved != Saved::kCheckpoints || end % kCheckpoint != 0) return nullptr;
    return row_of<A>(p.rows, (end / kCheckpoint - 1) * kStates + s, p.N, first);
  }

  void save(int64_t t, const A* mem) {
    const Lane<A>& threshold = lanes.of[Problem<Neuron>::kThreshold];
    if (p.saved == Saved::kMembrane) {
      save_membrane(n, mem, threshold, row_of<BFloat16>(p.rows, t, p.N, first));
    } else if (t + 1 < p.T) {
      save_spikes(n, mem, threshold, static_cast<int>(t % 8), row_of<uint8_t>(p.rows, t / 8, p.N, first));
    }
  }
};

template <typename Neuron, typename S>
void forward(const Forward<Neuron>& p, int64_t first, int64_t last, bool stream) {
  // Kept from call to call, as fresh memory costs page faults; and larger than a thread's stack may be.
  thread_local const std::unique_ptr<ForwardBlock<Neuron, S>> block(new ForwardBlock<Neuron, S>);
  block->open(p, stream);
  Spans<typename Acc<S>::type> spans(first, last, block_size<S>(p, stream ? kLongBlock : kBlock));
  for (Span span; spans.take(span);) block->run(span);
  if (stream) stream_fence();
}

// ---- backward

template <typename Neuron, typename S>
struct BackwardBlock {
  using A = typename Acc<S>::type;
  static constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters, kMem = kStates - 1;

  // The most loops that a checkpoint's worth of steps takes: kSteps at a time, what is left one by one.
  static constexpr int kLoops = kCheckpoint / kSteps + kSteps - 1;

  // Steps that are summed up by themselves, so that rounding errors of a long sum stay small; in whole checkpoints.
  static constexpr int64_t kStretch = 256;

  Backward<Neuron> p;
  AdjointRows<Neuron, A> rows;
  bool recorded, sums_parameters, stream;
  Either<ForwardLoop<Neuron, A>> advance_loops;
  Either<AdjointLoop<Neuron, A>> adjoint_loops;
  int64_t first;
  int n;
  const A* grad_spk;  // the row for all steps, if there is but one, be it of zeros; or nullptr
  Lanes<A, kParameters> lanes;
  Sums<A, kParameters> sums, totals;
  alignas(64) A grad_x_sum[kMost<A>], grad_x_total[kMost<A>];
  alignas(64) A carry[kStates][kMost<A>];
  alignas(64) A zeros[kMost<A>] = {};
  alignas(64) A initial_scratch[kStates][kMost<A>];
  alignas(64) A starts[kLoops][kStates][kMost<A>];  // states before each loop over a checkpoint's steps, but the first
  alignas(64) A x_scratch[kCheckpoint][kMost<A>];
  alignas(64) A mem_scratch[kSteps + 1][kMost<A>];
  alignas(64) A derivative_scratch[kSteps][kMost<A>];
  alignas(64) A grad_spk_scratch[kSteps][kMost<A>], grad_scratch[kStates][kSteps][kMost<A>];
  alignas(64) A grad_x_scratch[kSteps][kMost<A>];

  void open(const Backward<Neuron>& problem, bool non_temporal) {
    p = problem;
    stream = non_temporal;
    recorded = p.recorded();
    sums_parameters = p.sums_parameters();
    advance_loops = choose_advance<Neuron, A>(p.rules);
    adjoint_loops = choose_adjoint<Neuron, A>(p);
  }

  // All steps of some neurons.
  void run(const Span& span) {
    first = span.first;
    n = span.n;
    open_lanes(first, n, p, span.next, lanes);
    for (int s = 0; s < kStates; ++s) pad_all(n, grad_scratch[s]);
    pad_all(n, carry);
    pad_all(n, initial_scratch);
    pad_all(n, x_scratch);
    pad_all(n, mem_scratch);
    pad_all(n, derivative_scratch);
    pad_all(n, grad_spk_scratch);
    grad_spk = p.grad_spk == nullptr ? zeros
               : p.reduce ? open_for_reading(row_of<const S>(p.grad_spk, 0, p.N, first), n, grad_spk_scratch[0])
                          : nullptr;
    clear(sums.of, grad_x_sum);
    if (p.T > kStretch) clear(totals.of, grad_x_total);
    rows.a = static_cast<A>(p.coefficients.a);
    rows.b = static_cast<A>(p.coefficients.b);
    rows.grad_x_sum = p.constant ? grad_x_sum : nullptr;
    for (int s = 0; s < kStates; ++s) {
      rows.grad_after[s] = open_for_reading(row_of<const A>(p.grad_last[s], 0, p.N, first), n, carry[s]);
    }
    for (int64_t end = p.T; end > 0;) {
      const int64_t start = (end - 1) / kCheckpoint * kCheckpoint;
      run_chunk(start, static_cast<int>(end - start));
      end = start;
      if (p.T > kStretch && start % kStretch == 0) end_stretch();
    }
    finish();
  }

  void clear(A (&parameters)[kParameters][kMost<A>], A (&grad_x)[kMost<A>]) {
    for (int j = 0; j < kParameters && sums_parameters; ++j) zero(in_columns<A>(n), parameters[j]);
    if (p.constant) zero(in_columns<A>(n), grad_x);
  }

  void end_stretch() {
    for (int j = 0; j < kParameters && sums_parameters; ++j) add(sums.of[j], totals.of[j]);
    if (p.constant) add(grad_x_sum, grad_x_total);
    clear(sums.of, grad_x_sum);
  }

  void add(const A* sum, A* total) {
    for (int i = 0; i < n; ++i) total[i] += sum[i];
  }

  // A checkpoint's worth of steps: forward through all loops but the last, for the states before them; then back.
  void run_chunk(int64_t start, int count) {
    Rows<const A> x{nullptr, 0};
    ForwardRows<Neuron, A> advance{};
    const A* before[kLoops][kStates];
    int loops = 0, steps[kLoops], k = 0;
    for (int at = 0; at < count; at += steps[loops++]) steps[loops] = at + kSteps <= count ? kSteps : 1;
    if (!recorded) {
      const int64_t stride = p.constant ? 0 : p.N;
      x = open_for_reading(row_of<const S>(p.x, start, stride, first), stride, count, n, x_scratch);
      for (int s = 0; s < kStates; ++s) before[0][s] = states_at(start, s);
      for (int loop = 0; loop + 1 < loops; k += steps[loop++]) {
        advance.x = {x[k], x.stride};
        for (int s = 0; s < kStates; ++s) {
          advance.before[s] = before[loop][s];
          before[loop + 1][s] = advance.after[s] = starts[loop][s];
        }
        advance_loops(steps[loop])(n, advance, lanes);
      }
    }
    for (int loop = loops - 1, end = count; loop >= 0; end -= steps[loop--]) {
      k = end - steps[loop];
      if (recorded) {
        open_membranes(start + k, steps[loop]);
      } else {
        for (int s = 0; s < kStates; ++s) rows.before[s] = before[loop][s];
        rows.x = {x[k], x.stride};
      }
      run_steps(start + k, steps[loop]);
    }
  }

  // A state before the step that a chunk begins with.
  const A* states_at(int64_t start, int s) {
    const A* const row = start == 0 ? row_of<const A>(p.initial[s], 0, p.N, first)
                                    : row_of<const A>(p.rows, (start / kCheckpoint - 1) * kStates + s, p.N, first);
    return open_for_reading(row, n, initial_scratch[s]);
  }

  // Those that decided the spikes of steps t to t + steps - 1, and the one before.
  void open_membranes(int64_t t, int steps) {
    if (p.mem_rec != nullptr) {
      rows.mem = open_for_reading(row_of<const A>(p.mem_rec, t, p.N, first), p.N, steps, n, mem_scratch);
    } else {
      rows.mem = {mem_scratch[0], kMost<A>};
      for (int j = 0; j < steps; ++j) recover(t + j, mem_scratch[j]);
    }
    if (t == 0) {
      rows.before[kMem] = states_at(0, kMem);
    } else if (p.mem_rec != nullptr) {
      rows.before[kMem] = open_for_reading(row_of<const A>(p.mem_rec, t - 1, p.N, first), n, initial_scratch[kMem]);
    } else {
      recover(t - 1, initial_scratch[kMem]);
      rows.before[kMem] = initial_scratch[kMem];
    }
  }

  // A membrane from what was saved of it.
  void recover(int64_t t, A* mem) {
    const Lane<A>& threshold = lanes.of[Problem<Neuron>::kThreshold];
    if (p.saved == Saved::kMembrane) {
      from_membrane(n, row_of<const BFloat16>(p.rows, t, p.N, first), threshold, mem);
    } else {
      const uint8_t* const bits = t + 1 < p.T ? row_of<const uint8_t>(p.rows, t / 8, p.N, first) : nullptr;
      from_spikes(n, bits, static_cast<int>(t % 8), threshold, mem);
    }
  }

  // Steps t + steps - 1 down to t.
  void run_steps(int64_t t, int steps) {
    const A* const derivative = row_of<const A>(p.derivative, t, p.N, first);
    S* const grad_x = p.constant ? nullptr : row_of<S>(p.grad_x, t, p.N, first);
    if (grad_spk != nullptr) {
      rows.grad_spk = {grad_spk, 0};
    } else {
      rows.grad_spk = open_for_reading(row_of<const S>(p.grad_spk, t, p.N, first), p.N, steps, n, grad_spk_scratch);
    }
    rows.derivative = open_for_reading(derivative, p.N, steps, n, derivative_scratch);
    rows.grad_x = open_for_writing(grad_x, p.N, n, grad_x_scratch);
    rows.stream = stream && rows.grad_x.first != grad_x_scratch[0];
    A* initial[kStates];
    for (int s = 0; s < kStates; ++s) {
      const S* const grad = row_of<const S>(p.grad_record[s], t, p.N, first);
      rows.grad[s] = open_for_reading(grad, p.N, steps, n, grad_scratch[s]);
      initial[s] = t == 0 ? row_of<A>(p.grad_initial[s], 0, p.N, first) : nullptr;
      rows.grad_before[s] = initial[s] == nullptr ? carry[s] : open_for_writing(initial[s], n, carry[s]);
    }
    adjoint_loops(steps)(n, rows, lanes, sums);
    for (int s = 0; s < kStates; ++s) {
      close(initial[s], n, rows.grad_before[s]);
      rows.grad_after[s] = rows.grad_before[s];
    }
    close(grad_x, p.N, steps, n, rows.grad_x, stream);
  }

  void finish() {
    for (int s = 0; p.T == 0 && s < kStates; ++s) {  // no step has written them
      if (p.grad_initial[s] == nullptr) continue;
      if (rows.grad_after[s] == nullptr) zero(n, carry[s]);
      const A* const row = rows.grad_after[s] == nullptr ? carry[s] : rows.grad_after[s];
      store_row(row_of<A>(p.grad_initial[s], 0, p.N, first), n, row);
    }
    const bool long_sums = p.T > kStretch;
    if (p.constant && p.grad_x != nullptr) {
      store_row(row_of<S>(p.grad_x, 0, p.N, first), n, long_sums ? grad_x_total : grad_x_sum);
    }
    for (int j = 0; j < kParameters; ++j) {
      if (p.grad_parameters[j] == nullptr) continue;
      A* const sum = long_sums ? totals.of[j] : sums.of[j];
      if (Neuron::kClamped[j]) {
        // The clamp's own derivative needs the parameter as it was given.
        fill(first, n, p.parameters[j], mem_scratch[0]);
        for (int i = 0; i < n; ++i) sum[i] = clamp_unit_adjoint(mem_scratch[0][i], sum[i], p.clamp_closed);
      }
      store_row(row_of<A>(p.grad_parameters[j], 0, p.N, first), n, sum);
    }
  }
};

template <typename Neuron, typename S>
void backward(const Backward<Neuron>& p, int64_t first, int64_t last, bool stream) {
  thread_local const std::unique_ptr<BackwardBlock<Neuron, S>> block(new BackwardBlock<Neuron, S>);
  block->open(p, stream);
  Spans<typename Acc<S>::type> spans(first, last, block_size<S>(p, kBlock));
  for (Span span; spans.take(span);) block->run(span);
  if (stream) stream_fence();
}

}  // namespace

template <>
const Kernels<SNN_NEURON>& kernels<SNN_NEURON>() {
  using N = SNN_NEURON;
  static constexpr Kernels<N> kAll{
      {forward<N, float>, forward<N, double>, forward<N, Half>, forward<N, BFloat16>},
      {backward<N, float>, backward<N, double>, backward<N, Half>, backward<N, BFloat16>},
  };
  return kAll;
}

}  // namespace snnfast::cpu::SNN_ISA
