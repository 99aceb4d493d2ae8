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
  // tau divides what leaks, as in LIFNode; rate multiplies it, as in ParametricLIFNode; either is 1 in the other.
  // charge: 0 without a leak, 1 with one, 2 if the input decays as well. attached: 1 if the reset has a gradient.
  static constexpr const char* kParameterNames[] = {
      "tau", "rate", "charge", "attached", "v_reset", "v_threshold", "graded_spikes_factor"};
  static constexpr bool kClamped[] = {false, false, false, false, false, false, false};
  static constexpr bool kRecordedMembraneSuffices = false;
  static constexpr bool kAdjointReadsX = true;

  template <typename T>
  static SNN_HD auto fires(T h, T threshold) {
    return h - threshold >= T(0);
  }

  template <typename T>
  static SNN_HD T paced(ResetRule rule, T drive, const T (&p)[kParameters]) {
    return rule.delay ? drive * p[1] : drive * p[1] / p[0];
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

  // As Leaky::adjoint.
  template <typename T>
  static SNN_HD T adjoint(ResetRule rule, T x, const T (&before)[kStates], T h, const Given<T>& given,
                          const T (&grad)[kStates], const T (&p)[kParameters], T (&carry)[kStates],
                          T (&sums)[kParameters]) {
    const T v = before[0], dv = grad[0] + carry[0], s = select(fires(h, p[5]), T(1), T(0));
    const bool soft = rule.reset == Reset::kSubtract, hard = rule.reset == Reset::kZero;
    T dh = dv, ds = given.spk * p[6];
    if (soft || hard) {
      ds -= select(p[3] > T(0), dv * (soft ? p[5] : h - p[4]), T(0));
      if (soft) sums[5] -= dv * s;
      if (hard) {
        sums[4] += dv * s;
        dh = dv * (T(1) - s);
      }
    }
    const T q = given.through_spike ? ds * given.derivative : T(0);
    sums[5] -= q;
    sums[6] += given.spk * s;
    dh += q;
    const T leak = select(p[2] > T(0), dh, T(0)), drive = driven(x, v, p), flow = paced(rule, leak, p);
    sums[0] -= flow * drive / p[0];
    sums[1] += leak * drive / p[0];
    sums[4] += flow;
    carry[0] = dh - flow;
    return select(p[2] > T(1), flow, dh);
  }
};

}  // namespace snnfast
