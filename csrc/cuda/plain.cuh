// What the plain kernels share. They run the ordinary calls of a training loop: spikes of every step and a delayed
// reset. Each option of such a call is a template argument, so that the loops over time have no branches. All other
// calls go to the general kernels of forward.cu and backward.cu, and so do float64 and neurons that are rare on a GPU:
// the library contains each kernel once for every architecture, so that an additional one must be worth its size.
#pragma once

#include <algorithm>
#include <limits>

#include "fused.cuh"
#include "neurons.cuh"

namespace snnfast::cuda {

// Whether a neuron has plain kernels: its adjoint takes the arithmetic as a template argument.
template <typename Neuron>
concept HasPlain =
    requires(float x, float (&states)[Neuron::kStates], float (&numbers)[Neuron::kParameters], Given<float> given) {
      Neuron::template adjoint<Fused>(ResetRule{}, x, states, x, given, states, numbers, states, numbers);
    };

namespace plain {

// Whether a call fulfils what both passes ask for.
template <typename Neuron>
bool is_ordinary(const Problem<Neuron>& p) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() - 64;  // the loops over time count a few batches further
  const auto loaded = std::ranges::count_if(p.parameters, [](const Parameter& of) { return of.data != nullptr; });
  if (ResetsAtOnce<Neuron> && loaded > (p.parameters[0].data != nullptr)) return false;
  return p.rule.delay && p.rule.reset != Reset::kNone && p.lengths == nullptr && p.dtype != DType::kDouble && p.T > 0 &&
         p.T < kMost && p.N < kMost;
}

// Sets what a plain kernel is told of the parameters.
template <typename Neuron>
void set_numbers(Problem<Neuron>& p) {
  constexpr Number kOf[] = {Number::kFloat, Number::kDouble, Number::kHalf, Number::kBFloat16};
  p.loads = false;
  p.alike = true;
  for (int k = 0; k < Neuron::kParameters; ++k) {
    const auto number = static_cast<float>(p.parameters[k].value);
    p.numbers[k] = Neuron::kClamped[k] ? clamp_unit(number) : number;
    if (p.parameters[k].data == nullptr) continue;
    p.loads = true;
    p.alike = p.alike && p.parameters[k].type == kOf[static_cast<int>(p.dtype)];
  }
}

// Whether the plain backward kernels of a neuron have gradients of parameters. For a neuron that rarely learns them,
// they are not worth their size.
template <typename Neuron>
inline constexpr bool kHasSums = Neuron::kStates == 1 && !ResetsAtOnce<Neuron>;

// Keeps loads before what follows. The compiler would rather load where a value is used, and wait there.
__device__ __forceinline__ void in_order() {
#if !defined(SNN_EMULATED)
  asm volatile("" ::: "memory");
#endif
}

// Loads the parameters of a thread's neuron, or those that its neurons share. If all have dtype S, all loads are issued
// before the first conversion waits for one. Callers request their first rows before.
template <typename S, int V, typename Neuron, typename A>
__device__ __forceinline__ void load_numbers(const Problem<Neuron>& p, int64_t first, A (&to)[Neuron::kParameters]) {
  constexpr int kLoaded = ResetsAtOnce<Neuron> ? 1 : Neuron::kParameters;
#pragma unroll
  for (int k = 0; k < Neuron::kParameters; ++k) to[k] = p.numbers[k];
  if (!p.loads) return;
  if (kLoaded == 1 && p.alike) {
    to[0] = widen(static_cast<const S*>(p.parameters[0].data)[place<V>(p.parameters[0], first)]);
    return;
  }
  int64_t at[kLoaded];
  bool there[kLoaded];
#pragma unroll
  for (int k = 0; k < kLoaded; ++k) {
    at[k] = place<V>(p.parameters[k], first);
    there[k] = p.parameters[k].data != nullptr;
  }
  S given[kLoaded] = {};
  if (p.alike) {
#pragma unroll
    for (int k = 0; k < kLoaded; ++k) {
      if (there[k]) given[k] = static_cast<const S*>(p.parameters[k].data)[at[k]];
    }
    in_order();
  }
#pragma unroll
  for (int k = 0; k < kLoaded; ++k) {
    if (!there[k]) continue;
    to[k] = p.alike ? static_cast<A>(widen(given[k])) : number<A>(p.parameters[k], at[k]);
    if (kClampedBits<Neuron> >> k & 1u) to[k] = clamp_unit(to[k]);
  }
}

// `row` may be nullptr if nobody reads or writes there, which pointer arithmetic would not allow.
template <typename T>
__device__ __forceinline__ T* further(T* row, int64_t elements) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(elements) * sizeof(T));
}

// Moves on by so many elements. The compiler would rather compute the address of each row from a base, with three or
// four times the instructions. The empty instruction hides from it where the pointer comes from.
template <typename T>
__device__ __forceinline__ void advance(T*& row, int64_t elements) {
  row = further(row, elements);
#if !defined(SNN_EMULATED)
  asm("" : "+l"(row));
#endif
}

template <typename T, int n>
__device__ __forceinline__ void copy(T (&to)[n], const T (&from)[n]) {
#pragma unroll
  for (int k = 0; k < n; ++k) to[k] = from[k];
}

// A row, or zeros where the caller has none.
template <int V, typename S>
__device__ __forceinline__ Raw<S, V> get_if(bool there, const S* row) {
  return there ? get<S, V>(row) : Raw<S, V>{};
}

// The step of each of the V neurons of a thread, which share their parameters.
template <typename Neuron, typename A, int V>
__device__ __forceinline__ void step_all(ResetRule rule, const A (&x)[V], const A (&parameters)[Neuron::kParameters],
                                         A (&state)[V][Neuron::kStates], Fired<A> (&fired)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) fired[i] = Neuron::step(rule, x[i], state[i], parameters);
}

}  // namespace plain
}  // namespace snnfast::cuda
