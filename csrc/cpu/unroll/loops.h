// The loops over a row of neurons, for one time step or a few of them. choose.h chooses between them.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include <cstring>
#include <type_traits>

#include "../vec.h"
#include "kernels.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// ---- a column: the neurons that a loop takes at once

// The vectors of a column. Two hide the latency of the recurrence, but do not fit in 16 registers.
constexpr int kVectors = kRegisters == 32 ? 2 : 1;

template <typename A>
constexpr int kColumn = kVectors * Vec<A>::kSize;

// Rounds n up to whole columns.
template <typename A>
constexpr int in_columns(int n) {
  return (n + kColumn<A> - 1) / kColumn<A> * kColumn<A>;
}

// The time steps that a loop does for a column before it goes to the next column. States and parameters are then loaded
// once for all of these steps, and a processor's prefetcher can follow so many rows. Remaining steps are done one by
// one. So are those of float64, in which nobody trains: its loops for several steps would be a fifth of the code to
// compile.
template <typename A>
constexpr int kSteps = std::is_same_v<A, double> ? 1 : 4;

// Several values of each neuron of a column.
template <typename A, int Size>
struct Columns {
  Vec<A> at[kVectors][Size];

  SNN_HD Vec<A> (&operator[](int g)) [Size] { return at[g]; } SNN_HD const Vec<A> (&operator[](int g) const)[Size] {
    return at[g];
  }

  SNN_HD void fill(int s, A value) { SNN_UNROLL for (int g = 0; g < kVectors; ++g) at[g][s] = Vec<A>(value); }
  SNN_HD void load(int s, const A* from) {
    SNN_UNROLL for (int g = 0; g < kVectors; ++g) at[g][s] = Vec<A>::load(from + g * Vec<A>::kSize);
  }
  SNN_HD void load_or_zero(int s, const A* from, int i) {
    if (from == nullptr) {
      fill(s, A(0));
    } else {
      load(s, from + i);
    }
  }
  SNN_HD void store(int s, A* to) const {
    SNN_UNROLL for (int g = 0; g < kVectors; ++g) at[g][s].store(to + g * Vec<A>::kSize);
  }
  SNN_HD void put(int s, A* to, bool non_temporal) const {
    if (kWholeLines && non_temporal) {
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) stream(to + g * Vec<A>::kSize, at[g][s]);
    } else {
      store(s, to);
    }
  }
};

template <typename A>
constexpr int kLine = 64 / static_cast<int>(sizeof(A));  // the values of a cache line

// Whether column i is the first one in its cache lines.
template <typename A>
SNN_HD bool begins_line(int i) {
  return kColumn<A> >= kLine<A> || i % kLine<A> == 0;
}

// Has the cache lines of a column brought into the L1 cache.
template <typename A>
SNN_HD void prefetch(const A* column) {
  SNN_UNROLL for (int i = 0; i < kColumn<A>; i += kLine<A>) __builtin_prefetch(column + i);
}

// One value of each neuron of a column.
template <typename A>
struct Column : private Columns<A, 1> {
  using Base = Columns<A, 1>;

  SNN_HD Vec<A>& operator[](int g) { return this->at[g][0]; }
  SNN_HD const Vec<A>& operator[](int g) const { return this->at[g][0]; }

  SNN_HD void fill(A value) { Base::fill(0, value); }
  SNN_HD void load(const A* from) { Base::load(0, from); }
  SNN_HD void load_or_zero(const A* from, int i) { Base::load_or_zero(0, from, i); }
  SNN_HD void store(A* to) const { Base::store(0, to); }
  SNN_HD void put(A* to, bool non_temporal) const { Base::put(0, to, non_temporal); }
};

// ---- spikes as bits

template <typename A>
using Bits = typename Vec<A>::Mask;

// Puts bits into the bytes of some neurons, from bit `first` on. Bit 0 begins the bytes anew.
template <typename A>
SNN_HD void put_bits(Bits<A> bits, int first, uint8_t* to) {
  typedef uint8_t Bytes __attribute__((vector_size(Vec<A>::kSize)));
  Bytes bytes;
  resize(bits << first, bytes);
  if (first != 0) {
    Bytes before;
    std::memcpy(&before, to, sizeof before);
    bytes |= before;
  }
  std::memcpy(to, &bytes, sizeof bytes);
}

// ---- what a loop works on

// The same row of several time steps, `stride` values from one to the next, or 0 if one row is for all.
template <typename A>
struct Rows {
  A* first;
  int64_t stride;

  SNN_HD A* operator[](int k) const { return first + k * stride; }
};

// How many neurons before it reads a column a loop prefetches it: 8 KiB of the rows of a tensor. With less, the memory
// has not answered yet; with more, the lines may have left the L1 cache again.
template <typename A>
constexpr int kLookAhead = 8192 / kSteps<A> / static_cast<int>(sizeof(A));

// What a loop prefetches: columns of rows that it reads itself, and behind their end those that the next loop begins
// with. A processor's own prefetcher begins anew with each row and each page.
template <typename Neuron, typename A>
struct Ahead {
  struct {
    Rows<const A> now, next;
  } of[1 + Neuron::kStates];
  int count, distance;  // distance: neurons from the column that is read to the one that is prefetched

  void begin(int neurons, int n) { count = 0, distance = neurons < n ? neurons : n; }
  void add(const Rows<const A>& now, const Rows<const A>& next) { of[count++] = {now, next}; }

  // Not inlined, because it would be in every loop.
  template <int Steps>
  __attribute__((noinline)) void bring(int i, int n) const {
    const int at = i + distance;
    for (int j = 0; j < count; ++j) {
      const Rows<const A>& rows = at < n ? of[j].now : of[j].next;
      SNN_UNROLL for (int k = 0; k < Steps; ++k) prefetch(rows[k] + (at < n ? at : at - n));
    }
  }
};

template <typename A>
struct Lane {  // the values of one parameter: one for each neuron of a block, or a column of equal ones
  alignas(64) A values[kLongBlock];
  int mask;  // of an index: all bits, or 0 for equal values
};

template <typename A, int Parameters>
struct Lanes {
  Lane<A> of[Parameters];

  SNN_HD void load(int i, Columns<A, Parameters>& p) const {
    SNN_UNROLL for (int j = 0; j < Parameters; ++j) p.load(j, of[j].values + (i & of[j].mask));
  }
};

// The length of the longest block of a backward pass.
template <typename A>
constexpr int kMost = sizeof(A) == 4 ? kLongBlock : kBlock;

template <typename A, int Parameters>
struct Sums {  // gradients of the parameters, summed over time
  alignas(64) A of[Parameters][kMost<A>];
};

// ---- forward

enum class Spikes { kEach, kSum, kBits, kUnused };

template <typename Neuron, typename A>
struct ForwardRows {
  const A* before[Neuron::kStates];  // states before the first step; nullptr: 0
  A* after[Neuron::kStates];         // states after the last step
  Rows<const A> x;
  const Ahead<Neuron, A>* ahead;    // or nullptr
  Rows<A> spk;                      // or
  A* sum;                           // one row for all steps, to which the spikes are added; or
  uint8_t* bits;                    // one row for up to eight steps
  int bit;                          // the bit of the first step
  Rows<A> record[Neuron::kStates];  // states after each step, or nullptr
  Rows<A> deciding;                 // the membrane that decided each spike, or nullptr
  bool stream_spk, stream_record;   // whether to use non-temporal stores
};

template <typename Neuron, typename A>
using ForwardLoop = void (*)(int n, const ForwardRows<Neuron, A>& rows, const Lanes<A, Neuron::kParameters>& lanes);

template <typename Neuron, typename A, Reset R, bool Delay, bool Record, Spikes Spk, int Steps>
void forward_loop(int n, const ForwardRows<Neuron, A>& rows, const Lanes<A, Neuron::kParameters>& lanes) {
  constexpr int kStates = Neuron::kStates;
  constexpr ResetRule kRule{R, Delay};
  const ForwardRows<Neuron, A> row = rows;
  for (int i = 0; i < n; i += kColumn<A>) {
    if (row.ahead != nullptr && begins_line<A>(i)) row.ahead->template bring<Steps>(i, n);
    Columns<A, Neuron::kParameters> p;
    lanes.load(i, p);
    Columns<A, kStates> state;
    SNN_UNROLL for (int s = 0; s < kStates; ++s) state.load_or_zero(s, row.before[s], i);
    Column<A> x, spk, sum, v;
    if (Spk == Spikes::kSum) sum.load(row.sum + i);
    Bits<A> bits[kVectors] = {};
    SNN_UNROLL for (int k = 0; k < Steps; ++k) {
      x.load(row.x[k] + i);
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        const Fired<Vec<A>> fired = Neuron::step(kRule, x[g], state[g], p[g]);
        spk[g] = fired.spk;
        v[g] = fired.v;
        if (Spk == Spikes::kSum) sum[g] += fired.spk;
        if (Spk == Spikes::kBits) bits[g] |= fires<Neuron>(fired.v, p[g][Neuron::kParameters - 2]) & (1 << k);
      }
      if (Spk == Spikes::kEach) spk.put(row.spk[k] + i, row.stream_spk);
      if (!Record) continue;
      SNN_UNROLL for (int s = 0; s < kStates; ++s) {
        if (row.record[s].first != nullptr) state.put(s, row.record[s][k] + i, row.stream_record);
      }
      if (row.deciding.first != nullptr) v.put(row.deciding[k] + i, row.stream_record);
    }
    SNN_UNROLL for (int s = 0; s < kStates; ++s) state.store(s, row.after[s] + i);
    if (Spk == Spikes::kSum) sum.store(row.sum + i);
    if (Spk == Spikes::kBits) {
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) put_bits<A>(bits[g], row.bit, row.bits + i + g * Vec<A>::kSize);
    }
  }
}

// ---- backward

template <typename Neuron, typename A>
struct AdjointRows {
  const A* before[Neuron::kStates];  // states before the first step; nullptr: 0
  Rows<const A> x;                   // or
  const Ahead<Neuron, A>* ahead;     // or nullptr
  Rows<const A> mem;                 // the membrane that decided each spike
  Rows<const A> derivative;          // that of the spikes, if it is given
  Rows<const A> grad_spk;
  Rows<const A> grad[Neuron::kStates];   // gradients of the states that were recorded after each step; nullptr: 0
  const A* grad_after[Neuron::kStates];  // gradients of the states after the last step, from later steps; nullptr: 0
  A* grad_before[Neuron::kStates];       // gradients of the states before the first step
  Rows<A> grad_x;                        // or
  A* grad_x_sum;                         // one row for all steps, to which their gradients are added
  SurrogateKind surrogate;
  A a, b;       // coefficients of the surrogate
  bool stream;  // whether to write grad_x by non-temporal stores
};

template <typename Neuron, typename A>
using AdjointLoop = void (*)(int n, const AdjointRows<Neuron, A>& rows, const Lanes<A, Neuron::kParameters>& lanes,
                             Sums<A, Neuron::kParameters>& sums);

// Takes the place of a functor of math/surrogate.h: the derivative, or the kind of the surrogate, is given at run time.
struct AnySurrogate {};

// Computes the derivatives for the steps of a column. Surrogates that networks rarely use share this function. It is
// not inlined: in every loop, these surrogates would be half of the library, and take minutes to compile.
template <typename A, int Steps>
__attribute__((noinline)) void differentiate_any(SurrogateKind kind, const Column<A> (&v)[Steps],
                                                 const Column<A>& threshold, Vec<A> a, Vec<A> b,
                                                 Column<A> (&derivative)[Steps]) {
  visit_surrogate(kind, [&](auto surrogate) {
    SNN_UNROLL for (int k = 0; k < Steps; ++k) {
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        derivative[k][g] = decltype(surrogate)::derivative(v[k][g] - threshold[g], a, b);
      }
    }
  });
}

template <typename Neuron, typename A, typename Surrogate, Reset R, bool Delay, bool Recorded, bool ParameterGradients,
          int Steps>
void adjoint_loop(int n, const AdjointRows<Neuron, A>& rows, const Lanes<A, Neuron::kParameters>& lanes,
                  Sums<A, Neuron::kParameters>& sums) {
  using V = Vec<A>;
  constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters, kThreshold = kParameters - 2;
  constexpr ResetRule kRule{R, Delay};
  constexpr bool kAny = std::is_same_v<Surrogate, AnySurrogate>;
  constexpr bool kThroughSpike = !std::is_same_v<Surrogate, NoSurrogate>;
  const AdjointRows<Neuron, A> row = rows;
  const V a(row.a), b(row.b);
  for (int i = 0; i < n; i += kColumn<A>) {
    if (row.ahead != nullptr && begins_line<A>(i)) row.ahead->template bring<Steps>(i, n);
    Columns<A, kParameters> p;
    lanes.load(i, p);
    Column<A> threshold;
    SNN_UNROLL for (int g = 0; g < kVectors; ++g) threshold[g] = p[g][kThreshold];

    Columns<A, kStates> u[Steps + 1];  // states before each step
    Column<A> v[Steps], x[Steps];      // the membrane that decided its spike, and its current
    SNN_UNROLL for (int s = 0; s < kStates; ++s) u[0].load_or_zero(s, row.before[s], i);
    SNN_UNROLL for (int k = 0; k < Steps; ++k) {
      if constexpr (Recorded) {
        v[k].load(row.mem[k] + i);
        x[k].fill(A(0));
        SNN_UNROLL for (int g = 0; g < kVectors; ++g) u[k + 1][g][0] = v[k][g];
      } else {
        x[k].load(row.x[k] + i);
        u[k + 1] = u[k];
        SNN_UNROLL for (int g = 0; g < kVectors; ++g) v[k][g] = Neuron::step(kRule, x[k][g], u[k + 1][g], p[g]).v;
      }
    }

    Columns<A, kStates> carry;
    Columns<A, kParameters> sum;
    Column<A> dx, dx_sum;
    SNN_UNROLL for (int s = 0; s < kStates; ++s) carry.load_or_zero(s, row.grad_after[s], i);
    dx_sum.load_or_zero(row.grad_x_sum, i);
    SNN_UNROLL for (int j = 0; j < kParameters; ++j) {
      sum.load_or_zero(j, ParameterGradients ? sums.of[j] : nullptr, i);
    }
    Column<A> derivative[Steps];
    if constexpr (kAny) {
      if (row.derivative.first == nullptr) {
        differentiate_any<A, Steps>(row.surrogate, v, threshold, a, b, derivative);
      } else {
        SNN_UNROLL for (int k = 0; k < Steps; ++k) derivative[k].load(row.derivative[k] + i);
      }
    }
    SNN_UNROLL for (int k = Steps - 1; k >= 0; --k) {
      Column<A> grad_spk;
      Columns<A, kStates> grad;
      grad_spk.load(row.grad_spk[k] + i);
      SNN_UNROLL for (int s = 0; s < kStates; ++s) {
        if (row.grad[s].first == nullptr) {
          grad.fill(s, A(0));
        } else {
          grad.load(s, row.grad[s][k] + i);
        }
      }
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        if constexpr (!kAny) derivative[k][g] = Surrogate::derivative(v[k][g] - threshold[g], a, b);
        const Given<V> given{grad_spk[g], derivative[k][g], kThroughSpike};
        dx[g] = Neuron::adjoint(kRule, x[k][g], u[k][g], v[k][g], given, grad[g], p[g], carry[g], sum[g]);
      }
      if (row.grad_x_sum == nullptr) {
        dx.put(row.grad_x[k] + i, row.stream);
      } else {
        SNN_UNROLL for (int g = 0; g < kVectors; ++g) dx_sum[g] += dx[g];
      }
    }
    SNN_UNROLL for (int s = 0; s < kStates; ++s) carry.store(s, row.grad_before[s] + i);
    if (row.grad_x_sum != nullptr) dx_sum.store(row.grad_x_sum + i);
    if (ParameterGradients) {
      SNN_UNROLL for (int j = 0; j < kParameters; ++j) sum.store(j, sums.of[j] + i);
    }
  }
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
