// The loops over a row of neurons, for one time step or a few of them, and their choice by run-time options.
//
// Part of lif_kernels.cpp, whose rules hold here too.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// ---- a column: the neurons that a loop takes at once

// Vectors of a column. Two hide the latency of the recurrence; with 16 registers they would not fit.
constexpr int kVectors = kVectorBytes == 64 ? 2 : 1;

template <typename A>
constexpr int kColumn = kVectors * Vec<A>::kSize;

// Values of the whole columns that n neurons take.
template <typename A>
constexpr int in_columns(int n) {
  return (n + kColumn<A> - 1) / kColumn<A> * kColumn<A>;
}

// Time steps that a loop does for a column before it goes to the next: state and parameters are then loaded once for
// all of them, and no more rows are open than a processor's prefetcher follows. What is left over is done one by one.
constexpr int kSteps = 4;

#define SNN_UNROLL _Pragma("GCC unroll 8")

template <typename A>
struct Column {
  Vec<A> at[kVectors];

  SNN_HD Vec<A>& operator[](int i) { return at[i]; }
  SNN_HD const Vec<A>& operator[](int i) const { return at[i]; }

  SNN_HD void fill(A value) { SNN_UNROLL for (int g = 0; g < kVectors; ++g) at[g] = Vec<A>(value); }
  SNN_HD void load(const A* from) {
    SNN_UNROLL for (int g = 0; g < kVectors; ++g) at[g] = Vec<A>::load(from + g * Vec<A>::kSize);
  }
  SNN_HD void load_or_zero(const A* from, int i) {
    if (from == nullptr) {
      fill(A(0));
    } else {
      load(from + i);
    }
  }
  SNN_HD void store(A* to) const { SNN_UNROLL for (int g = 0; g < kVectors; ++g) at[g].store(to + g * Vec<A>::kSize); }
  SNN_HD void put(A* to, bool past_the_caches) const {
    if (past_the_caches) {
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) stream(to + g * Vec<A>::kSize, at[g]);
    } else {
      store(to);
    }
  }
};

// ---- what a loop works on

// The same row of several time steps: `stride` values from one to the next, 0 where it is one for all.
template <typename A>
struct Rows {
  A* first;
  int64_t stride;

  SNN_HD A* operator[](int k) const { return first + k * stride; }
};

template <typename A>
struct Lane {  // of one parameter: a value for each neuron of a block, or a column of one and the same
  alignas(64) A values[kLongBlock];
  int mask;  // of an index: 0 or all bits
};

template <typename A>
struct Lanes {
  Lane<A> beta, threshold, graded;

  SNN_HD void load(int i, Neuron<Vec<A>> (&neurons)[kVectors]) const {
    Column<A> b, t, g;
    b.load(beta.values + (i & beta.mask));
    t.load(threshold.values + (i & threshold.mask));
    g.load(graded.values + (i & graded.mask));
    SNN_UNROLL for (int j = 0; j < kVectors; ++j) neurons[j] = {b[j], t[j], g[j]};
  }
};

// The longest block of a backward pass.
template <typename A>
constexpr int kMost = sizeof(A) == 4 ? kLongBlock : kBlock;

template <typename A>
struct Sums {  // gradients of the parameters, summed over time
  alignas(64) A beta[kMost<A>];
  alignas(64) A threshold[kMost<A>];
  alignas(64) A graded[kMost<A>];
};

// ---- forward

template <typename A>
struct ForwardRows {
  const A* before;  // membrane before the first of the steps; nullptr: 0
  A* after;         // and after the last of them
  Rows<const A> x;
  Rows<A> spk, mem;
  A* count;                     // in place of spk: one row for all steps, to which the spikes are added
  bool stream_spk, stream_mem;  // past the caches
};

template <typename A>
using ForwardSteps = void (*)(int n, const ForwardRows<A>& rows, const Lanes<A>& lanes);

template <typename A, Reset R, bool Delay, bool Record, bool Count, int Steps>
void forward_steps(int n, const ForwardRows<A>& rows, const Lanes<A>& lanes) {
  using V = Vec<A>;
  const ForwardRows<A> row = rows;
  for (int i = 0; i < n; i += kColumn<A>) {
    Neuron<V> p[kVectors];
    lanes.load(i, p);
    Column<A> u, x, s, count;
    u.load_or_zero(row.before, i);
    if (Count) count.load(row.count + i);
    SNN_UNROLL for (int k = 0; k < Steps; ++k) {
      x.load(row.x[k] + i);
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        const V r = heaviside(u[g] - p[g].threshold);
        const V v = lif_integrate(R, u[g], r, x[g], p[g]);
        s[g] = heaviside(v - p[g].threshold);
        u[g] = lif_settle(R, Delay, v, s[g], r, p[g]);
        s[g] = s[g] * p[g].graded;
        if (Count) count[g] += s[g];
      }
      if (!Count) s.put(row.spk[k] + i, row.stream_spk);
      if (Record) u.put(row.mem[k] + i, row.stream_mem);
    }
    u.store(row.after + i);
    if (Count) count.store(row.count + i);
  }
}

// ---- the membrane alone, for the backward pass

template <typename A>
struct AdvanceRows {
  const A* before;  // as in ForwardRows
  A* after;
  Rows<const A> x;
};

template <typename A>
using AdvanceSteps = void (*)(int n, const AdvanceRows<A>& rows, const Lanes<A>& lanes);

template <typename A, Reset R, bool Delay, int Steps>
void advance_steps(int n, const AdvanceRows<A>& rows, const Lanes<A>& lanes) {
  using V = Vec<A>;
  const AdvanceRows<A> row = rows;
  for (int i = 0; i < n; i += kColumn<A>) {
    Neuron<V> p[kVectors];
    lanes.load(i, p);
    Column<A> u, x;
    u.load_or_zero(row.before, i);
    SNN_UNROLL for (int k = 0; k < Steps; ++k) {
      x.load(row.x[k] + i);
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        const V r = heaviside(u[g] - p[g].threshold);
        const V v = lif_integrate(R, u[g], r, x[g], p[g]);
        u[g] = lif_settle(R, Delay, v, heaviside(v - p[g].threshold), r, p[g]);
      }
    }
    u.store(row.after + i);
  }
}

// ---- backward

template <typename A>
struct AdjointRows {
  const A* before;           // membrane before the first of the steps; nullptr: 0
  Rows<const A> x;           // or
  Rows<const A> mem;         // the membrane that decided each spike
  Rows<const A> derivative;  // of the spike, where it is given
  Rows<const A> grad_spk;
  Rows<const A> grad_mem;  // nullptr: 0
  const A* grad_after;     // with respect to the membrane after the last of the steps; nullptr: 0
  A* grad_before;          // and before the first of them
  Rows<A> grad_x;
  A* grad_x_sum;  // in place of grad_x: one row for all steps, to which their gradients are added
  A a, b;         // coefficients of the surrogate
  bool stream;    // grad_x past the caches
};

template <typename A>
using AdjointSteps = void (*)(int n, const AdjointRows<A>& rows, const Lanes<A>& lanes, Sums<A>& sums);

struct GivenDerivative {};  // in place of a functor of math/surrogate.h

template <typename A, typename Surrogate, Reset R, bool Delay, bool Recorded, bool ParameterGradients, int Steps>
void adjoint_steps(int n, const AdjointRows<A>& rows, const Lanes<A>& lanes, Sums<A>& sums) {
  using V = Vec<A>;
  constexpr bool kThroughSpike = !std::is_same_v<Surrogate, NoSurrogate>;
  const AdjointRows<A> row = rows;
  const V a(row.a), b(row.b);
  for (int i = 0; i < n; i += kColumn<A>) {
    Neuron<V> p[kVectors];
    lanes.load(i, p);

    Column<A> u[Steps + 1];  // before each step
    Column<A> v[Steps];      // what decided its spike
    u[0].load_or_zero(row.before, i);
    SNN_UNROLL for (int k = 0; k < Steps; ++k) {
      if (Recorded) {
        v[k].load(row.mem[k] + i);
        u[k + 1] = v[k];
        continue;
      }
      Column<A> x;
      x.load(row.x[k] + i);
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        const V r = heaviside(u[k][g] - p[g].threshold);
        v[k][g] = lif_integrate(R, u[k][g], r, x[g], p[g]);
        u[k + 1][g] = lif_settle(R, Delay, v[k][g], heaviside(v[k][g] - p[g].threshold), r, p[g]);
      }
    }

    Column<A> carry, dx, dx_sum, beta, threshold, graded;
    carry.load_or_zero(row.grad_after, i);
    dx_sum.load_or_zero(row.grad_x_sum, i);
    if (ParameterGradients) {
      beta.load(sums.beta + i);
      threshold.load(sums.threshold + i);
      graded.load(sums.graded + i);
    }
    SNN_UNROLL for (int k = Steps - 1; k >= 0; --k) {
      Column<A> gs, gm, sg;
      gs.load(row.grad_spk[k] + i);
      if (row.grad_mem.first == nullptr) {
        gm.fill(A(0));
      } else {
        gm.load(row.grad_mem[k] + i);
      }
      if constexpr (std::is_same_v<Surrogate, GivenDerivative>) sg.load(row.derivative[k] + i);
      SNN_UNROLL for (int g = 0; g < kVectors; ++g) {
        if constexpr (!std::is_same_v<Surrogate, GivenDerivative>) {
          sg[g] = Surrogate::derivative(v[k][g] - p[g].threshold, a, b);
        }
        LifGradients<V> grad{carry[g], V(0), V(0), V(0)};
        if (ParameterGradients) grad = {carry[g], beta[g], threshold[g], graded[g]};
        dx[g] = lif_adjoint(R, Delay, kThroughSpike, u[k][g], v[k][g], sg[g], gs[g], gm[g], p[g], grad);
        carry[g] = grad.carry;
        if (ParameterGradients) {
          beta[g] = grad.beta;
          threshold[g] = grad.threshold;
          graded[g] = grad.graded;
        }
      }
      if (row.grad_x_sum == nullptr) {
        dx.put(row.grad_x[k] + i, row.stream);
      } else {
        SNN_UNROLL for (int g = 0; g < kVectors; ++g) dx_sum[g] += dx[g];
      }
    }
    carry.store(row.grad_before + i);
    if (row.grad_x_sum != nullptr) dx_sum.store(row.grad_x_sum + i);
    if (ParameterGradients) {
      beta.store(sums.beta + i);
      threshold.store(sums.threshold + i);
      graded.store(sums.graded + i);
    }
  }
}

// ---- run-time options to compile-time ones

template <typename F>
auto with_bool(bool value, F&& f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}

template <typename F>
auto with_reset(Reset reset, F&& f) {
  if (reset == Reset::kSubtract) return f(std::integral_constant<Reset, Reset::kSubtract>{});
  if (reset == Reset::kZero) return f(std::integral_constant<Reset, Reset::kZero>{});
  return f(std::integral_constant<Reset, Reset::kNone>{});
}

// A loop for one time step and one for kSteps of them.
template <typename Function>
struct Either {
  Function one, several;

  Function operator()(int steps) const { return steps == kSteps ? several : one; }
};

template <typename A>
Either<ForwardSteps<A>> choose_forward(const LifForward& p, bool recorded) {
  return with_reset(p.reset, [&](auto r) {
    return with_bool(p.reset_delay, [&](auto delay) {
      return with_bool(recorded, [&](auto record) {
        return with_bool(p.spk_count, [&](auto count) -> Either<ForwardSteps<A>> {
          constexpr Reset R = decltype(r)::value;
          constexpr bool D = decltype(delay)::value, M = decltype(record)::value, C = decltype(count)::value;
          return {forward_steps<A, R, D, M, C, 1>, forward_steps<A, R, D, M, C, kSteps>};
        });
      });
    });
  });
}

template <typename A>
Either<AdvanceSteps<A>> choose_advance(const LifBackward& p) {
  return with_reset(p.reset, [&](auto r) {
    return with_bool(p.reset_delay, [&](auto delay) -> Either<AdvanceSteps<A>> {
      constexpr Reset R = decltype(r)::value;
      constexpr bool D = decltype(delay)::value;
      return {advance_steps<A, R, D, 1>, advance_steps<A, R, D, kSteps>};
    });
  });
}

template <typename A>
Either<AdjointSteps<A>> choose_adjoint(const LifBackward& p, bool recorded) {
  const auto choose = [&](auto surrogate) {
    return with_reset(p.reset, [&](auto r) {
      return with_bool(p.parameter_gradients(), [&](auto parameters) -> Either<AdjointSteps<A>> {
        using S = decltype(surrogate);
        constexpr Reset R = decltype(r)::value;
        constexpr bool P = decltype(parameters)::value;
        // A recorded membrane tells what decided the spikes only if the reset is delayed.
        if (recorded) return {adjoint_steps<A, S, R, true, true, P, 1>, adjoint_steps<A, S, R, true, true, P, kSteps>};
        return with_bool(p.reset_delay, [&](auto delay) -> Either<AdjointSteps<A>> {
          constexpr bool D = decltype(delay)::value;
          return {adjoint_steps<A, S, R, D, false, P, 1>, adjoint_steps<A, S, R, D, false, P, kSteps>};
        });
      });
    });
  };
  return p.derivative != nullptr ? choose(GivenDerivative{}) : visit_surrogate(p.surrogate, choose);
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
