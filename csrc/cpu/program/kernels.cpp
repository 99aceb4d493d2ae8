// All steps of blocks of neurons by a program, and their derivative. Compiled once for each instruction set, as
// ../kernels.cpp, whose rules hold here too.
//
// A register is a pointer. Where it can, it points into the row of a tensor, so that nothing is copied: rows of series
// and gradients are read, and rows of results written, in place. A state has two rows, which it changes between.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../convert.h"
#include "../unroll/normed.h"
#include "../unroll/outputs.h"
#include "instructions.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

using namespace program;

constexpr int64_t kAhead = 3;  // steps from a row that is read to the one that is fetched meanwhile

template <typename A>
constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(A));

template <typename A>
void fill(A* row, double value) {
  for (int64_t i = 0; i < kBlock<A>; ++i) row[i] = static_cast<A>(value);
}

// What both directions have: the neurons of the block, rows of scratch memory, and registers of what is given.
template <typename S>
struct Block {
  using A = Opmath<S>;

  const Program& p;
  A** const registers;
  const int64_t side;
  static constexpr int64_t kStride = kRowBytes / static_cast<int64_t>(sizeof(A));  // of rows of scratch memory
  int64_t first = 0, at_first = 0;  // a neuron, and its place in a tensor of all steps
  int64_t behind = -1;              // the place of the next block, if there is one
  int n = 0, padded = 0;            // padded: to whole vectors
  bool whole = false;               // whether the rows of tensors are whole vectors

  Block(const Program& program, const Workspace& workspace)
      : p(program),
        registers(reinterpret_cast<A**>(workspace.registers)),
        side(program.side()),
        next_(static_cast<char*>(workspace.rows)) {
    series_ = rows(p.series);
    parameters_ = rows(p.parameters);
    char* const constants = rows(p.constants);
    for (int c = 0; c < p.constants; ++c) {
      registers[first_constant() + c] = at(constants, c);
      fill(at(constants, c), p.constant[c]);
    }
    for (int j = 0; j < p.parameters; ++j) {
      if (p.parameter[j].data == nullptr) fill(at(parameters_, j), p.parameter[j].number);
    }
  }

  int first_parameter() const { return p.series + p.states; }
  int first_constant() const { return first_parameter() + p.parameters; }
  int behind_constants() const { return first_constant() + p.constants; }

  char* rows(int64_t count) {
    char* const found = next_;
    next_ += count * kRowBytes;
    return found;
  }
  static A* at(char* rows, int64_t row) { return reinterpret_cast<A*>(rows + row * kRowBytes); }

  void make_temporaries(int from) {
    temporaries_ = rows(p.temporaries);
    place_temporaries(from);
  }
  void place_temporaries(int from) {
    for (int r = 0; r < p.temporaries; ++r) registers[from + r] = at(temporaries_, r);
  }

  void open(int64_t number) {
    const int64_t blocks = (side + kBlock<A> - 1) / kBlock<A>, begin = number % blocks * kBlock<A>;
    const auto place = [&](int64_t block) { return block / blocks * p.T * side + block % blocks * kBlock<A>; };
    first = number / blocks * side + begin;
    at_first = place(number);
    behind = number + 1 < p.samples * blocks ? place(number + 1) : -1;
    n = static_cast<int>(std::min(side - begin, kBlock<A>));
    padded = (n + Vec<A>::kSize - 1) / Vec<A>::kSize * Vec<A>::kSize;
    whole = n == padded;
    for (int j = 0; j < p.parameters; ++j) {
      registers[first_parameter() + j] = at(parameters_, j);
      if (p.parameter[j].data != nullptr) registers[first_parameter() + j] = row(p.parameter[j], at(parameters_, j));
    }
  }

  // A row: in place, or a copy.
  A* row(const S* from, A* copy) const {
    if constexpr (std::is_same_v<S, A>) {
      if (whole) return const_cast<A*>(from);  // which no instruction writes to
    }
    load_row(from, n, copy);
    return copy;
  }
  A* row(const Parameter& parameter, A* copy) const {
    const A* const from = static_cast<const A*>(parameter.data);
    const int64_t begin = first % parameter.period;
    if (whole && begin + n <= parameter.period) return const_cast<A*>(from + begin);
    for (int64_t i = 0, at = begin; i < n; ++i) {
      copy[i] = from[at];
      if (++at == parameter.period) at = 0;
    }
    return copy;
  }
  A* row(const Series& series, int64_t t, A* copy) const {
    const int64_t at = series.stride == 0 ? first : at_first + t * series.stride;
    return row(static_cast<const S*>(series.data) + at, copy);
  }

  // Normalises the series that is, for some steps at a time.
  void make_normed() { normed_ = rows(p.currents()); }
  void open_normed(int64_t start, int64_t steps) {
    if constexpr (std::is_same_v<S, float>) {
      each_normed(start, steps, [&](int64_t k, int64_t together, const float* x, int64_t stride) {
        normalise(*p.norm, x, start + k, first, n, at(normed_, k), nullptr, together, stride, kStride);
      });
    }
  }

  // Adds the gradients of what was normalised to the sums of the channels: over the steps that have the same numbers,
  // and then over the neurons. Of the rows of scratch memory, `a` and `b` are two.
  void add_normed(int64_t start, int64_t steps, const A* grad, int64_t grad_stride, A* a, A* b) {
    if constexpr (std::is_same_v<S, float>) {
      each_normed(start, steps, [&](int64_t k, int64_t together, const float* x, int64_t stride) {
        const float* const means[] = {p.norm->row(start + k, Normalised::kMean)};
        const float* const of_step = grad + k * grad_stride;
        each_of_channels(p.norm->channels, means, first, n, true, [=]<typename V>(int i, const V(&mean)[1]) {
          V s(A(0)), t(A(0));
          for (int64_t j = 0; j < together; ++j) {
            const V of = lanes_at<V>(of_step + j * grad_stride + i);
            s += of;
            t += of * (lanes_at<V>(x + j * stride + i) - mean[0]);
          }
          put_lanes(a + i, s);
          put_lanes(b + i, t);
        });
        add_to_sums(p.norm->channels, first, n, p.norm->sums_of(start + k), [=]<typename V>(int64_t i, V& s, V& t) {
          s = lanes_at<V>(a + i);
          t = lanes_at<V>(b + i);
        });
      });
    }
  }

  // Calls f(the first of them, how many, its input, from one input to the next) for steps that have the same numbers.
  template <typename F>
  void each_normed(int64_t start, int64_t steps, F&& f) const {
    const Series& of = p.in[p.normed];
    const auto* const x = static_cast<const S*>(of.data) + at_first + start * of.stride;
    const int64_t together = p.norm->over_time ? steps : 1;
    for (int64_t k = 0; k < steps; k += together) f(k, together, x + k * of.stride, of.stride);
  }

  void open_series(int64_t t, int64_t next) {
    for (int k = 0; k < p.series; ++k) {
      if (k == p.normed) {
        registers[k] = at(normed_, t % kCheckpoint);
      } else if (p.in[k].numbers != nullptr) {
        fill(registers[k] = at(series_, k), p.in[k].numbers[t]);
      } else {
        registers[k] = row(p.in[k], t, at(series_, k));
        if (next >= 0) prefetch(p.in[k].data, p.in[k].stride, next);
      }
    }
  }

  // The same neurons in another step are on another page, of which the processor fetches nothing by itself. Steps from
  // T on are those of the next block.
  void prefetch(const void* tensor, int64_t stride, int64_t t) const {
    const int64_t place = t < p.T ? at_first : behind, step = t < p.T ? t : t - p.T;
    if (step < 0 || step >= p.T || place < 0 || stride == 0) return;
    const char* const from = reinterpret_cast<const char*>(static_cast<const S*>(tensor) + step * stride + place);
    for (int64_t byte = 0; byte < n * static_cast<int64_t>(sizeof(S)); byte += 64) __builtin_prefetch(from + byte);
  }

  // Whether a register can lie in the row of a result.
  bool writes_in_place() const { return std::is_same_v<S, A> && whole && !p.stream; }

  A* result_row(void* tensor, int64_t t) const {
    return reinterpret_cast<A*>(static_cast<S*>(tensor) + at_first + t * side);
  }

  void write(void* tensor, int64_t t, const A* from) const {
    S* const to = static_cast<S*>(tensor) + at_first + t * side;
    if constexpr (std::is_same_v<S, A>) {
      if (p.stream && whole) {
        for (int i = 0; i < n; i += Vec<A>::kSize) stream(to + i, Vec<A>::load(from + i));
        return;
      }
    }
    store_row(to, n, from);
  }

  // The block's part of [N] opmath: in place, or a copy. A row that is written goes back by `leave`.
  A* state(const Parameter& from, A* copy) const {
    if (from.data != nullptr) return state(from.data, copy);
    fill(copy, from.number);
    return copy;
  }
  A* state(const void* from, A* copy) const {
    A* const row = static_cast<A*>(const_cast<void*>(from)) + first;
    return whole ? row : take(copy, row);
  }
  void leave(void* to, const A* from) const {
    A* const row = static_cast<A*>(to) + first;
    if (row != from) take(row, from);
  }
  A* take(A* to, const A* from) const {
    return static_cast<A*>(std::memcpy(to, from, static_cast<size_t>(n) * sizeof(A)));
  }

 private:
  char *next_, *series_, *parameters_, *temporaries_ = nullptr, *normed_ = nullptr;
};

template <typename A>
void add_up(int n, const A* from, double* to) {
  for (int i = 0; i < n; ++i) to[i] += from[i];
}

// Enters which numbers of a row are not 0 as the bit of step `t` of eight, in words as wide as the numbers.
template <typename A>
void enter_bits(int n, const A* from, int64_t t, A* words) {
  using Mask = typename Vec<A>::Mask;
  const Mask bit = Mask{} + (1 << t % 8);
  for (int i = 0; i < n; i += Vec<A>::kSize) {
    const Mask found = Mask(Vec<A>::load(from + i).r != 0) & bit;
    const Mask before = t % 8 == 0 ? Mask{} : reinterpret_cast<Mask>(Vec<A>::load(words + i).r);
    Vec<A>(reinterpret_cast<typename Vec<A>::Value>(before | found)).store(words + i);
  }
}

template <typename A>
void write_bits(int n, const A* words, uint8_t* to) {
  std::conditional_t<sizeof(A) == sizeof(int32_t), uint32_t, uint64_t> word;
  for (int i = 0; i < n; ++i) {
    std::memcpy(&word, words + i, sizeof word);
    to[i] = static_cast<uint8_t>(word);
  }
}

template <typename S>
void forward(const Forward& p, int64_t begin, int64_t end, const Workspace& workspace) {
  Block<S> block(p, workspace);
  using A = typename Block<S>::A;
  A** const registers = block.registers;
  char* const states = block.rows(2 * p.states);
  A* const words = block.at(block.rows(1), 0);
  block.make_normed();
  block.make_temporaries(block.behind_constants());
  for (int64_t b = begin; b < end; ++b) {
    block.open(b);
    block.place_temporaries(block.behind_constants());  // none in a row of the block before, which may be longer
    const bool in_place = block.writes_in_place();
    for (int s = 0; s < p.states; ++s) {
      registers[p.series + s] = block.state(p.initial[s], block.at(states, 2 * s + 1));
    }
    for (int64_t t = 0; t < p.T; ++t) {
      if (p.normed >= 0) {
        const int64_t start = t / kCheckpoint * kCheckpoint, steps = std::min(p.T - start, kCheckpoint);
        if (t == start) block.open_normed(start, steps);
        block.prefetch(p.in[p.normed].data, p.in[p.normed].stride, t + steps);
      }
      if (p.checkpoints != nullptr && t % kCheckpoint == 0) {
        for (int s = 0; s < p.states; ++s) {
          block.leave(static_cast<A*>(p.checkpoints) + (t / kCheckpoint * p.states + s) * p.N, registers[p.series + s]);
        }
      }
      block.open_series(t, t + kAhead);
      for (int s = 0; s < p.states; ++s) {
        const bool last = t == p.T - 1 && block.whole;
        registers[p.state_at[s]] = last ? block.state(p.last[s], nullptr) : block.at(states, 2 * s + t % 2);
      }
      for (int o = 0; o < p.outputs; ++o) {
        if (!in_place || !p.in_place[o]) continue;
        registers[p.output_at[o]] = block.result_row(p.output[o], t);
        block.prefetch(p.output[o], block.side, t + kAhead);
      }
      run<A>(p.step, registers, block.padded);
      for (int o = 0; o < p.outputs; ++o) {
        if (o == p.bits) {
          enter_bits<A>(block.padded, registers[p.output_at[o]], t, words);
          if (t % 8 != 7 && t != p.T - 1) continue;
          write_bits<A>(block.n, words, static_cast<uint8_t*>(p.output[o]) + t / 8 * p.N + block.first);
        } else if (!(in_place && p.in_place[o])) {
          block.write(p.output[o], t, registers[p.output_at[o]]);
        }
      }
      for (int s = 0; s < p.states; ++s) registers[p.series + s] = registers[p.state_at[s]];
    }
    for (int s = 0; s < p.states; ++s) block.leave(p.last[s], registers[p.series + s]);
  }
  if (p.stream) stream_fence();
}

// From one row of such a gradient to the next: products are written in whole columns, also behind a row.
template <typename A>
constexpr int64_t kLinearStride = kLinearRows / kSteps<A> * kRowBytes / static_cast<int64_t>(sizeof(A));

template <typename S>
void backward(const Backward& p, int64_t begin, int64_t end, const Workspace& workspace) {
  Block<S> block(p, workspace);
  using A = typename Block<S>::A;
  A** const registers = block.registers;
  const int grads = block.behind_constants(), carries = grads + p.outputs, temporaries = carries + p.states;
  char* const grad_rows = block.rows(p.outputs);
  char* const carry_rows = block.rows(2 * p.states);
  char* const tape_states = block.rows((p.taped() + 1) * p.states);
  char* const tape_saved = block.rows(p.taped() * p.saved);
  char* const sums = block.rows(p.parameters);        // over the steps between two checkpoints
  char* const totals = block.rows(2 * p.parameters);  // double
  auto& linear = *reinterpret_cast<A(*)[kSteps<A>][kLinearStride<A>]>(block.rows(kLinearRows));
  block.make_normed();
  const bool sums_normed = p.normed >= 0 && p.norm->sums != nullptr;
  char* const normed_grads = block.rows(sums_normed ? p.taped() : 0);
  char* const normed_sums = block.rows(sums_normed ? 2 : 0);
  A** const kept = registers + p.registers();  // the states before the steps between two checkpoints
  A** const running = kept + p.states;         // where sums are
  block.make_temporaries(temporaries);
  const auto total = [&](int j) { return reinterpret_cast<double*>(totals + 2 * j * kRowBytes); };
  const auto adds_up = [&](int j) { return p.parameter_at[j] >= 0 && p.running == nullptr; };
  const auto point = [&](int64_t k) {  // registers of what the tape has of a step
    for (int s = 0; s < p.states; ++s) {
      registers[p.series + s] = k == 0 ? kept[s] : block.at(tape_states, k * p.states + s);
      if (p.state_at[s] >= 0) registers[p.state_at[s]] = block.at(tape_states, (k + 1) * p.states + s);
    }
    for (int v = 0; v < p.saved; ++v) registers[p.saved_at[v]] = block.at(tape_saved, k * p.saved + v);
  };
  const int64_t last = (p.T - 1) / kCheckpoint * kCheckpoint;
  for (int64_t b = begin; b < end; ++b) {
    block.open(b);
    const bool in_place = block.writes_in_place();
    for (int s = 0; s < p.states; ++s) {
      A* const copy = block.at(carry_rows, 2 * s + p.T % 2);  // the other one than the last step writes
      registers[carries + s] = block.state(p.grad_last[s], copy);
    }
    for (int j = 0; j < p.parameters; ++j) {
      for (int i = 0; i < block.padded && adds_up(j); ++i) total(j)[i] = 0;
    }
    for (int64_t start = p.T == 0 ? -1 : last; start >= 0; start -= kCheckpoint) {
      const int64_t steps = p.T - start < kCheckpoint ? p.T - start : kCheckpoint;
      const int64_t after = start > 0 ? start - kCheckpoint : p.T + last;  // the step that is read next
      block.place_temporaries(temporaries);  // none in a row of a result, or where a carry is
      for (int s = 0; s < p.states; ++s) {
        const int64_t row = start / kCheckpoint * p.states + s;
        kept[s] = block.state(static_cast<const A*>(p.checkpoints) + row * p.N, block.at(tape_states, s));
      }
      if (p.normed >= 0) block.open_normed(start, steps);
      for (int64_t k = 0; k < steps; ++k) {
        block.open_series(start + k, k + kAhead < steps ? start + k + kAhead : -1);
        point(k);
        run<A>(p.again, registers, block.padded);
      }
      for (int j = 0; j < p.parameters; ++j) {
        if (p.parameter_at[j] < 0) continue;
        running[j] = block.at(sums, j);
        if (p.running == nullptr) {
          fill(running[j], 0);
        } else {
          running[j] = block.state(p.running[j], running[j]);
        }
      }
      for (int64_t k = steps - 1; k >= 0; --k) {
        const int64_t t = start + k, before = t >= kAhead ? t - kAhead : 2 * p.T + t - kAhead;
        block.open_series(t, k < kAhead ? after + kAhead - 1 - k : -1);
        point(k);
        for (int o = 0; o < p.outputs; ++o) {
          if (o == p.spikes) {
            const int64_t group = k / kSteps<A> * kSteps<A>;
            if (k == steps - 1 || k == group + kSteps<A> - 1) {
              const int count = static_cast<int>(k - group + 1);
              through_weight(p.linear, p.N, start + group, count, block.first, block.n, linear);
            }
            registers[grads + o] = linear[k - group];
            continue;
          }
          registers[grads + o] = block.row(p.grad_output[o], t, block.at(grad_rows, o));
          block.prefetch(p.grad_output[o].data, p.grad_output[o].stride, before);
        }
        for (int s = 0; s < p.states; ++s) {
          const bool last = t == 0 && block.whole;
          registers[p.carry_at[s]] =
              last ? block.state(p.grad_initial[s], nullptr) : block.at(carry_rows, 2 * s + t % 2);
        }
        for (int x = 0; x < p.series; ++x) {
          if (!p.in_place[x]) continue;
          if (!in_place && x == p.normed) registers[p.series_at[x]] = block.at(normed_grads, k);
          if (!in_place) continue;
          registers[p.series_at[x]] = block.result_row(p.grad_series[x], t);
          block.prefetch(p.grad_series[x], block.side, before);
        }
        run<A>(p.derivative, registers, block.padded);
        if (p.normed >= 0) block.prefetch(p.in[p.normed].data, p.in[p.normed].stride, after + k);
        for (int x = 0; x < p.series; ++x) {
          if (p.series_at[x] < 0 || (in_place && p.in_place[x])) continue;
          if (x == p.normed) {  // until it is summed
            if (!p.in_place[x]) block.take(block.at(normed_grads, k), registers[p.series_at[x]]);
            continue;
          }
          block.write(p.grad_series[x], t, registers[p.series_at[x]]);
        }
        for (int j = 0; j < p.parameters; ++j) {
          if (p.parameter_at[j] < 0) continue;
          binary<Add, A>(block.padded, running[j], running[j], registers[p.parameter_at[j]], running[j], running[j]);
        }
        for (int s = 0; s < p.states; ++s) registers[carries + s] = registers[p.carry_at[s]];
      }
      if (sums_normed) {
        const bool there = in_place && p.in_place[p.normed];
        const A* const grad = there ? block.result_row(p.grad_series[p.normed], start) : block.at(normed_grads, 0);
        block.add_normed(start, steps, grad, there ? block.side : block.kStride, block.at(normed_sums, 0),
                         block.at(normed_sums, 1));
        for (int64_t k = 0; k < steps && !there; ++k) {
          block.write(p.grad_series[p.normed], start + k, block.at(normed_grads, k));
        }
      }
      for (int j = 0; j < p.parameters; ++j) {
        if (p.parameter_at[j] < 0) continue;
        if (p.running != nullptr) {
          block.leave(p.running[j], running[j]);
        } else {
          add_up(block.n, running[j], total(j));
        }
      }
    }
    for (int s = 0; s < p.states; ++s) block.leave(p.grad_initial[s], registers[carries + s]);
    for (int j = 0; j < p.parameters; ++j) {
      if (!adds_up(j)) continue;
      if (p.parameter[j].data != nullptr) {
        std::memcpy(p.grad_parameter[j] + block.first, total(j), static_cast<size_t>(block.n) * sizeof(double));
        continue;
      }
      double sum = 0;
      for (int i = 0; i < block.n; ++i) sum += total(j)[i];
      p.grad_parameter[j][b] = sum;
    }
  }
  if (p.stream) stream_fence();
}

}  // namespace

const program::Kernels& program_kernels() {
  static constexpr program::Kernels kAll{
      {forward<float>, forward<double>, forward<Half>, forward<BFloat16>},
      {backward<float>, backward<double>, backward<Half>, backward<BFloat16>},
      kOperations,
  };
  return kAll;
}

}  // namespace snnfast::cpu::SNN_ISA
