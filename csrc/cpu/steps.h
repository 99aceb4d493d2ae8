// The loops over a row of neurons, for one time step or a few of them, and their choice by run-time options.
//
// Part of lif_kernels.cpp, whose rules hold here too.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename A>
struct Lanes {  // the neurons of a block: parameters and carried state
  alignas(64) A beta[kBlock];
  alignas(64) A threshold[kBlock];
  alignas(64) A graded[kBlock];
  alignas(64) A state[kBlock];  // forward: the membrane; backward: the gradient with respect to it
};

template <typename A>
struct Sums {  // gradients of the parameters, summed over time
  alignas(64) A beta[kBlock];
  alignas(64) A threshold[kBlock];
  alignas(64) A graded[kBlock];
};

// ---- a few time steps of a block

// Time steps that a row loop does for each neuron before it goes to the next: state and parameters are then loaded once
// for all of them. What is left over is done one by one.
constexpr int kSteps = 4;

template <typename A>
struct ForwardRows {  // of each time step
  const A* x[kSteps];
  A* spk[kSteps];
  A* mem[kSteps];
  A* count;  // in place of spk: one row for all steps, to which the spikes are added
};

template <typename A>
using ForwardSteps = void (*)(int n, const ForwardRows<A>& rows, Lanes<A>& lanes);

template <typename A, Reset R, bool Delay, bool Record, bool Count, int Steps>
void forward_steps(int n, const ForwardRows<A>& rows, Lanes<A>& lanes) {
  const ForwardRows<A> row = rows;
#pragma GCC ivdep  // no two of so many rows overlap; g++ would rather give up than test that
  for (int i = 0; i < n; ++i) {
    const Neuron<A> p{lanes.beta[i], lanes.threshold[i], lanes.graded[i]};
    A u = lanes.state[i];
    A count = Count ? row.count[i] : A(0);
#pragma GCC unroll 8
    for (int k = 0; k < Steps; ++k) {
      const A r = heaviside(u - p.threshold);
      const A v = lif_integrate(R, u, r, row.x[k][i], p);
      const A s = heaviside(v - p.threshold);
      u = lif_settle(R, Delay, v, s, r, p);
      if (Count) {
        count += s * p.graded;
      } else {
        row.spk[k][i] = s * p.graded;
      }
      if (Record) row.mem[k][i] = u;
    }
    lanes.state[i] = u;
    if (Count) row.count[i] = count;
  }
}

template <typename A>
struct RecomputeRows {
  const A* u;  // membrane before the first of the steps
  const A* x[kSteps];
  A* v[kSteps];      // membrane that decides the spike
  A* after[kSteps];  // membrane after the step; not written if that is v
};

template <typename A>
using RecomputeSteps = void (*)(int n, const RecomputeRows<A>& rows, const Lanes<A>& lanes);

template <typename A, Reset R, bool Delay, int Steps>
void recompute_steps(int n, const RecomputeRows<A>& rows, const Lanes<A>& lanes) {
  const RecomputeRows<A> row = rows;
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const Neuron<A> p{lanes.beta[i], lanes.threshold[i], A(1)};
    A u = row.u[i];
#pragma GCC unroll 8
    for (int k = 0; k < Steps; ++k) {
      const A r = heaviside(u - p.threshold);
      const A v = lif_integrate(R, u, r, row.x[k][i], p);
      row.v[k][i] = v;
      u = lif_settle(R, Delay, v, heaviside(v - p.threshold), r, p);
      if (!Delay) row.after[k][i] = u;
    }
  }
}

template <typename A>
struct AdjointRows {
  const A* u[kSteps];  // membrane before each step
  const A* v[kSteps];  // membrane that decided its spike
  const A* grad_spk[kSteps];
  const A* grad_mem[kSteps];
  const A* derivative[kSteps];  // of the spike, where it is given
  A* grad_x[kSteps];
  A a, b;  // coefficients of the surrogate
};

template <typename A>
using AdjointSteps = void (*)(int n, const AdjointRows<A>& rows, Lanes<A>& lanes, Sums<A>& sums);

struct GivenDerivative {};  // in place of a functor of math/surrogate.h

template <typename A, typename Surrogate, Reset R, bool Delay, bool ParameterGradients, int Steps>
void adjoint_steps(int n, const AdjointRows<A>& rows, Lanes<A>& lanes, Sums<A>& sums) {
  const AdjointRows<A> row = rows;
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const Neuron<A> p{lanes.beta[i], lanes.threshold[i], lanes.graded[i]};
    LifGradients<A> g{lanes.state[i], A(0), A(0), A(0)};
    if (ParameterGradients) g = {lanes.state[i], sums.beta[i], sums.threshold[i], sums.graded[i]};
#pragma GCC unroll 8
    for (int k = Steps - 1; k >= 0; --k) {
      const A v = row.v[k][i];
      A sg;
      if constexpr (std::is_same_v<Surrogate, GivenDerivative>) {
        sg = row.derivative[k][i];
      } else {
        sg = Surrogate::derivative(v - p.threshold, row.a, row.b);
      }
      constexpr bool kThroughSpike = !std::is_same_v<Surrogate, NoSurrogate>;
      row.grad_x[k][i] =
          lif_adjoint(R, Delay, kThroughSpike, row.u[k][i], v, sg, row.grad_spk[k][i], row.grad_mem[k][i], p, g);
    }
    lanes.state[i] = g.carry;
    if (ParameterGradients) {
      sums.beta[i] = g.beta;
      sums.threshold[i] = g.threshold;
      sums.graded[i] = g.graded;
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

// A row loop for one time step and one for kSteps of them.
template <typename Function>
struct Either {
  Function one, several;

  Function operator()(int steps) const { return steps == kSteps ? several : one; }
};

template <typename A>
Either<ForwardSteps<A>> choose_forward(const LifForward& p) {
  return with_reset(p.reset, [&](auto r) {
    return with_bool(p.reset_delay, [&](auto delay) {
      return with_bool(p.mem_rec != nullptr, [&](auto record) {
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
Either<RecomputeSteps<A>> choose_recompute(const LifBackward& p) {
  return with_reset(p.reset, [&](auto r) {
    return with_bool(p.reset_delay, [&](auto delay) -> Either<RecomputeSteps<A>> {
      constexpr Reset R = decltype(r)::value;
      constexpr bool D = decltype(delay)::value;
      return {recompute_steps<A, R, D, 1>, recompute_steps<A, R, D, kSteps>};
    });
  });
}

template <typename A>
Either<AdjointSteps<A>> choose_adjoint(const LifBackward& p) {
  const auto choose = [&](auto surrogate) {
    return with_reset(p.reset, [&](auto r) {
      return with_bool(p.reset_delay, [&](auto delay) {
        return with_bool(p.parameter_gradients(), [&](auto parameters) -> Either<AdjointSteps<A>> {
          using S = decltype(surrogate);
          constexpr Reset R = decltype(r)::value;
          constexpr bool D = decltype(delay)::value, P = decltype(parameters)::value;
          return {adjoint_steps<A, S, R, D, P, 1>, adjoint_steps<A, S, R, D, P, kSteps>};
        });
      });
    });
  };
  return p.derivative != nullptr ? choose(GivenDerivative{}) : visit_surrogate(p.surrogate, choose);
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
