// The CPU kernels: time runs inside a block of neurons, and each step is a vectorised loop over the block.
//
// Compiled once for each instruction set with SNN_ISA naming the namespace. Nothing here may have external linkage but
// `kernels`, and nothing inline from other headers may be emitted: the linker would keep one copy for all sets.
#include <memory>

#include "access.h"
#include "kept.h"
#include "kernels.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename A>
void zero(int n, A* row) {
  for (int i = 0; i < n; ++i) row[i] = A(0);
}

// ---- a block through all its time steps

template <typename S>
struct ForwardBlock {
  using A = typename Acc<S>::type;

  LifForward p;
  Either<ForwardSteps<A>> loops;
  bool stream;
  int64_t first;
  int n;
  Lanes<A> lanes;
  alignas(64) A state[kLongBlock];
  alignas(64) A x_scratch[kSteps][kLongBlock], spk_scratch[kSteps][kLongBlock], mem_scratch[kSteps][kLongBlock];

  void open(const LifForward& problem, bool past_the_caches) {
    p = problem;
    stream = past_the_caches;
    loops = choose_forward<A>(problem, /*recorded=*/p.mem_rec != nullptr || keeps_rows());
  }

  bool keeps_rows() const { return p.keep == Keep::kRounded || p.keep == Keep::kBits; }

  void run(int64_t first_neuron, int count, bool next) {
    first = first_neuron;
    n = count;
    open_lanes(first, n, p, next, lanes);
    pad(n, state);
    pad_all(n, x_scratch);
    ForwardRows<A> rows;
    rows.stream_spk = stream && in_place<S, A>(n);
    rows.stream_mem = rows.stream_spk && p.mem_rec != nullptr;  // and not a row that is kept, by way of scratch
    rows.before = open_for_reading(row_of<const A>(p.mem0, 0, p.N, first), n, state);
    S* const spk_count = p.spk_count ? row_of<S>(p.spk, 0, p.N, first) : nullptr;
    rows.count = open_for_writing(spk_count, n, spk_scratch[0]);
    if (rows.count != nullptr) zero(in_columns<A>(n), rows.count);
    for (int64_t t = 0, steps; t < p.T; t += steps) {
      steps = t + kSteps <= p.T ? kSteps : 1;
      several_steps(t, static_cast<int>(steps), rows);
    }
    close(spk_count, n, rows.count);
    if (p.T == 0 && p.mem_last != nullptr) {  // no step has written it
      if (rows.before == nullptr) zero(n, state);
      store_row(row_of<A>(p.mem_last, 0, p.N, first), n, rows.before == nullptr ? state : rows.before);
    }
  }

  void several_steps(int64_t t, int steps, ForwardRows<A>& rows) {
    S* const spk = p.spk_count ? nullptr : row_of<S>(p.spk, t, p.N, first);
    S* const mem = row_of<S>(p.mem_rec, t, p.N, first);
    const int64_t x_stride = p.x_constant ? 0 : p.N;
    rows.x = open_for_reading(row_of<const S>(p.x, t, x_stride, first), x_stride, steps, n, x_scratch);
    rows.spk = open_for_writing(spk, p.N, n, spk_scratch);
    rows.mem = open_for_writing(mem, p.N, n, mem_scratch);
    // The membrane after the steps goes where it is to stay, if anywhere.
    const int64_t end = t + steps;
    A* const last = end == p.T ? row_of<A>(p.mem_last, 0, p.N, first) : nullptr;
    A* const checkpoint = p.keep == Keep::kCheckpoints && end < p.T && end % kCheckpoint == 0
                              ? row_of<A>(p.kept, end / kCheckpoint - 1, p.N, first)
                              : nullptr;
    rows.after = last != nullptr         ? open_for_writing(last, n, state)
                 : checkpoint != nullptr ? open_for_writing(checkpoint, n, state)
                                         : state;
    loops(steps)(n, rows, lanes);
    close(last, n, rows.after);
    close(checkpoint, n, rows.after);
    rows.before = rows.after;
    close(spk, p.N, steps, n, rows.spk, stream);
    close(mem, p.N, steps, n, rows.mem, stream);
    for (int k = 0; k < steps && keeps_rows(); ++k) keep_row(t + k, rows.mem[k]);
  }

  void keep_row(int64_t t, const A* mem) {
    if (p.keep == Keep::kRounded) {
      keep_rounded(n, mem, lanes.threshold, row_of<BFloat16>(p.kept, t, p.N, first));
    } else if (t + 1 < p.T) {
      keep_bits(n, mem, lanes.threshold, static_cast<int>(t % 8), row_of<uint8_t>(p.kept, t / 8, p.N, first));
    }
  }
};

template <typename S>
struct BackwardBlock {
  using A = typename Acc<S>::type;

  // The most loops that a checkpoint's worth of steps takes: kSteps at a time, what is left one by one.
  static constexpr int kLoops = kCheckpoint / kSteps + kSteps - 1;

  LifBackward p;
  TimeRange range;
  bool recorded, stream;
  Either<AdvanceSteps<A>> advance_loops;
  Either<AdjointSteps<A>> adjoint_loops;
  int64_t first;
  int n;
  const A* grad_count;  // the row of grad_spk for all steps, if there is but one, be it of zeros; or nullptr
  Lanes<A> lanes;
  Sums<A> sums;
  alignas(64) A carry[kMost<A>];
  alignas(64) A grad_x_sum[kMost<A>];
  alignas(64) A zeros[kMost<A>] = {};
  alignas(64) A mem0_scratch[kMost<A>];
  alignas(64) A starts[kLoops][kMost<A>];  // membrane before each loop over a checkpoint's steps, but the first
  alignas(64) A x_scratch[kCheckpoint][kMost<A>];
  alignas(64) A mem_scratch[kSteps + 1][kMost<A>];
  alignas(64) A derivative_scratch[kSteps][kMost<A>];
  alignas(64) A grad_spk_scratch[kSteps][kMost<A>], grad_mem_scratch[kSteps][kMost<A>];
  alignas(64) A grad_x_scratch[kSteps][kMost<A>];

  void open(const LifBackward& problem, const TimeRange& time_range, bool past_the_caches) {
    p = problem;
    range = time_range;
    stream = past_the_caches;
    recorded = p.mem_rec != nullptr || p.keep == Keep::kRounded || p.keep == Keep::kBits;
    advance_loops = choose_advance<A>(problem);
    adjoint_loops = choose_adjoint<A>(problem, recorded);
  }

  void run(int64_t first_neuron, int count, bool next) {
    first = first_neuron;
    n = count;
    open_lanes(first, n, p, next && p.grad_beta == nullptr, lanes);  // finish() takes beta's lane for its gradient
    for (A* const row : {carry, mem0_scratch}) pad(n, row);
    pad_all(n, x_scratch);
    pad_all(n, mem_scratch);
    pad_all(n, derivative_scratch);
    pad_all(n, grad_spk_scratch);
    pad_all(n, grad_mem_scratch);
    grad_count = p.grad_spk == nullptr ? zeros
                 : p.spk_count ? open_for_reading(row_of<const S>(p.grad_spk, 0, p.N, first), n, grad_spk_scratch[0])
                               : nullptr;
    if (p.parameter_gradients()) {
      for (A* const sum : {sums.beta, sums.threshold, sums.graded}) zero(in_columns<A>(n), sum);
    }
    if (p.x_constant) zero(in_columns<A>(n), grad_x_sum);
    AdjointRows<A> rows;
    rows.a = static_cast<A>(p.coefficients.a);
    rows.b = static_cast<A>(p.coefficients.b);
    const void* const entering = range.carry != nullptr ? range.carry : p.grad_mem_last;
    rows.grad_after = open_for_reading(row_of<const A>(entering, 0, p.N, first), n, carry);
    for (int64_t end = range.to; end > range.from;) {
      const int64_t start = (end - 1) / kCheckpoint * kCheckpoint;
      chunk(start, static_cast<int>(end - start), rows);
      end = start;
    }
    finish(rows.grad_after);
  }

  const A* mem0() { return open_for_reading(row_of<const A>(p.mem0, 0, p.N, first), n, mem0_scratch); }

  // A checkpoint's worth of steps: forward through all loops but the last, for the membranes before them; then back.
  void chunk(int64_t start, int count, AdjointRows<A>& rows) {
    Rows<const A> x{nullptr, 0};
    const A* before[kLoops];
    int loops = 0, steps[kLoops], k = 0;
    for (int at = 0; at < count; at += steps[loops++]) steps[loops] = at + kSteps <= count ? kSteps : 1;
    if (!recorded) {
      const int64_t stride = p.x_constant ? 0 : p.N;
      x = open_for_reading(row_of<const S>(p.x, start, stride, first), stride, count, n, x_scratch);
      before[0] = start == 0
                      ? mem0()
                      : open_for_reading(row_of<const A>(p.kept, start / kCheckpoint - 1, p.N, first), n, mem0_scratch);
      for (int loop = 0; loop + 1 < loops; k += steps[loop++]) {
        advance_loops(steps[loop])(n, {before[loop], starts[loop], {x[k], x.stride}}, lanes);
        before[loop + 1] = starts[loop];
      }
    }
    for (int loop = loops - 1, end = count; loop >= 0; end -= steps[loop--]) {
      k = end - steps[loop];
      if (recorded) {
        recorded_membranes(start + k, steps[loop], rows);
      } else {
        rows.before = before[loop];
        rows.x = {x[k], x.stride};
      }
      adjoint(start + k, steps[loop], rows);
    }
  }

  // Those that decided the spikes of steps t to t + steps - 1, and the one before.
  void recorded_membranes(int64_t t, int steps, AdjointRows<A>& rows) {
    if (p.mem_rec != nullptr) {
      rows.mem = open_for_reading(row_of<const A>(p.mem_rec, t, p.N, first), p.N, steps, n, mem_scratch);
    } else {
      rows.mem = {mem_scratch[0], kMost<A>};
      for (int j = 0; j < steps; ++j) recover(t + j, mem_scratch[j]);
    }
    if (t == 0) {
      rows.before = mem0();
    } else if (p.mem_rec != nullptr) {
      rows.before = open_for_reading(row_of<const A>(p.mem_rec, t - 1, p.N, first), n, mem0_scratch);
    } else {
      recover(t - 1, mem0_scratch);
      rows.before = mem0_scratch;
    }
  }

  // A membrane from what was kept of it.
  void recover(int64_t t, A* mem) {
    if (p.keep == Keep::kRounded) {
      from_rounded(n, row_of<const BFloat16>(p.kept, t, p.N, first), lanes.threshold, mem);
    } else {
      const uint8_t* const bits = t + 1 < p.T ? row_of<const uint8_t>(p.kept, t / 8, p.N, first) : nullptr;
      from_bits(n, bits, static_cast<int>(t % 8), lanes.threshold, mem);
    }
  }

  // Steps t + steps - 1 down to t.
  void adjoint(int64_t t, int steps, AdjointRows<A>& rows) {
    const S* const grad_mem = row_of<const S>(p.grad_mem_rec, t, p.N, first);
    const A* const derivative = row_of<const A>(p.derivative, t, p.N, first);
    S* const grad_x = p.x_constant ? nullptr : row_of<S>(p.grad_x, t, p.N, first);
    if (grad_count != nullptr) {
      rows.grad_spk = {grad_count, 0};
    } else {
      rows.grad_spk = open_for_reading(row_of<const S>(p.grad_spk, t, p.N, first), p.N, steps, n, grad_spk_scratch);
    }
    rows.grad_mem = open_for_reading(grad_mem, p.N, steps, n, grad_mem_scratch);
    rows.derivative = open_for_reading(derivative, p.N, steps, n, derivative_scratch);
    rows.grad_x = open_for_writing(grad_x, p.N, n, grad_x_scratch);
    rows.grad_x_sum = p.x_constant ? grad_x_sum : nullptr;
    rows.stream = stream && rows.grad_x.first != grad_x_scratch[0];
    A* const carry_out = t == range.from ? row_of<A>(range.carry_out, 0, p.N, first) : nullptr;
    rows.grad_before = carry_out == nullptr ? carry : open_for_writing(carry_out, n, carry);
    adjoint_loops(steps)(n, rows, lanes, sums);
    rows.grad_after = rows.grad_before;
    close(carry_out, n, rows.grad_before);
    close(grad_x, p.N, steps, n, rows.grad_x, stream);
  }

  void finish(const A* grad_after) {
    if (range.to == range.from && range.carry_out != nullptr) {  // no step has written it
      if (grad_after == nullptr) zero(n, carry);
      store_row(row_of<A>(range.carry_out, 0, p.N, first), n, grad_after == nullptr ? carry : grad_after);
    }
    if (p.x_constant && range.grad_x_sum != nullptr) {
      store_row(row_of<A>(range.grad_x_sum, 0, p.N, first), n, grad_x_sum);
    } else if (p.x_constant && p.grad_x != nullptr) {
      store_row(row_of<S>(p.grad_x, 0, p.N, first), n, grad_x_sum);
    }
    if (p.grad_beta != nullptr) {
      // The clamp's own derivative needs beta as it was given.
      fill(first, n, p.beta, lanes.beta.values);
      for (int i = 0; i < n; ++i) {
        sums.beta[i] = clamp_unit_adjoint(lanes.beta.values[i], sums.beta[i], p.clamp_closed);
      }
      store_row(row_of<A>(p.grad_beta, 0, p.N, first), n, sums.beta);
    }
    if (p.grad_threshold != nullptr) store_row(row_of<A>(p.grad_threshold, 0, p.N, first), n, sums.threshold);
    if (p.grad_graded != nullptr) store_row(row_of<A>(p.grad_graded, 0, p.N, first), n, sums.graded);
  }
};

// ---- a thread's range of neurons

// With a few steps, long rows matter less than that state and parameters stay in the first-level cache; with 16-bit
// rows, that the converted ones do. `usual`: otherwise.
template <typename S>
int block_size(const LifProblem& p, int usual) {
  if (p.T < kSteps) return kShortBlock;
  if (sizeof(S) <= sizeof(float) && p.T * p.N >= kFar / static_cast<int64_t>(sizeof(S))) return kLongBlock;
  return sizeof(S) == 2 ? kShortBlock : usual;
}

// In blocks. The neurons at the end that are no whole column are the end of one which begins among those done already,
// and does them again to the same result; where there are not enough for that, they pass through scratch rows.
template <typename Block>
void run_blocks(Block& block, int64_t size, int64_t first, int64_t last) {
  constexpr int64_t column = kColumn<typename Block::A>;
  const int64_t whole = first + (last - first) / column * column;
  for (int64_t neuron = first; neuron < whole; neuron += size) {
    block.run(neuron, static_cast<int>(whole - neuron < size ? whole - neuron : size), neuron > first);
  }
  if (whole == last) return;
  const int64_t rest = whole > first ? last - column : whole;
  block.run(rest, static_cast<int>(last - rest), whole > first);
}

template <typename S>
void forward_range(const LifForward& p, int64_t first, int64_t last, bool stream) {
  // Kept from call to call, as fresh memory costs page faults; and larger than a thread's stack may be.
  thread_local const std::unique_ptr<ForwardBlock<S>> block(new ForwardBlock<S>);
  block->open(p, stream);
  run_blocks(*block, block_size<S>(p, stream ? kLongBlock : kBlock), first, last);
  if (stream) stream_fence();
}

template <typename S>
void backward_range(const LifBackward& p, const TimeRange& range, int64_t first, int64_t last, bool stream) {
  thread_local const std::unique_ptr<BackwardBlock<S>> block(new BackwardBlock<S>);
  block->open(p, range, stream);
  run_blocks(*block, block_size<S>(p, kBlock), first, last);
  if (stream) stream_fence();
}

void forward(const LifForward& p, int64_t first, int64_t last, bool stream) {
  switch (p.dtype) {
    case DType::kFloat: return forward_range<float>(p, first, last, stream);
    case DType::kDouble: return forward_range<double>(p, first, last, stream);
    case DType::kHalf: return forward_range<Half>(p, first, last, stream);
    case DType::kBFloat16: return forward_range<BFloat16>(p, first, last, stream);
  }
}

void backward(const LifBackward& p, const TimeRange& range, int64_t first, int64_t last, bool stream) {
  switch (p.dtype) {
    case DType::kFloat: return backward_range<float>(p, range, first, last, stream);
    case DType::kDouble: return backward_range<double>(p, range, first, last, stream);
    case DType::kHalf: return backward_range<Half>(p, range, first, last, stream);
    case DType::kBFloat16: return backward_range<BFloat16>(p, range, first, last, stream);
  }
}

template <typename S>
void add_up_rows(const void* parts, int64_t count, int64_t stride, int64_t first, int64_t last, void* total) {
  using A = typename Acc<S>::type;
  A sums[kShortBlock];
  for (int n; first < last; first += n) {
    n = last - first < kShortBlock ? static_cast<int>(last - first) : kShortBlock;
    const A* row = static_cast<const A*>(parts) + (count - 1) * stride + first;
    for (int i = 0; i < n; ++i) sums[i] = row[i];
    for (int64_t k = count - 1; k > 0; --k) {
      row -= stride;
      for (int i = 0; i < n; ++i) sums[i] += row[i];
    }
    store_row(static_cast<S*>(total) + first, n, sums);
  }
}

void add_up(DType dtype, const void* parts, int64_t count, int64_t stride, int64_t first, int64_t last, void* total) {
  switch (dtype) {
    case DType::kFloat: return add_up_rows<float>(parts, count, stride, first, last, total);
    case DType::kDouble: return add_up_rows<double>(parts, count, stride, first, last, total);
    case DType::kHalf: return add_up_rows<Half>(parts, count, stride, first, last, total);
    case DType::kBFloat16: return add_up_rows<BFloat16>(parts, count, stride, first, last, total);
  }
}

}  // namespace

#define SNN_STRING(name) #name
#define SNN_NAME(name) SNN_STRING(name)
const Kernels kernels{SNN_NAME(SNN_ISA), forward, backward, add_up};

}  // namespace snnfast::cpu::SNN_ISA
