// The leaky integrate-and-fire neuron: one neuron, one time step, and its adjoint. snnTorch 1.0.0's Leaky.
//
// In whatever decides a spike each product, sum and difference is rounded by itself, in the order of snnTorch's
// PyTorch operators: these files are compiled without contraction to fused multiply-add.
#pragma once

#include "scalar.h"
#include "surrogate.h"

namespace snnfast {

enum class Reset : int { kSubtract, kZero, kNone };
inline constexpr const char* kResetNames[] = {"subtract", "zero", "none"};

template <typename T>
struct Neuron {
  T beta;  // clamped to [0, 1]
  T threshold;
  T graded;
};

// The membrane in which a spike is decided, from the previous one u, its reset r = H(u - threshold) and the input x.
template <typename T>
SNN_HD T lif_integrate(Reset reset, T u, T r, T x, const Neuron<T>& p) {
  if (reset == Reset::kSubtract) return (p.beta * u + x) - r * p.threshold;
  if (reset == Reset::kZero) return p.beta * ((T(1) - r) * u) + x;
  return p.beta * u + x;
}

// The membrane after the step, from v, its spike s = H(v - threshold) and the reset r that v already contains.
template <typename T>
SNN_HD T lif_settle(Reset reset, bool reset_delay, T v, T s, T r, const Neuron<T>& p) {
  if (reset_delay || reset == Reset::kNone) return v;
  const T d = s - r;
  return reset == Reset::kSubtract ? v - d * p.threshold : v - d * v;
}

template <typename T>
struct LifGradients {
  T carry;                    // with respect to the membrane before the step; on entry, to the one after it
  T beta, threshold, graded;  // sums over the steps done
};

// Adjoint of one step: returns the gradient with respect to x and moves `g` one step back in time.
// gs, gm: gradients with respect to this step's spike and membrane; sg: the surrogate derivative at v - threshold,
// which must not matter where no gradient passes `through_spike`, not even by 0 * NaN.
template <typename T>
SNN_HD T lif_adjoint(Reset reset, bool reset_delay, bool through_spike, T u, T v, T sg, T gs, T gm, const Neuron<T>& p,
                     LifGradients<T>& g) {
  const T r = heaviside(u - p.threshold);
  const T s = heaviside(v - p.threshold);
  const T a = gm + g.carry;
  T dv = a;
  T ds = gs * p.graded;
  if (!reset_delay && reset != Reset::kNone) {
    const T d = s - r;
    if (reset == Reset::kSubtract) {
      ds -= a * p.threshold;
      g.threshold -= a * d;
    } else {
      ds -= a * v;
      dv = a * (T(1) - d);
    }
  }
  const T q = through_spike ? ds * sg : T(0);
  dv += q;
  g.threshold -= q;
  g.graded += gs * s;
  if (reset == Reset::kSubtract) {
    g.threshold -= dv * r;
    g.beta += dv * u;
    g.carry = p.beta * dv;
  } else if (reset == Reset::kZero) {
    g.beta += dv * ((T(1) - r) * u);
    g.carry = p.beta * ((T(1) - r) * dv);
  } else {
    g.beta += dv * u;
    g.carry = p.beta * dv;
  }
  return dv;
}

// A stretch of steps back in time is linear in the carry that enters it: what leaves it is `offset`, which leaves where
// nothing enters, and `factor`, what lif_adjoint makes of a carry of 1 without any other gradient, times the carry.
// Where nothing enters, the offset is all, even if the factor is infinite.
template <typename T>
SNN_HD T lif_carry_through(T offset, T factor, T carry) {
  return select(carry == T(0), offset, offset + factor * carry);
}

}  // namespace snnfast
