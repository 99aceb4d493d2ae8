// The neurons of SpikingJelly 2.0.0: IFNode, LIFNode and ParametricLIFNode. A step charges, fires and resets.
#pragma once

#include "../math/neuron.h"

namespace snnfast {

// The membrane after a step is the one after the reset. A membrane that is exactly at the threshold spikes. Where no
// reset is delayed, `rule.delay` is free for something else: tau is 1, and the kernels are compiled without a division.
struct IFNode {
  static constexpr const char* kName = "ifnode";
  static constexpr int kStates = 1, kParameters = 7;
  static constexpr const char* kStateNames[] = {"v"};
  // rate multiplies what leaks, as in ParametricLIFNode; tau divides it, as in LIFNode; either is 1 in the other.
  // charge: 0 without a leak, 1 with one, 2 if the input decays as well. attached: 1 if the reset has a gradient.
  static constexpr const char* kParameterNames[] = {
      "rate", "tau", "charge", "attached", "v_reset", "v_threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {false, false, false, false, false, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = true;

  template <typename T>
  static SNN_HD auto fires(T h, T threshold) {
    return h - threshold >= T(0);
  }

  template <typename T>
  static SNN_HD T paced(ResetRule rule, T drive, const T (&p)[kParameters]) {
    return rule.delay ? drive * p[0] : drive * p[0] / p[1];
  }

  // What drives the membrane `v` by its leak.
  template <typename T>
  static SNN_HD T driven(T x, T v, const T (&p)[kParameters]) {
    const T above = v - p[4];
    return select(p[2] > T(1), x - above, -above);
  }

  template <typename T>
  static SNN_HD T after(ResetRule rule, T h, const T (&p)[kParameters]) {
    const auto s = fires(h, p[5]);
    if (rule.reset == Reset::kSubtract) return h - times(s, p[5]);
    if (rule.reset == Reset::kZero) return times(s, p[4]) + select(s, T(0) * h, h);
    return h;
  }

  template <typename T>
  static SNN_HD Fired<T> step(ResetRule rule, T x, T (&state)[kStates], const T (&p)[kParameters]) {
    const T v = state[0], leaked = select(p[2] > T(0), v + paced(rule, driven(x, v, p), p), v);
    const T h = select(p[2] > T(1), leaked, leaked + x);
    state[0] = after(rule, h, p);
    return {h, times(fires(h, p[5]), p[6])};
  }

  // As Leaky::adjoint. Where it fuses, `x` is what drives the membrane by its leak, and nothing else is summed than the
  // gradient of the rate of a neuron with a leak.
  template <typename Arithmetic = Rounded, typename T>
  static SNN_HD T adjoint(ResetRule rule, T x, const T (&before)[kStates], T h, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T v = before[0], dv = grad[0] + carry[0], s = select(fires(h, p[5]), T(1), T(0));
    const bool soft = rule.reset == Reset::kSubtract, hard = rule.reset == Reset::kZero;
    T dh = hard ? dv * (T(1) - s) : dv, ds = given.spk * p[6];
    if constexpr (Arithmetic::kFused) {
      if (p[3] > T(0)) ds = Arithmetic::multiply_subtract(dv, soft ? p[5] : h - p[4], ds);
      dh = Arithmetic::multiply_add(ds, given.derivative, dh);
      sums[0] = Arithmetic::multiply_add(dh, x, sums[0]);
      carry[0] = dh * (p[2] > T(0) ? T(1) - p[0] : T(1));
      return dh * (p[2] > T(1) ? p[0] : T(1));
    }
    if (soft || hard) ds -= select(p[3] > T(0), dv * (soft ? p[5] : h - p[4]), T(0));
    if (soft) sums[5] -= dv * s;
    if (hard) sums[4] += dv * s;
    const T q = given.through_spike ? ds * given.derivative : T(0);
    sums[5] -= q;
    sums[6] += given.spk * s;
    dh += q;
    const T leak = select(p[2] > T(0), dh, T(0)), drive = driven(x, v, p), flow = paced(rule, leak, p);
    sums[0] += rule.delay ? leak * drive : leak * drive / p[1];
    sums[1] -= rule.delay ? flow * drive : flow * drive / p[1];
    sums[4] += flow;
    carry[0] = dh - flow;
    return select(p[2] > T(1), flow, dh);
  }
};

}  // namespace snnfast
