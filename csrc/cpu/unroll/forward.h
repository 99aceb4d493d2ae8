// All steps of some neurons, forward.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include <cstring>

#include "choose.h"
#include "normed.h"
#include "spans.h"
#include "stage.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename Neuron, typename S>
struct ForwardBlock {
  using A = Opmath<S>;
  static constexpr int kStates = Neuron::kStates, kMem = kStates - 1;

  Forward<Neuron> p;
  const Normalised* norm;
  Either<ForwardLoop<Neuron, A>> loops;
  ForwardRows<Neuron, A> rows;
  Ahead<Neuron, A> ahead;
  bool exceeds_caches, stream, looks_ahead, bits_in_place;
  int64_t first, rows_after;  // rows_after: the rows of the padding behind the steps
  int n;
  Lanes<A, Neuron::kParameters> lanes;
  alignas(64) A state[kStates][kLongBlock];
  alignas(64) A x_scratch[kSteps<A>][kLongBlock], spk_scratch[kSteps<A>][kLongBlock];
  alignas(64) A record_scratch[kStates][kSteps<A>][kLongBlock], deciding_scratch[kSteps<A>][kLongBlock];
  alignas(64) uint8_t bits_scratch[kLongBlock];

  void open(const Forward<Neuron>& problem, const Normalised* before, bool exceeds) {
    p = problem;
    norm = before;
    exceeds_caches = exceeds;
    bool record = p.saved == Saved::kSpikes || p.deciding != nullptr;
    for (const void* row : p.record) record |= row != nullptr;
    loops = choose_forward<Neuron, A>(p, record);
  }

  // Sets the number of steps of the neurons to come.
  void set_steps(const Forward<Neuron>& problem, int64_t steps) {
    p.T = steps;
    rows_after = problem.T - steps;
  }

  // Takes some neurons through all steps.
  void run(const Span& span) {
    first = span.first;
    n = span.n;
    stream = exceeds_caches && kWholeLines && is_aligned<S>(first);
    open_lanes(first, n, p, span.next, lanes);
    pad_all(n, state);
    pad_all(n, x_scratch);
    rows.stream_spk = stream && in_place<S, A>(n);
    looks_ahead = std::is_same_v<S, A> && (norm != nullptr || (exceeds_caches && in_place<S, A>(n) && !p.x_repeats));
    rows.ahead = looks_ahead ? &ahead : nullptr;
    bits_in_place = n % kColumn<A> == 0;
    // A membrane that is saved but not recorded is in a scratch row.
    rows.stream_record = rows.stream_spk && !(p.saved == Saved::kSpikes && p.record[kMem] == nullptr);
    for (int s = 0; s < kStates; ++s) {
      rows.before[s] = open_for_reading(row_of<const A>(p.initial[s], 0, p.N, first), n, state[s]);
    }
    S* const spk_sum = p.reduce ? row_of<S>(p.spk, 0, p.N, first) : nullptr;
    rows.sum = open_for_writing(spk_sum, n, spk_scratch[0]);
    if (rows.sum != nullptr) zero(in_columns<A>(n), rows.sum);
    for (int64_t t = 0, steps; t < p.T; t += steps) {
      steps = t + kSteps<A> <= p.T ? kSteps<A> : 1;
      run_steps(t, static_cast<int>(steps));
    }
    close(spk_sum, n, rows.sum);
    for (int s = 0; p.T == 0 && s < kStates; ++s) {  // no step has written the last states
      if (p.last[s] == nullptr) continue;
      if (rows.before[s] == nullptr) zero(n, state[s]);
      store_row(row_of<A>(p.last[s], 0, p.N, first), n, rows.before[s] == nullptr ? state[s] : rows.before[s]);
    }
    if (rows_after > 0) fill_padding();
  }

  // After its last step a sample keeps its states and does not spike.
  void fill_padding() {
    const int64_t end = p.T + rows_after;
    const auto zeros = [&](auto* tensor, int64_t from, int64_t to, bool non_temporal) {
      for (int64_t t = from; t < to && tensor != nullptr; ++t) put_zeros(tensor + t * p.N + first, n, non_temporal);
    };
    zeros(p.reduce ? nullptr : static_cast<S*>(p.spk), p.T, end, stream);
    zeros(static_cast<A*>(p.deciding), p.T, end, stream);
    zeros(static_cast<uint8_t*>(p.bits), saved_rows(Saved::kSpikes, p.T), saved_rows(Saved::kSpikes, end), false);
    for (int s = 0; s < kStates; ++s) {
      S* const record = static_cast<S*>(p.record[s]);
      if (rows.before[s] == nullptr) zeros(record, p.T, end, stream);
      for (int64_t t = p.T; t < end && record != nullptr && rows.before[s] != nullptr; ++t) {
        put_row(record + t * p.N + first, n, rows.before[s], stream);
      }
    }
  }

  void run_steps(int64_t t, int steps) {
    S* const spk = p.reduce ? nullptr : row_of<S>(p.spk, t, p.spk_stride, first - p.spk_first);
    A* const deciding = row_of<A>(p.deciding, t, p.N, first);
    const int64_t end = t + steps;
    const S* const x = row_of<const S>(p.x, t, p.x_stride(), first);
    rows.x = open_currents(norm, x, p.x_stride(), t, steps, first, n, x_scratch);
    rows.spk = open_for_writing(spk, p.spk_stride, n, spk_scratch);
    if (looks_ahead) look_ahead(end);
    uint8_t* const bits = row_of<uint8_t>(p.bits, t / 8, p.N, first);
    rows.bits = bits_in_place ? bits : bits_scratch;
    rows.bit = static_cast<int>(t % 8);
    rows.deciding = {nullptr, 0};
    if (deciding != nullptr) rows.deciding = open_for_writing(deciding, p.N, n, deciding_scratch);
    S* record[kStates];
    A* kept[kStates];
    for (int s = 0; s < kStates; ++s) {
      record[s] = row_of<S>(p.record[s], t, p.N, first);
      const bool needed = record[s] != nullptr || (s == kMem && p.saved == Saved::kSpikes);
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
    close(spk, p.spk_stride, steps, n, rows.spk, stream);
    if (bits != nullptr && !bits_in_place) std::memcpy(bits, bits_scratch, static_cast<size_t>(n));
    close(deciding, p.N, steps, n, rows.deciding, stream);
    for (int k = 0; k < steps && p.saved == Saved::kSpikes; ++k) save(t + k, rows.record[kMem][k]);
  }

  // Has the loops prefetch currents, up to those of the next loop, which begins at step t or with the next block. All
  // rows that are normalised for it are read before it, while nothing is computed.
  void look_ahead(int64_t t) {
    const int64_t start = t < p.T ? t : 0;
    const A* const next = row_of<const A>(p.x, start, p.N, t < p.T ? first : first + n);
    ahead.begin(norm != nullptr ? n : kLookAhead<A>, n);
    ahead.add(rows.x, {next, start + kSteps<A> <= p.T ? p.N : 0});
  }

  // Returns the row for the state after `end` steps, if it is returned or saved; else nullptr.
  A* row_to_keep(int s, int64_t end) {
    if (end == p.T) return row_of<A>(p.last[s], 0, p.N, first);
    if (p.saved != Saved::kCheckpoints || end % kCheckpoint != 0) return nullptr;
    return row_of<A>(p.rows, (end / kCheckpoint - 1) * kStates + s, p.N, first);
  }

  void save(int64_t t, const A* mem) {
    const Lane<A>& threshold = lanes.of[Problem<Neuron>::kThreshold];
    save_spikes(n, mem, threshold, static_cast<int>(t % 8), row_of<uint8_t>(p.rows, t / 8, p.N, first));
  }
};

template <typename Neuron, typename S>
void forward(const Forward<Neuron>& p, const Normalised* norm, int64_t first, int64_t last, bool stream) {
  run_blocks<ForwardBlock<Neuron, S>, S>(p, norm, first, last, stream, stream && kWholeLines ? kLongBlock : kBlock);
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
