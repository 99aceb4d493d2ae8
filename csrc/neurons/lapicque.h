// The neuron as an RC circuit: snnTorch 1.0.0's Lapicque.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

struct Lapicque {
  static constexpr const char* kName = "lapicque";
  static constexpr int kStates = 1, kParameters = 6;
  static constexpr const char* kStateNames[] = {"mem"};
  static constexpr const char* kParameterNames[] = {"R",     "rate",      "time_step",
                                                    "decay", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {false, false, false, false, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = true;

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T threshold = p[4], u = state[0];
    const auto r = u > threshold;
    const T base = x * p[0] * p[1] * p[2] + p[3] * u;
    const T v = reset(rule, base, r, threshold);
    return fire(rule, v, r, threshold, p[5], state[0]);
  }

  // As Leaky::adjoint.
  template <typename T>
  static SNN_HD T adjoint(ResetRule rule, T x, const T (&before)[kStates], T v, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T threshold = p[4], u = before[0];
    const T r = select(u > threshold, T(1), T(0));
    const T dv = fire_adjoint(rule, v, r, threshold, p[5], given, grad[0] + carry[0], sums[4], sums[5]);
    const T base = reset_adjoint(rule, dv, r, sums[4]);
    const T scaled = base * p[2], driven = scaled * p[1];  // gradients of x * R * rate and of x * R
    sums[0] += driven * x;
    sums[1] += scaled * (x * p[0]);
    sums[2] += base * (x * p[0] * p[1]);
    sums[3] += base * u;
    carry[0] = p[3] * base;
    return driven * p[0];
  }
};

}  // namespace snnfast
