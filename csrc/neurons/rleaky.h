// The leaky integrate-and-fire neuron whose last spike is fed back to it: snnTorch 1.0.0's RLeaky.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

// The last spike is a state. If neurons are connected to one another, it is the product of the last spikes and the
// weights of the connections, with V = 1. A call is then one step long.
struct RLeaky {
  static constexpr const char* kName = "rleaky";
  static constexpr int kStates = 2, kParameters = 4;
  static constexpr const char* kStateNames[] = {"spk", "mem"};
  static constexpr const char* kParameterNames[] = {"V", "beta", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {false, true, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = false;

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T V = p[0], beta = p[1], threshold = p[2], u = state[1];
    const auto r = u > threshold;
    const T base = (beta * u + x) + V * state[0];
    const T v = reset(rule, base, r, threshold);
    const Fired<T> fired = fire(rule, v, r, threshold, p[3], state[1]);
    state[0] = fired.spk;
    return fired;
  }

  // As Leaky::adjoint. A part of the spike's gradient comes from the next step, through V.
  template <typename T>
  static SNN_HD T adjoint(ResetRule rule, T, const T (&before)[kStates], T v, Given<T> given, const T (&grad)[kStates],
                          const T (&p)[kParameters], T (&carry)[kStates], T (&sums)[kParameters]) {
    const T V = p[0], beta = p[1], threshold = p[2], u = before[1];
    const T r = select(u > threshold, T(1), T(0));
    given.spk += grad[0] + carry[0];
    const T dv = fire_adjoint(rule, v, r, threshold, p[3], given, grad[1] + carry[1], sums[2], sums[3]);
    const T base = reset_adjoint(rule, dv, r, sums[2]);
    sums[0] += base * before[0];
    sums[1] += base * u;
    carry[0] = V * base;
    carry[1] = beta * base;
    return base;
  }
};

}  // namespace snnfast
