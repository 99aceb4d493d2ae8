// What all neurons share: the reset, the spike, and their adjoints.
//
// A neuron is a struct in a header of csrc/neurons. All code that uses it is a template over it. The struct has:
//
//   kName, kStateNames, kParameterNames   names as in the spec, in snnfast/neurons; the last state is the membrane, and
//                                         the last two parameters are the threshold and the height of a spike
//   kClamped                              whether each parameter is clamped to [0, 1] when it is used
//   kRecordedMembraneSuffices             whether, with a delayed reset, backward needs only the recorded membrane
//   kAdjointReadsX                        whether adjoint() needs the input of the step
//   step(), adjoint()                     one time step of one neuron, and its gradient; a step ends in fire(), and `r`
//                                         tells whether the membrane before the step exceeds the threshold
//   fires(), after()                      whether a membrane spikes, and what its reset leaves of it; only of a neuron
//                                         whose step does not end in fire()
//
// Everything that decides a spike rounds each product, sum and difference by itself, in the order of snnTorch's PyTorch
// operators. So these headers are compiled without contraction to fused multiply-add.
#pragma once

#include "scalar.h"
#include "surrogate.h"

namespace snnfast {

enum class Reset : int { kSubtract, kZero, kNone };
inline constexpr const char* kResetNames[] = {"subtract", "zero", "none"};

// How a layer resets a membrane, and whether one step after the spike or at once.
struct ResetRule {
  Reset reset;
  bool delay;
};

// The product of a truth value, as 1 or 0, and a number. 0 * a keeps NaN and the sign of zero, as in PyTorch.
template <typename Mask, typename T>
SNN_HD T times(Mask yes, T a) {
  return select(yes, a, T(0) * a);
}

// The membrane after a reset for an earlier spike, if there was one (`r`), from `base`, the membrane without it.
template <typename Mask, typename T>
SNN_HD T reset(ResetRule rule, T base, Mask r, T threshold) {
  T v = base;
  if (rule.reset == Reset::kSubtract) v = base - times(r, threshold);
  if (rule.reset == Reset::kZero) v = base - times(r, base);
  return v;  // at the end alone: nvcc makes fewer instructions of it
}

// The adjoint of `reset`: from the gradient with respect to its result to that with respect to `base`.
template <typename T>
SNN_HD T reset_adjoint(ResetRule rule, T dv, T r, T& grad_threshold) {
  if (rule.reset == Reset::kSubtract) grad_threshold -= dv * r;
  return rule.reset == Reset::kZero ? (T(1) - r) * dv : dv;
}

template <typename T>
struct Fired {
  T v;    // the membrane that decided the spike
  T spk;  // the spike, with its height
};

// Ends a step: returns the spike of v, and leaves the membrane after it in `mem`. `r`: v was reset for an earlier
// spike.
template <typename Mask, typename T>
SNN_HD Fired<T> fire(ResetRule rule, T v, Mask r, T threshold, T graded, T& mem) {
  const Mask s = v > threshold;
  mem = v;
  if (!rule.delay && rule.reset != Reset::kNone) {
    const T d = select(s, T(1), T(0)) - select(r, T(1), T(0));
    mem = rule.reset == Reset::kSubtract ? v - d * threshold : v - d * v;
  }
  return {v, times(s, graded)};
}

// A neuron that resets a membrane at once, so that the membrane after a step is not the one that decided its spike:
// `rule.delay` is free for something else. The only parameter that its layers learn is the first.
template <typename Neuron>
concept ResetsAtOnce = requires(float v, const float (&p)[Neuron::kParameters]) { Neuron::after(ResetRule{}, v, p); };

// Whether a membrane, v, spikes.
template <typename Neuron, typename T>
SNN_HD auto fires(T v, T threshold) {
  if constexpr (requires { Neuron::fires(v, threshold); }) {
    return Neuron::fires(v, threshold);
  } else {
    return v > threshold;
  }
}

// The membrane after a step, of the one that decided its spike. `r`: it was reset for an earlier spike.
template <typename Neuron, typename Mask, typename T>
SNN_HD T membrane_after(ResetRule rule, T v, Mask r, const T (&p)[Neuron::kParameters]) {
  if constexpr (ResetsAtOnce<Neuron>) {
    return Neuron::after(rule, v, p);
  } else {
    fire(rule, v, r, p[Neuron::kParameters - 2], T(0), v);
    return v;
  }
}

// The gradient that a step is given for its spike.
template <typename T>
struct Given {
  T spk;               // with respect to the spike
  T derivative;        // that of the spike with respect to v
  bool through_spike;  // false: no gradient passes through the spike, whatever the other two are, not even 0 * NaN
};

// The adjoint of `fire`: from the gradient with respect to the membrane after the step to that with respect to v.
template <typename Arithmetic = Rounded, typename T>
SNN_HD T fire_adjoint(ResetRule rule, T v, T r, T threshold, T graded, const Given<T>& given, T mem, T& grad_threshold,
                      T& grad_graded) {
  const T s = select(v > threshold, T(1), T(0));
  T dv = mem, ds = given.spk * graded;
  if (!rule.delay && rule.reset != Reset::kNone) {
    const T d = s - r;
    if (rule.reset == Reset::kSubtract) {
      ds -= mem * threshold;
      grad_threshold -= mem * d;
    } else {
      ds -= mem * v;
      dv = mem * (T(1) - d);
    }
  }
  grad_graded = Arithmetic::multiply_add(given.spk, s, grad_graded);
  if constexpr (Arithmetic::kFused) {
    if (given.through_spike) {
      grad_threshold = Arithmetic::multiply_subtract(ds, given.derivative, grad_threshold);
      return Arithmetic::multiply_add(ds, given.derivative, dv);
    }
  }
  const T q = given.through_spike ? ds * given.derivative : T(0);
  grad_threshold -= q;
  return dv + q;
}

}  // namespace snnfast
