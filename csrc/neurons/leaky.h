// The leaky integrate-and-fire neuron: snnTorch 1.0.0's Leaky.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

struct Leaky {
  static constexpr const char* kName = "leaky";
  static constexpr int kStates = 1, kParameters = 3;
  static constexpr const char* kStateNames[] = {"mem"};
  static constexpr const char* kParameterNames[] = {"beta", "threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {true, false, false};
  static constexpr bool kRecordedMembraneSuffices = true;
  static constexpr bool kAdjointReadsX = false;

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T beta = p[0], threshold = p[1], u = state[0];
    const auto r = u > threshold;
    T v;
    if (rule.reset == Reset::kSubtract) {
      v = (beta * u + x) - times(r, threshold);
    } else if (rule.reset == Reset::kZero) {
      v = beta * select(r, T(0) * u, u) + x;
    } else {
      v = beta * u + x;
    }
    return fire(rule, v, r, threshold, p[2], state[0]);
  }

  // Returns the gradient of x. `before`: the states before the step; v: the membrane that decided its spike; `grad`:
  // the gradients of the states that were recorded after it; `carry`: the gradients of the same states from later
  // steps, and on return those of the states before the step; `sums`: the sums of the parameters' gradients over time.
  // Arithmetic: how it rounds.
  template <typename Arithmetic = Rounded, typename T>
  static SNN_HD T adjoint(ResetRule rule, T, const T (&before)[kStates], T v, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T beta = p[0], threshold = p[1], u = before[0];
    const T r = select(u > threshold, T(1), T(0));
    const T dv = fire_adjoint<Arithmetic>(rule, v, r, threshold, p[2], given, grad[0] + carry[0], sums[1], sums[2]);
    if (rule.reset == Reset::kSubtract) sums[1] = Arithmetic::multiply_subtract(dv, r, sums[1]);
    const bool zero = rule.reset == Reset::kZero;
    sums[0] = Arithmetic::multiply_add(dv, zero ? (T(1) - r) * u : u, sums[0]);
    carry[0] = beta * (zero ? (T(1) - r) * dv : dv);
    return dv;
  }
};

}  // namespace snnfast
