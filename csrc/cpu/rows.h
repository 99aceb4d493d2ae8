// Rows of a block of neurons in the dtype of a tensor, to and from that of the arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../math/scalar.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

struct Half {
  _Float16 value;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename S>
struct Acc {
  using type = float;
};
template <>
struct Acc<double> {
  using type = double;
};

SNN_HD float widen(Half h) { return static_cast<float>(h.value); }
SNN_HD void narrow(float value, Half& h) { h.value = static_cast<_Float16>(value); }

SNN_HD float widen(BFloat16 h) {
  const uint32_t bits = static_cast<uint32_t>(h.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

SNN_HD void narrow(float value, BFloat16& h) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  h.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// A row in the dtype of a tensor, as arithmetic wants it.
template <typename S>
void load_row(const S* row, int n, float* to) {
  for (int i = 0; i < n; ++i) to[i] = widen(row[i]);
}
#if defined(__F16C__)  // g++ does not vectorise this conversion by itself
inline void load_row(const Half* row, int n, float* to) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i))));
  }
  for (; i < n; ++i) to[i] = widen(row[i]);
}
#endif
inline void load_row(const float* row, int n, float* to) { std::memcpy(to, row, static_cast<size_t>(n) * sizeof *to); }
inline void load_row(const double* row, int n, double* to) {
  std::memcpy(to, row, static_cast<size_t>(n) * sizeof *to);
}

template <typename S>
void store_row(S* row, int n, const float* from) {
  for (int i = 0; i < n; ++i) narrow(from[i], row[i]);
}
#if defined(__F16C__)
inline void store_row(Half* row, int n, const float* from) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
  }
  for (; i < n; ++i) narrow(from[i], row[i]);
}
#endif
inline void store_row(float* row, int n, const float* from) {
  std::memcpy(row, from, static_cast<size_t>(n) * sizeof *row);
}
inline void store_row(double* row, int n, const double* from) {
  std::memcpy(row, from, static_cast<size_t>(n) * sizeof *row);
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
