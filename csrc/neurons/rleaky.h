// The leaky integrate-and-fire neuron whose last spike comes back to it: snnTorch 1.0.0's RLeaky.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

// The last spike is a state. Between neurons that are connected to one another it is what the connections make of the
// last spikes, with V = 1: a call is then one step long.
struct RLeaky {
  static constexpr const char* kName = "rleaky";
  static constexpr int kStates = 2, kParameters = 4;
  static constexpr const char* kStateNames[] = {"spk", "mem"};
  static constexpr const char* kParameterNames[] = {"V", "beta", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {false, true, false, false};
  static constexpr bool kRecordTells = false;
  static constexpr bool kAdjointReadsX = false;

  template <typename T>
  static SNN_HD Fired<T> step(Rules rules, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T V = p[0], beta = p[1], threshold = p[2], u = state[1];
    const auto r = u > threshold;
    const T base = (beta * u + x) + V * state[0];
    const T v = reset(rules, base, r, threshold);
    const Fired<T> fired = fire(rules, v, r, threshold, p[3], state[1]);
    state[0] = fired.spk;
    return fired;
  }

  // As Leaky::adjoint. The gradient of the spike has a share that the next step hands back through V.
  template <typename T>
  static SNN_HD T adjoint(Rules rules, T, const T (&before)[kStates], T v, Given<T> given, const T (&grad)[kStates],
                          const T (&p)[kParameters], T (&carry)[kStates], T (&sums)[kParameters]) {
    const T V = p[0], beta = p[1], threshold = p[2], u = before[1];
    const T r = select(u > threshold, T(1), T(0));
    given.spk += grad[0] + carry[0];
    const T dv = fire_adjoint(rules, v, r, threshold, p[3], given, grad[1] + carry[1], sums[2], sums[3]);
    const T base = reset_adjoint(rules, dv, r, sums[2]);
    sums[0] += base * before[0];
    sums[1] += base * u;
    carry[0] = V * base;
    carry[1] = beta * base;
    return base;
  }
};

}  // namespace snnfast
