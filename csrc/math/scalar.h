// What the equations are made of, for every compiler that sees them: g++, nvcc and the test emulator.
#pragma once

#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define SNN_HD __host__ __device__ __forceinline__
#else
#define SNN_HD inline __attribute__((always_inline))
#endif

namespace snnfast {

// The equations are written for one number or a vector of numbers. They choose by `select`, which vectors overload.
template <typename T>
SNN_HD T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

// H(z): strict, and 0 for NaN.
template <typename T>
SNN_HD T heaviside(T z) {
  return select(z > T(0), T(1), T(0));
}

// How an adjoint rounds: each product and sum by itself. csrc/cuda has another kind, Fused, for gradients alone: it
// never computes what decides a spike.
struct Rounded {
  static constexpr bool kFused = false;

  template <typename T>
  static SNN_HD T multiply_add(T a, T b, T c) {
    return c + a * b;
  }
  template <typename T>
  static SNN_HD T multiply_subtract(T a, T b, T c) {  // from c
    return c - a * b;
  }
};

// clamp(beta, 0, 1), which passes NaN on, as torch.clamp does.
template <typename T>
SNN_HD T clamp_unit(T beta) {
  return select(beta < T(0), T(0), select(beta > T(1), T(1), beta));
}

// The gradient that passes through clamp(beta, 0, 1): none outside of [0, 1], and none for NaN. At 0 and 1 it depends
// on the version of torch: it passes up to 2.13 (`closed`), and does not from 2.14 on.
template <typename T>
SNN_HD T clamp_unit_adjoint(T beta, T gradient, bool closed) {
  const bool inside = closed ? beta >= T(0) && beta <= T(1) : beta > T(0) && beta < T(1);
  return inside ? gradient : T(0);
}

template <typename T>
SNN_HD T magnitude(T z) {
  return select(z < T(0), -z, z);
}

// Constants, because nvcc refuses calls of numeric_limits in device code.
template <typename T>
inline constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
template <typename T>
inline constexpr T kSmallest = std::numeric_limits<T>::min();

// The least membrane, or nearly, of which H(membrane - threshold) is 1. Above -infinity is every finite number.
template <typename T>
SNN_HD T just_above(T threshold) {
  const T step = magnitude(threshold) * kEpsilon<T>;
  const T above = threshold + (step > kSmallest<T> ? step : kSmallest<T>);
  return above == above ? above : T(0);
}

}  // namespace snnfast
