// What the neurons have in common: the reset, the spike, and the adjoint of both.
//
// A neuron is a struct of its own header. All that uses it is a template on it:
//
//   kName, kStateNames, kParameterNames   as in snnfast/_core/ops.py; the last state is the membrane, the last two
//                                         parameters are the threshold and the height of a spike
//   kClamped                              which parameters are clamped to [0, 1] when they are used
//   kRecordTells                          with a delayed reset, the recorded membrane is all that backward needs
//   kAdjointReadsX                        adjoint() needs the input of the step
//   step(), adjoint()                     one time step of one neuron, and its gradient; a step ends in fire(), with
//                                         r: whether the membrane before it exceeds the threshold
//
// In whatever decides a spike each product, sum and difference is rounded by itself, in the order of snnTorch's
// PyTorch operators: these files are compiled without contraction to fused multiply-add.
#pragma once

#include "scalar.h"
#include "surrogate.h"

namespace snnfast {

enum class Reset : int { kSubtract, kZero, kNone };
inline constexpr const char* kResetNames[] = {"subtract", "zero", "none"};

// How a layer resets: what of, and one step after the spike or at once.
struct Rules {
  Reset reset;
  bool delay;
};

// The product of a truth value, as 1 or 0, and a number: 0 * a keeps NaN and the sign of zero, as PyTorch's does.
template <typename Mask, typename T>
SNN_HD T times(Mask yes, T a) {
  return select(yes, a, T(0) * a);
}

template <typename Mask, typename T>
SNN_HD T unless(Mask yes, T a) {
  return select(yes, T(0) * a, a);
}

// The membrane after a reset for an earlier spike, if there was one (`r`), from `base`, the membrane without it.
template <typename Mask, typename T>
SNN_HD T reset(Rules rules, T base, Mask r, T threshold) {
  if (rules.reset == Reset::kSubtract) return base - times(r, threshold);
  if (rules.reset == Reset::kZero) return base - times(r, base);
  return base;
}

// The adjoint of `reset`: from the gradient with respect to its result to that with respect to `base`.
template <typename T>
SNN_HD T reset_adjoint(Rules rules, T dv, T r, T& grad_threshold) {
  if (rules.reset == Reset::kSubtract) grad_threshold -= dv * r;
  return rules.reset == Reset::kZero ? (T(1) - r) * dv : dv;
}

template <typename T>
struct Fired {
  T v;    // the membrane that decided the spike
  T spk;  // the spike, of its height
};

// The end of a step: the spike of v, and in `mem` the membrane after it. `r`: whether v was reset for an earlier spike.
template <typename Mask, typename T>
SNN_HD Fired<T> fire(Rules rules, T v, Mask r, T threshold, T graded, T& mem) {
  const Mask s = v > threshold;
  mem = v;
  if (!rules.delay && rules.reset != Reset::kNone) {
    const T d = select(s, T(1), T(0)) - select(r, T(1), T(0));
    mem = rules.reset == Reset::kSubtract ? v - d * threshold : v - d * v;
  }
  return {v, times(s, graded)};
}

// Gradients that a step is given.
template <typename T>
struct Given {
  T spk;               // with respect to the spike
  T derivative;        // of the spike with respect to v
  bool through_spike;  // false: no gradient passes through the spike, whatever the two are, not even 0 * NaN
};

// Adjoint of `fire`: from the gradient with respect to the membrane after the step to that with respect to v.
template <typename Arithmetic = Rounded, typename T>
SNN_HD T fire_adjoint(Rules rules, T v, T r, T threshold, T graded, const Given<T>& given, T mem, T& grad_threshold,
                      T& grad_graded) {
  const T s = select(v > threshold, T(1), T(0));
  T dv = mem, ds = given.spk * graded;
  if (!rules.delay && rules.reset != Reset::kNone) {
    const T d = s - r;
    if (rules.reset == Reset::kSubtract) {
      ds -= mem * threshold;
      grad_threshold -= mem * d;
    } else {
      ds -= mem * v;
      dv = mem * (T(1) - d);
    }
  }
  const T q = given.through_spike ? ds * given.derivative : T(0);
  grad_threshold -= q;
  grad_graded += given.spk * s;
  return Arithmetic::kFused && given.through_spike ? Arithmetic::multiply_add(ds, given.derivative, dv) : dv + q;
}

// A stretch of steps back in time is linear in the carry that enters it: what leaves it is `offset`, which leaves where
// nothing enters, and `factor`, what an adjoint makes of a carry of 1 without any other gradient, times the carry.
// Where nothing enters, the offset is all, even if the factor is infinite.
template <typename T>
SNN_HD T carry_through(T offset, T factor, T carry) {
  return select(carry == T(0), offset, offset + factor * carry);
}

}  // namespace snnfast
