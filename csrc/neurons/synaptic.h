// The neuron with a synaptic current of its own decay: snnTorch 1.0.0's Synaptic.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

struct Synaptic {
  static constexpr const char* kName = "synaptic";
  static constexpr int kStates = 2, kParameters = 4;
  static constexpr const char* kStateNames[] = {"syn", "mem"};
  static constexpr const char* kParameterNames[] = {"alpha", "beta", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {true, true, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = false;

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T alpha = p[0], beta = p[1], threshold = p[2], u = state[1];
    const auto r = u > threshold;
    state[0] = alpha * state[0] + x;
    const T base = beta * u + state[0];
    const T v = reset(rule, base, r, threshold);  // the synaptic current is not reset
    return fire(rule, v, r, threshold, p[3], state[1]);
  }

  // As Leaky::adjoint.
  template <typename Arithmetic = Rounded, typename T>
  static SNN_HD T adjoint(ResetRule rule, T, const T (&before)[kStates], T v, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T alpha = p[0], beta = p[1], threshold = p[2], u = before[1];
    const T r = select(u > threshold, T(1), T(0));
    const T dv = fire_adjoint<Arithmetic>(rule, v, r, threshold, p[3], given, grad[1] + carry[1], sums[2], sums[3]);
    const T base = reset_adjoint(rule, dv, r, sums[2]);
    const T syn = base + (grad[0] + carry[0]);
    sums[0] += syn * before[0];
    sums[1] += base * u;
    carry[0] = alpha * syn;
    carry[1] = beta * base;
    return syn;
  }
};

}  // namespace snnfast
