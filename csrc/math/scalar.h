// What every compiler that sees the equations needs: g++, nvcc and the test emulator.
#pragma once

#if defined(__CUDACC__)
#define SNN_HD __host__ __device__ __forceinline__
#else
#define SNN_HD inline __attribute__((always_inline))
#endif

namespace snnfast {

// H(z): strict, and 0 for NaN.
template <typename T>
SNN_HD T heaviside(T z) {
  return z > T(0) ? T(1) : T(0);
}

// clamp(beta, 0, 1) that hands NaN on, as torch.clamp does.
template <typename T>
SNN_HD T clamp_unit(T beta) {
  return beta < T(0) ? T(0) : beta > T(1) ? T(1) : beta;
}

// The gradient that clamp(beta, 0, 1) lets through: torch includes both ends, and elsewhere not even NaN passes.
template <typename T>
SNN_HD T clamp_unit_adjoint(T beta, T gradient) {
  return beta >= T(0) && beta <= T(1) ? gradient : T(0);
}

template <typename T>
SNN_HD T magnitude(T z) {
  return z < T(0) ? -z : z;
}

}  // namespace snnfast
