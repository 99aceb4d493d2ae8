// All steps of some neurons, backward.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include "choose.h"
#include "normed.h"
#include "outputs.h"
#include "spans.h"
#include "stage.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename Neuron, typename S>
struct BackwardBlock {
  using A = Opmath<S>;
  static constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters, kMem = kStates - 1;

  // The most loops that the steps between two checkpoints take: kSteps at a time, and the remaining ones one by one.
  static constexpr int kLoops = kCheckpoint / kSteps<A> + kSteps<A> - 1;

  // Steps that are summed up by themselves, so that the rounding error of a long sum stays small. A multiple of
  // kCheckpoint.
  static constexpr int64_t kStretch = 256;

  Backward<Neuron> p;
  const Normalised* norm;
  AdjointRows<Neuron, A> rows;
  Ahead<Neuron, A> currents_ahead, ahead;
  bool recorded, sums_parameters, exceeds_caches, stream, looks_ahead;
  int64_t rows_after;  // the rows of the padding behind the steps
  Either<ForwardLoop<Neuron, A>> advance_loops;
  Either<AdjointLoop<Neuron, A>> adjoint_loops;
  int64_t first;
  int n;
  const A* grad_spk;  // the row for all steps, perhaps of zeros; nullptr: each step has its own
  Lanes<A, kParameters> lanes;
  Sums<A, kParameters> sums, totals;
  alignas(64) A grad_x_sum[kMost<A>], grad_x_total[kMost<A>];
  alignas(64) A carry[kStates][kMost<A>];
  alignas(64) A zeros[kMost<A>] = {};
  alignas(64) A initial_scratch[kStates][kMost<A>];
  alignas(64) A starts[kLoops][kStates][kMost<A>];  // states before each loop over a checkpoint's steps, but the first
  alignas(64) A x_scratch[kCheckpoint][kMost<A>];
  alignas(64) A from_mean[kCheckpoint][kMost<A>];  // behind a normalisation
  alignas(64) A mem_scratch[kSteps<A> + 1][kMost<A>];
  alignas(64) A derivative_scratch[kSteps<A>][kMost<A>];
  alignas(64) A grad_spk_scratch[kSteps<A>][kMost<A> + kColumn<A>], grad_scratch[kStates][kSteps<A>][kMost<A>];
  alignas(64) A grad_x_scratch[kSteps<A>][kMost<A>];

  void open(const Backward<Neuron>& problem, const Normalised* before, bool exceeds) {
    p = problem;
    norm = before;
    exceeds_caches = exceeds;
    recorded = p.recorded();
    sums_parameters = std::is_same_v<A, double> || p.sums_parameters();  // what the loops do, see choose.h
    advance_loops = choose_advance<Neuron, A>(p.rule);
    adjoint_loops = choose_adjoint<Neuron, A>(p);
  }

  // Sets the number of steps of the neurons to come.
  void set_steps(const Backward<Neuron>& problem, int64_t steps) {
    p.T = steps;
    rows_after = problem.T - steps;
  }

  // Takes some neurons back through all steps.
  void run(const Span& span) {
    first = span.first;
    n = span.n;
    stream = exceeds_caches && kWholeLines && is_aligned<S>(first);
    looks_ahead = std::is_same_v<S, A> && (norm != nullptr || (exceeds_caches && in_place<S, A>(n)));
    rows.ahead = looks_ahead ? &ahead : nullptr;
    open_lanes(first, n, p, span.next, lanes);
    for (int s = 0; s < kStates; ++s) pad_all(n, grad_scratch[s]);
    pad_all(n, carry);
    pad_all(n, initial_scratch);
    pad_all(n, x_scratch);
    pad_all(n, mem_scratch);
    pad_all(n, derivative_scratch);
    pad_all(n, grad_spk_scratch);
    grad_spk = p.outputs.grad != nullptr ? nullptr
               : p.grad_spk == nullptr   ? zeros
               : p.grad_spk_stride == 0
                   ? open_for_reading(row_of<const S>(p.grad_spk, 0, 0, first), n, grad_spk_scratch[0])
                   : nullptr;
    clear(sums.of, grad_x_sum);
    if (p.T > kStretch) clear(totals.of, grad_x_total);
    rows.surrogate = p.surrogate;
    rows.a = static_cast<A>(p.coefficients.a);
    rows.b = static_cast<A>(p.coefficients.b);
    rows.grad_x_sum = p.grad_x_sum != nullptr ? grad_x_sum : nullptr;
    for (int s = 0; s < kStates; ++s) {
      rows.grad_after[s] = open_for_reading(row_of<const A>(p.grad_last[s], 0, p.N, first), n, carry[s]);
      if (rows_after > 0 && p.grad_record[s] != nullptr) add_of_padding(s);
    }
    for (int64_t t = p.T; t < p.T + rows_after && p.grad_x != nullptr; ++t) {
      put_zeros(row_of<S>(p.grad_x, t, p.N, first), n, stream);
    }
    for (int64_t end = p.T; end > 0;) {
      const int64_t start = (end - 1) / kCheckpoint * kCheckpoint;
      run_chunk(start, static_cast<int>(end - start));
      end = start;
      if (p.T > kStretch && start % kStretch == 0) end_stretch();
    }
    finish();
  }

  // Adds the gradients of the padding, where every record is the last state.
  void add_of_padding(int s) {
    if (rows.grad_after[s] == nullptr) {
      zero(in_columns<A>(n), carry[s]);
    } else if (rows.grad_after[s] != carry[s]) {
      load_row(rows.grad_after[s], n, carry[s]);
    }
    for (int64_t t = p.T; t < p.T + rows_after; ++t) {
      const A* const row =
          open_for_reading(row_of<const S>(p.grad_record[s], t, p.grad_record_stride[s], first), n, grad_scratch[s][0]);
      for (int i = 0; i < n; ++i) carry[s][i] += row[i];
    }
    rows.grad_after[s] = carry[s];
  }

  void clear(A (&parameters)[kParameters][kMost<A>], A (&grad_x)[kMost<A>]) {
    for (int j = 0; j < kParameters && sums_parameters; ++j) zero(in_columns<A>(n), parameters[j]);
    if (p.grad_x_sum != nullptr) zero(in_columns<A>(n), grad_x);
  }

  void end_stretch() {
    for (int j = 0; j < kParameters && sums_parameters; ++j) add(sums.of[j], totals.of[j]);
    if (p.grad_x_sum != nullptr) add(grad_x_sum, grad_x_total);
    clear(sums.of, grad_x_sum);
  }

  void add(const A* sum, A* total) {
    for (int i = 0; i < n; ++i) total[i] += sum[i];
  }

  // Goes through the steps between two checkpoints: forward through all loops but the last, for the states before each
  // loop, and then back.
  void run_chunk(int64_t start, int count) {
    Rows<const A> x{nullptr, 0};
    ForwardRows<Neuron, A> advance{};
    const A* before[kLoops][kStates];
    int loops = 0, steps[kLoops], k = 0;
    for (int at = 0; at < count; at += steps[loops++]) steps[loops] = at + kSteps<A> <= count ? kSteps<A> : 1;
    if (!recorded) {
      const S* const from = row_of<const S>(p.x, start, p.x_stride(), first);
      x = open_currents(norm, from, p.x_stride(), start, count, first, n, x_scratch, from_mean[0]);
      for (int s = 0; s < kStates; ++s) before[0][s] = states_at(start, s);
      for (int loop = 0; loop + 1 < loops; k += steps[loop++]) {
        advance.x = {x[k], x.stride};
        if (looks_ahead && norm == nullptr && x.stride != 0) {
          currents_ahead.begin(kLookAhead<A>, n);
          currents_ahead.add(advance.x, {x[k + steps[loop]], steps[loop + 1] == 1 ? 0 : x.stride});
          advance.ahead = &currents_ahead;
        }
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

  // Returns a state before the first step of a chunk.
  const A* states_at(int64_t start, int s) {
    const A* const row = start == 0 ? row_of<const A>(p.initial[s], 0, p.N, first)
                                    : row_of<const A>(p.rows, (start / kCheckpoint - 1) * kStates + s, p.N, first);
    return open_for_reading(row, n, initial_scratch[s]);
  }

  // Opens the membranes that decided the spikes of steps t to t + steps - 1, and the one before.
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

  // A membrane on the side of the threshold that its saved spike tells.
  void recover(int64_t t, A* mem) {
    const Lane<A>& threshold = lanes.of[Problem<Neuron>::kThreshold];
    from_spikes(n, row_of<const uint8_t>(p.rows, t / 8, p.N, first), static_cast<int>(t % 8), threshold, mem);
  }

  // Goes back from step t + steps - 1 to step t.
  void run_steps(int64_t t, int steps) {
    const A* const derivative = row_of<const A>(p.derivative, t, p.N, first);
    S* const grad_x = row_of<S>(p.grad_x, t, p.N, first);
    if (grad_spk != nullptr) {
      rows.grad_spk = {grad_spk, 0};
    } else if (p.outputs.grad != nullptr) {
      rows.grad_spk = {grad_spk_scratch[0], kMost<A> + kColumn<A>};
      through_weight(p.outputs, p.N, t, steps, first, n, grad_spk_scratch);
    } else {
      const S* const row = row_of<const S>(p.grad_spk, t, p.grad_spk_stride, first - p.grad_spk_first);
      rows.grad_spk = open_for_reading(row, p.grad_spk_stride, steps, n, grad_spk_scratch);
    }
    rows.derivative = open_for_reading(derivative, p.N, steps, n, derivative_scratch);
    rows.grad_x = open_for_writing(grad_x, p.N, n, grad_x_scratch);
    if (norm != nullptr && stream) rows.grad_x = {grad_x_scratch[0], kMost<A>};  // to be summed before it is written
    rows.stream = stream && rows.grad_x.first != grad_x_scratch[0];
    A* initial[kStates];
    for (int s = 0; s < kStates; ++s) {
      const int64_t stride = p.grad_record_stride[s];
      const S* const grad = row_of<const S>(p.grad_record[s], t, stride, first);
      rows.grad[s] = open_for_reading(grad, stride, steps, n, grad_scratch[s]);
      initial[s] = t == 0 ? row_of<A>(p.grad_initial[s], 0, p.N, first) : nullptr;
      rows.grad_before[s] = initial[s] == nullptr ? carry[s] : open_for_writing(initial[s], n, carry[s]);
    }
    if (looks_ahead) look_ahead(t);
    adjoint_loops(steps)(n, rows, lanes, sums);
    for (int s = 0; s < kStates; ++s) {
      close(initial[s], n, rows.grad_before[s]);
      rows.grad_after[s] = rows.grad_before[s];
    }
    if (norm != nullptr) return close_gradients(grad_x, t, steps);
    close(grad_x, p.N, steps, n, rows.grad_x, stream);
  }

  // Has the loops prefetch gradients, up to those of the next loop, which ends before step t or, in the next block,
  // with the last step. Behind a normalisation they prefetch the currents of the next block.
  void look_ahead(int64_t t) {
    if (norm != nullptr) {
      ahead.begin(n, n);
      return ahead.add({}, {row_of<const A>(p.x, t, p.N, first + n), p.N});
    }
    ahead.begin(kLookAhead<A>, n);
    const int64_t end = t > 0 ? t : p.T;
    const int steps = end % kSteps<A> == 0 ? kSteps<A> : 1;
    const auto add = [&](const Rows<const A>& now) {
      if (now.stride == 0) return;
      const A* const next = now.first + (end - steps - t) * now.stride + (t > 0 ? 0 : n);
      ahead.add(now, {next, steps == 1 ? 0 : now.stride});
    };
    if (p.outputs.grad == nullptr) add(rows.grad_spk);
    for (const Rows<const A>& grad : rows.grad) add(grad);
  }

  // Sums the gradients of the currents while they are in the caches, and writes them.
  void close_gradients(S* grad_x, int64_t t, int steps) {
    if constexpr (std::is_same_v<A, float>) {
      for (int k = 0; k < steps; ++k) {
        const int64_t step = t + k;
        const float *const grad = rows.grad_x[k], *const differences = from_mean[step % kCheckpoint];
        add_to_sums(norm->channels, first, n, norm->sums_of(step), [=]<typename V>(int64_t i, V& s, V& t) {
          s = lanes_at<V>(grad + i);
          t = s * lanes_at<V>(differences + i);
        });
        if (grad_x == nullptr || (in_place<S, A>(n) && !stream)) continue;
        put_row(grad_x + k * p.N, n, rows.grad_x[k], stream);
      }
    }
  }

  void finish() {
    for (int s = 0; p.T == 0 && s < kStates; ++s) {  // no step has written them
      if (p.grad_initial[s] == nullptr) continue;
      if (rows.grad_after[s] == nullptr) zero(n, carry[s]);
      const A* const row = rows.grad_after[s] == nullptr ? carry[s] : rows.grad_after[s];
      store_row(row_of<A>(p.grad_initial[s], 0, p.N, first), n, row);
    }
    const bool long_sums = p.T > kStretch;
    if (p.grad_x_sum != nullptr) {
      store_row(row_of<S>(p.grad_x_sum, 0, p.N, first), n, long_sums ? grad_x_total : grad_x_sum);
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
void backward(const Backward<Neuron>& p, const Normalised* norm, int64_t first, int64_t last, bool stream) {
  using Block = BackwardBlock<Neuron, S>;
  if (norm == nullptr) return run_blocks<Block, S>(p, nullptr, first, last, stream, kBlock);
  // Each chunk is a block, so that the sums do not depend on how the neurons are divided.
  Block& block = block_of_thread<Block>();
  block.open(p, norm, stream);
  block.set_steps(p, p.T);
  for (int64_t begin = first; begin < last; begin += norm->chunk) {
    const int64_t n = last - begin < norm->chunk ? last - begin : norm->chunk;
    block.run({begin, static_cast<int>(n), begin > first});
  }
  if (stream && kWholeLines) stream_fence();
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
