// Arithmetic for gradients alone. It fuses products and sums, and refines an approximate reciprocal once.
// Nothing that decides a spike may be computed with it, which tools/gates checks.
#pragma once

#include <cmath>

#include "../math/surrogate.h"
#include "elements.cuh"

namespace snnfast::cuda {

struct Fused {
  static constexpr bool kFused = true;

  static __device__ __forceinline__ float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
  static __device__ __forceinline__ float multiply_subtract(float a, float b, float c) { return std::fma(-a, b, c); }

  // 1 / b, of b >= 2^-100 or NaN. A larger b than 2^126 counts as 2^126, whose reciprocal is the least normal number.
  static __device__ __forceinline__ float inverse(float b) {
    constexpr float kMost = 0x1p126f;
    const float within = b > kMost ? kMost : b;
    const float about = reciprocal(within);
    return std::fma(std::fma(-within, about, 1.0f), about, about);
  }

  static __device__ __forceinline__ float reciprocal(float b) {
#if defined(SNN_EMULATED)
    return 1 / b;
#else
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    return inverse;
#endif
  }

  // 2^x of x <= 0 or NaN.
  static __device__ __forceinline__ float power_of_two(float x) {
#if defined(SNN_EMULATED)
    return std::exp2(x);
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#endif
  }
};

// The derivative at z of the surrogate of a plain kernel.
__device__ __forceinline__ float rational(const Slope& of, float z) {
  const float y = Fused::multiply_add(of.a, std::fabs(z), of.shift);
  return Fused::inverse(Fused::multiply_add(y, y, of.rest));
}
__device__ __forceinline__ float exponential(const Slope& of, float z) {
  const float e = Fused::power_of_two(-std::fabs(of.a * z));
  const float inverse = Fused::reciprocal(Fused::multiply_add(of.rest, e, of.rest));
  return e * inverse * inverse;
}
// Those of the V neurons of a thread, which it asks for the sigmoid together. kOpen: the surrogate may be one.
template <bool kOpen, int V>
__device__ __forceinline__ void slopes(const Slope& of, const float (&v)[V], float threshold, float (&to)[V]) {
  if (kOpen && of.exponential) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = exponential(of, v[i] - threshold);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = rational(of, v[i] - threshold);
  }
}

}  // namespace snnfast::cuda
