// The neuron with a synaptic current, to which its last spike is fed back: snnTorch 1.0.0's RSynaptic.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

struct RSynaptic {  // the last spike is a state, as in RLeaky
  static constexpr const char* kName = "rsynaptic";
  static constexpr int kStates = 3, kParameters = 5;
  static constexpr const char* kStateNames[] = {"spk", "syn", "mem"};
  static constexpr const char* kParameterNames[] = {"V", "alpha", "beta", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {false, true, true, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = false;

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T V = p[0], alpha = p[1], beta = p[2], threshold = p[3], u = state[2];
    const auto r = u > threshold;
    state[1] = (alpha * state[1] + x) + V * state[0];
    const T base = beta * u + state[1];
    const T v = reset(rule, base, r, threshold);  // the synaptic current is not reset
    const Fired<T> fired = fire(rule, v, r, threshold, p[4], state[2]);
    state[0] = fired.spk;
    return fired;
  }

  // As RLeaky::adjoint.
  template <typename T>
  static SNN_HD T adjoint(ResetRule rule, T, const T (&before)[kStates], T v, Given<T> given, const T (&grad)[kStates],
                          const T (&p)[kParameters], T (&carry)[kStates], T (&sums)[kParameters]) {
    const T V = p[0], alpha = p[1], beta = p[2], threshold = p[3], u = before[2];
    const T r = select(u > threshold, T(1), T(0));
    given.spk += grad[0] + carry[0];
    const T dv = fire_adjoint(rule, v, r, threshold, p[4], given, grad[2] + carry[2], sums[3], sums[4]);
    const T base = reset_adjoint(rule, dv, r, sums[3]);
    const T syn = base + (grad[1] + carry[1]);
    sums[0] += syn * before[0];
    sums[1] += syn * before[1];
    sums[2] += base * u;
    carry[0] = V * syn;
    carry[1] = alpha * syn;
    carry[2] = beta * base;
    return syn;
  }
};

}  // namespace snnfast
