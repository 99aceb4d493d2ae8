// Chooses the loop of loops.h that a call takes: run-time options become template arguments.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include "loops.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename F>
auto with_bool(bool value, F&& f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}

// In float64, in which nobody trains, such an option is always on. This costs some time there, and halves the code to
// compile.
template <typename A, typename F>
auto with_option(bool value, F&& f) {
  if constexpr (std::is_same_v<A, double>) {
    return f(std::true_type{});
  } else {
    return with_bool(value, f);
  }
}

template <typename F>
auto with_spikes(bool bits, bool sum, F&& f) {
  if (bits) return f(std::integral_constant<Spikes, Spikes::kBits>{});
  if (sum) return f(std::integral_constant<Spikes, Spikes::kSum>{});
  return f(std::integral_constant<Spikes, Spikes::kEach>{});
}

template <typename F>
auto with_rule(ResetRule rule, F&& f) {
  // Without a reset there is no delay.
  if (rule.reset == Reset::kNone) return f(std::integral_constant<Reset, Reset::kNone>{}, std::true_type{});
  return with_bool(rule.delay, [&](auto delay) {
    if (rule.reset == Reset::kSubtract) return f(std::integral_constant<Reset, Reset::kSubtract>{}, delay);
    return f(std::integral_constant<Reset, Reset::kZero>{}, delay);
  });
}

// A loop for one time step and one for kSteps of them.
template <typename Function>
struct Either {
  Function one, several;

  Function operator()(int steps) const { return steps == 1 ? one : several; }
};

template <typename Neuron, typename A>
Either<ForwardLoop<Neuron, A>> choose_forward(const Forward<Neuron>& p, bool record) {
  using Loops = Either<ForwardLoop<Neuron, A>>;
  return with_rule(p.rule, [&](auto r, auto delay) {
    return with_option<A>(record, [&](auto rec) {
      return with_spikes(p.bits != nullptr, p.reduce, [&](auto spikes) -> Loops {
        constexpr Reset R = decltype(r)::value;
        constexpr bool D = decltype(delay)::value, M = decltype(rec)::value;
        constexpr Spikes S = decltype(spikes)::value;
        return {forward_loop<Neuron, A, R, D, M, S, 1>, forward_loop<Neuron, A, R, D, M, S, kSteps<A>>};
      });
    });
  });
}

// The loops that compute the states alone, for the backward pass.
template <typename Neuron, typename A>
Either<ForwardLoop<Neuron, A>> choose_advance(ResetRule rule) {
  return with_rule(rule, [&](auto r, auto delay) -> Either<ForwardLoop<Neuron, A>> {
    constexpr Reset R = decltype(r)::value;
    constexpr bool D = decltype(delay)::value;
    constexpr Spikes S = Spikes::kUnused;
    return {forward_loop<Neuron, A, R, D, false, S, 1>, forward_loop<Neuron, A, R, D, false, S, kSteps<A>>};
  });
}

template <typename Neuron, typename A>
Either<AdjointLoop<Neuron, A>> choose_adjoint(const Backward<Neuron>& p) {
  using Loops = Either<AdjointLoop<Neuron, A>>;
  const auto choose = [&](auto surrogate) {
    return with_option<A>(p.sums_parameters(), [&](auto parameters) {
      return with_rule(p.rule, [&](auto r, auto delay) -> Loops {
        using S = decltype(surrogate);
        constexpr Reset R = decltype(r)::value;
        constexpr bool P = decltype(parameters)::value, D = decltype(delay)::value;
        // A recorded membrane is the one that decided the spike only if the reset is delayed.
        if constexpr (Neuron::kRecordedMembraneSuffices && D) {
          using N = Neuron;
          if (p.recorded())
            return {adjoint_loop<N, A, S, R, D, true, P, 1>, adjoint_loop<N, A, S, R, D, true, P, kSteps<A>>};
        }
        return {adjoint_loop<Neuron, A, S, R, D, false, P, 1>, adjoint_loop<Neuron, A, S, R, D, false, P, kSteps<A>>};
      });
    });
  };
  if (p.derivative == nullptr) {
    if (p.surrogate == SurrogateKind::kNone) return choose(NoSurrogate{});
    if constexpr (std::is_same_v<A, float>) {  // nearly all networks use one of these, in float32
      if (p.surrogate == SurrogateKind::kATan) return choose(ATan{});
      if (p.surrogate == SurrogateKind::kFastSigmoid) return choose(FastSigmoid{});
      if (p.surrogate == SurrogateKind::kSigmoid) return choose(Sigmoid{});
    }
  }
  return choose(AnySurrogate{});
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
