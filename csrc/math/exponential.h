// Exponentials of one number or a vector of numbers, without calls, branches or tables.
#pragma once

#include <cstdint>
#include <cstring>

#include "scalar.h"

namespace snnfast {

inline constexpr double kLog2E = 1.44269504088896340736;  // exp(x) = 2^(kLog2E x)

// Adding kRound, 1.5 * 2^52 (2^23 in float), rounds to the nearest integer and leaves it in the low bits of the sum.
template <typename T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Scalar = float;
  using Int = int32_t;
  static constexpr float kRound = 12582912.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.428606765330187e-06f;
  static constexpr float kLowest = -87.0f, kLowest2 = -126.0f;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
};

template <>
struct ExpTraits<double> {
  using Scalar = double;
  using Int = int64_t;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.0, kLowest2 = -1022.0;
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

// Returns 2^x for |x| <= 1/2, by its Taylor polynomial.
template <typename T>
SNN_HD T exp2_near_zero(T x) {
  using Traits = ExpTraits<T>;
  constexpr double kLn2 = 0.69314718055994530942;
  double coefficient = 1;
  for (int k = 1; k <= Traits::kDegree; ++k) coefficient *= kLn2 / k;
  T sum = T(typename Traits::Scalar(coefficient));
  for (int k = Traits::kDegree; k > 1; --k) {
    coefficient *= k / kLn2;
    sum = sum * x + T(typename Traits::Scalar(coefficient));
  }
  return sum * x + T(1);
}

// Returns 2^x for x <= 0. The error is below 2 ulp. Results below the smallest normal number are 0. NaN gives NaN.
template <typename T>
SNN_HD T exp2_of_nonpositive(T x) {
  using Traits = ExpTraits<T>;
  const T lowest = T(Traits::kLowest2), round = T(Traits::kRound);
  const T clamped = select(x < lowest, lowest, x), shifted = clamped + round;
  return select(x < lowest, T(0), exp2_near_zero(clamped - (shifted - round)) * power_of_two(shifted));
}

// x = n * ln 2 + r with |r| <= ln(2) / 2. Returns exp(r), and n in the low bits of `shifted`.
template <typename T>
SNN_HD T exp_of_rest(T x, T& shifted) {
  using Traits = ExpTraits<T>;
  const T log2e = T(typename Traits::Scalar(kLog2E)), round = T(Traits::kRound);
  shifted = x * log2e + round;
  const T n = shifted - round;
  const T r = (x - n * T(Traits::kLn2High)) - n * T(Traits::kLn2Low);
  return exp2_near_zero(r * log2e);
}

// Returns exp(x) for x <= 0, as exp2_of_nonpositive.
template <typename T>
SNN_HD T exp_of_nonpositive(T x) {
  const T lowest = T(ExpTraits<T>::kLowest);
  T shifted;
  const T rest = exp_of_rest(select(x < lowest, lowest, x), shifted);
  return select(x < lowest, T(0), rest * power_of_two(shifted));
}

}  // namespace snnfast
