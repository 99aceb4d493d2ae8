// exp(x) for x <= 0, of one number or a vector of numbers, without calls, branches or tables.
#pragma once

#include <cstdint>
#include <cstring>

#include "scalar.h"

namespace snnfast {

// Adding kRound, 1.5 * 2^52 (2^23 in float), rounds to the nearest integer and leaves it in the low bits of the sum.
template <typename T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Scalar = float;
  using Int = int32_t;
  static constexpr float kRound = 12582912.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.428606765330187e-06f;
  static constexpr float kLowest = -87.0f;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
};

template <>
struct ExpTraits<double> {
  using Scalar = double;
  using Int = int64_t;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.0;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
};

// Returns 2^n, where n is in the low bits of a sum with kRound.
template <typename T>
SNN_HD T power_of_two(T shifted) {
  using Traits = ExpTraits<T>;
  typename Traits::Int bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + Traits::kBias) << Traits::kMantissa;
  T power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// The error is below 2 ulp. Results below the smallest normal number are 0. NaN gives NaN.
template <typename T>
SNN_HD T exp_of_nonpositive(T x) {
  using Traits = ExpTraits<T>;
  using Scalar = typename Traits::Scalar;
  const T lowest = T(Traits::kLowest), round = T(Traits::kRound);
  // x = n * ln 2 + r with |r| <= ln(2) / 2; exp(r) by its Taylor polynomial; 2^n by its exponent bits.
  const T clamped = select(x < lowest, lowest, x);
  const T shifted = clamped * T(Scalar(1.44269504088896340736)) + round;
  const T n = shifted - round;
  const T r = (clamped - n * T(Traits::kLn2High)) - n * T(Traits::kLn2Low);
  T polynomial = T(1);
  for (int k = Traits::kDegree; k > 0; --k) polynomial = T(1) + polynomial * r * T(Scalar(1) / Scalar(k));
  return select(x < lowest, T(0), polynomial * power_of_two(shifted));
}

}  // namespace snnfast
