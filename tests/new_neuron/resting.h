// A leaky neuron whose membrane decays to a resting one.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

struct Resting {
  static constexpr const char* kName = "resting";
  static constexpr int kStates = 1, kParameters = 4;
  static constexpr const char* kStateNames[] = {"mem"};
  static constexpr const char* kParameterNames[] = {"beta", "rest", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {true, false, false, false};
  static constexpr bool kRecordedMembraneSuffices = true;
  static constexpr bool kAdjointReadsX = false;

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T beta = p[0], rest = p[1], threshold = p[2], u = state[0];
    const auto r = u > threshold;
    const T v = reset(rule, beta * (u - rest) + (x + rest), r, threshold);
    return fire(rule, v, r, threshold, p[3], state[0]);
  }

  // As Leaky::adjoint.
  template <typename Arithmetic = Rounded, typename T>
  static SNN_HD T adjoint(ResetRule rule, T, const T (&before)[kStates], T v, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T beta = p[0], rest = p[1], threshold = p[2], u = before[0];
    const T r = select(u > threshold, T(1), T(0));
    const T dv = fire_adjoint<Arithmetic>(rule, v, r, threshold, p[3], given, grad[0] + carry[0], sums[2], sums[3]);
    const T base = reset_adjoint(rule, dv, r, sums[2]);
    sums[0] += base * (u - rest);
    sums[1] += base - beta * base;
    carry[0] = beta * base;
    return base;
  }
};

}  // namespace snnfast
