// The neuron with an excitatory and an inhibitory synaptic current, whose difference is an alpha function: snnTorch
// 1.0.0's Alpha.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

struct Alpha {
  static constexpr const char* kName = "alpha";
  static constexpr int kStates = 3, kParameters = 5;
  static constexpr const char* kStateNames[] = {"syn_exc", "syn_inh", "mem"};
  static constexpr const char* kParameterNames[] = {"alpha", "beta", "tau", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {true, true, false, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = true;

  // The membrane depends on the currents alone. The membrane before the step decides only the reset.
  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T tau = p[2], threshold = p[3], before = state[1];
    const auto r = state[2] > threshold;
    const T exc = p[0] * state[0] + x, inh = p[1] * before - x, base = tau * (exc + inh);
    T v = base;
    state[0] = exc;
    state[1] = inh;
    if (rule.reset == Reset::kSubtract) {  // as in snnTorch, the membrane gains the inhibitory current before the step
      state[0] = exc - times(r, threshold);
      state[1] = inh - times(r, inh);
      v = base - times(r, -before);
    }
    if (rule.reset == Reset::kZero) {
      state[0] = exc - times(r, exc);
      state[1] = inh - times(r, inh);
      v = base - times(r, base);
    }
    return fire(rule, v, r, threshold, p[4], state[2]);
  }

  // As Leaky::adjoint.
  template <typename T>
  static SNN_HD T adjoint(ResetRule rule, T x, const T (&before)[kStates], T v, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T alpha = p[0], beta = p[1], tau = p[2], threshold = p[3];
    const T r = select(before[2] > threshold, T(1), T(0)), kept = T(1) - r;
    const T dv = fire_adjoint(rule, v, r, threshold, p[4], given, grad[2] + carry[2], sums[3], sums[4]);
    const bool subtract = rule.reset == Reset::kSubtract, zero = rule.reset == Reset::kZero;
    const T exc_after = grad[0] + carry[0], inh_after = grad[1] + carry[1];
    if (subtract) sums[3] -= exc_after * r;
    const T base = zero ? kept * dv : dv;
    const T exc = (zero ? kept * exc_after : exc_after) + base * tau;
    const T inh = (zero || subtract ? kept * inh_after : inh_after) + base * tau;
    sums[0] += exc * before[0];
    sums[1] += inh * before[1];
    sums[2] += base * ((alpha * before[0] + x) + (beta * before[1] - x));
    carry[0] = alpha * exc;
    carry[1] = subtract ? beta * inh + r * dv : beta * inh;
    carry[2] = T(0);
    return exc - inh;
  }
};

}  // namespace snnfast
