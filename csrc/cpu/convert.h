// Converts rows of a block of neurons between the dtype of a tensor and its opmath dtype.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../math/scalar.h"
#include "vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

struct Half {
  _Float16 value;
};
struct BFloat16 {
  uint16_t bits;
};

// The type of the arithmetic on elements of a type, and of the states between steps.
template <typename S>
using Opmath = std::conditional_t<std::is_same_v<S, double>, double, float>;

SNN_HD float widen(float value) { return value; }
SNN_HD double widen(double value) { return value; }
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

// Loads a row in the dtype of a tensor into one in the opmath dtype.
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
#elif defined(__ARM_NEON)
inline void load_row(const Half* row, int n, float* to) {
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(row + i)))));
  }
  for (; i < n; ++i) to[i] = widen(row[i]);
}
#endif
inline void load_row(const float* row, int n, float* to) { std::memcpy(to, row, static_cast<size_t>(n) * sizeof *to); }
inline void load_row(const double* row, int n, double* to) {
  std::memcpy(to, row, static_cast<size_t>(n) * sizeof *to);
}

// A vector of floats as 16-bit elements, rounded as by `narrow`.
typedef uint16_t Narrowed __attribute__((vector_size(kVectorBytes / 2)));

inline Narrowed narrow(Vec<float> v, BFloat16*) {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  const auto bits = reinterpret_cast<Bits>(v.r);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(v.r == v.r ? rounded : Bits{} + 0x7fc0u, Narrowed);
}
#if defined(__AVX512F__)
inline Narrowed narrow(Vec<float> v, Half*) { return reinterpret_cast<Narrowed>(_mm512_cvtps_ph(v.r, 0)); }
#elif defined(__F16C__)
inline Narrowed narrow(Vec<float> v, Half*) { return reinterpret_cast<Narrowed>(_mm256_cvtps_ph(v.r, 0)); }
#elif defined(__ARM_NEON)
inline Narrowed narrow(Vec<float> v, Half*) { return Narrowed(vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(v.r)))); }
#else
inline Narrowed narrow(Vec<float> v, Half*) {  // one by one: no instruction converts several
  Narrowed narrowed{};
  for (int i = 0; i < Vec<float>::kSize; ++i) {
    Half h;
    narrow(v.r[i], h);
    std::memcpy(reinterpret_cast<char*>(&narrowed) + i * sizeof h, &h, sizeof h);
  }
  return narrowed;
}
#endif

inline void put(void* to, Narrowed narrowed, [[maybe_unused]] bool non_temporal) {
#if defined(__AVX512F__)
  if (non_temporal) return _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(narrowed));
#elif defined(__AVX__)
  if (non_temporal) return _mm_stream_si128(static_cast<__m128i*>(to), reinterpret_cast<__m128i>(narrowed));
#endif
  std::memcpy(to, &narrowed, sizeof narrowed);
}

// Stores a row in the opmath dtype into one in the dtype of a tensor. For non-temporal stores, `row` must be aligned to
// a register, and n a multiple of its elements.
template <typename S>
void store_row(S* row, int n, const float* from, bool non_temporal = false) {
  int i = 0;
  for (; i + Vec<float>::kSize <= n; i += Vec<float>::kSize) {
    put(row + i, narrow(Vec<float>::load(from + i), row), non_temporal);
  }
  for (; i < n; ++i) narrow(from[i], row[i]);
}
inline void store_row(float* row, int n, const float* from, bool = false) {
  std::memcpy(row, from, static_cast<size_t>(n) * sizeof *row);
}
inline void store_row(double* row, int n, const double* from, bool = false) {
  std::memcpy(row, from, static_cast<size_t>(n) * sizeof *row);
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
