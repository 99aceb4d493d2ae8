// Vec<A>: one vector register of this instruction set, for the equations of math/, which are templates of their type.
//
// Part of kernels.cpp. The rules at its top hold here too. GCC's vector types do the work: each operator is one
// instruction.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../math/exponential.h"
#include "../math/scalar.h"

// Before a loop, none of whose turns reads what another one writes.
#if defined(__clang__)
#define SNN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SNN_INDEPENDENT _Pragma("GCC ivdep")
#endif

#define SNN_UNROLL _Pragma("GCC unroll 8")

namespace snnfast::cpu::SNN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename A>
struct Registers;
template <>
struct Registers<float> {
  typedef float Value __attribute__((vector_size(kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(float)), may_alias));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Registers<double> {
  typedef double Value __attribute__((vector_size(kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(double)), may_alias));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
};

template <typename A>
struct Vec {
  using Scalar = A;
  using Value = typename Registers<A>::Value;
  using Mask = typename Registers<A>::Int;  // -1 where true
  static constexpr int kSize = kVectorBytes / static_cast<int>(sizeof(A));

  Value r;

  Vec() = default;
  SNN_HD explicit Vec(A s) : r(s - Value{}) {}  // in every lane; not 0 + s, which loses the sign of -0
  SNN_HD explicit Vec(Value value) : r(value) {}

  friend SNN_HD Vec operator+(Vec a, Vec b) { return Vec(a.r + b.r); }
  friend SNN_HD Vec operator-(Vec a, Vec b) { return Vec(a.r - b.r); }
  friend SNN_HD Vec operator*(Vec a, Vec b) { return Vec(a.r * b.r); }
  friend SNN_HD Vec operator/(Vec a, Vec b) { return Vec(a.r / b.r); }
  friend SNN_HD Vec operator-(Vec a) { return Vec(-a.r); }
  SNN_HD Vec& operator+=(Vec b) { return *this = *this + b; }
  SNN_HD Vec& operator-=(Vec b) { return *this = *this - b; }

  friend SNN_HD Mask operator>(Vec a, Vec b) { return a.r > b.r; }
  friend SNN_HD Mask operator<(Vec a, Vec b) { return a.r < b.r; }
  friend SNN_HD Mask operator>=(Vec a, Vec b) { return a.r >= b.r; }
  friend SNN_HD Vec select(Mask condition, Vec yes, Vec no) { return Vec(condition ? yes.r : no.r); }

  friend SNN_HD Vec magnitude(Vec a) {
    constexpr auto kAllButSign = std::numeric_limits<typename ExpTraits<A>::Int>::max();
    return Vec(reinterpret_cast<Value>(reinterpret_cast<Mask>(a.r) & kAllButSign));
  }

  friend SNN_HD Vec power_of_two(Vec shifted) {
    using Traits = ExpTraits<A>;
    return Vec(reinterpret_cast<Value>((reinterpret_cast<Mask>(shifted.r) + Traits::kBias) << Traits::kMantissa));
  }

  static SNN_HD Vec load(const A* from) {
    return Vec(static_cast<Value>(*reinterpret_cast<const typename Registers<A>::Unaligned*>(from)));
  }
  SNN_HD void store(A* to) const { *reinterpret_cast<typename Registers<A>::Unaligned*>(to) = r; }
};

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA

namespace snnfast {
template <typename A>
struct ExpTraits<cpu::SNN_ISA::Vec<A>> : ExpTraits<A> {};
}  // namespace snnfast

namespace snnfast::cpu::SNN_ISA {
namespace {

// a * b + c, rounded once if the instruction set can. Nothing that decides a spike may call it.
template <typename A>
SNN_HD Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return Vec<A>(typename Vec<A>::Value(_mm512_fmadd_ps(a.r, b.r, c.r)));
  if constexpr (sizeof(A) == 8) return Vec<A>(typename Vec<A>::Value(_mm512_fmadd_pd(a.r, b.r, c.r)));
#elif defined(__FMA__)
  if constexpr (sizeof(A) == 4) return Vec<A>(typename Vec<A>::Value(_mm256_fmadd_ps(a.r, b.r, c.r)));
  if constexpr (sizeof(A) == 8) return Vec<A>(typename Vec<A>::Value(_mm256_fmadd_pd(a.r, b.r, c.r)));
#elif defined(__ARM_NEON)
  using Value = typename Vec<A>::Value;
  if constexpr (sizeof(A) == 4) {
    return Vec<A>(Value(vfmaq_f32(float32x4_t(c.r), float32x4_t(a.r), float32x4_t(b.r))));
  } else {
    return Vec<A>(Value(vfmaq_f64(float64x2_t(c.r), float64x2_t(a.r), float64x2_t(b.r))));
  }
#else
  return a * b + c;
#endif
}

// Integers of another width. GCC has instructions for twice and for half the width, and takes what is further apart
// number by number. By reference: how a vector wider than a register is returned depends on the instruction set.
template <typename From, typename To>
SNN_HD void resize(const From& from, To& to) {
  constexpr size_t kFrom = sizeof(from[0]), kTo = sizeof(to[0]);
  if constexpr (kFrom > 2 * kTo) {
    typedef std::conditional_t<kFrom == 8, uint32_t, uint16_t> Half __attribute__((vector_size(sizeof(From) / 2)));
    resize(__builtin_convertvector(from, Half), to);
  } else if constexpr (kTo > 2 * kFrom) {
    typedef std::conditional_t<kTo == 8, uint32_t, uint16_t> Half __attribute__((vector_size(sizeof(To) / 2)));
    Half half;
    resize(from, half);
    to = __builtin_convertvector(half, To);
  } else {
    to = __builtin_convertvector(from, To);
  }
}

// A non-temporal store does not read the cache line first. `to` must be aligned to a register.
#if defined(__AVX512F__)
SNN_HD void stream(float* to, Vec<float> v) { _mm512_stream_ps(to, v.r); }
SNN_HD void stream(double* to, Vec<double> v) { _mm512_stream_pd(to, v.r); }
#elif defined(__AVX__)
SNN_HD void stream(float* to, Vec<float> v) { _mm256_stream_ps(to, v.r); }
SNN_HD void stream(double* to, Vec<double> v) { _mm256_stream_pd(to, v.r); }
#elif defined(__SSE2__)
SNN_HD void stream(float* to, Vec<float> v) { _mm_stream_ps(to, v.r); }
SNN_HD void stream(double* to, Vec<double> v) { _mm_stream_pd(to, v.r); }
#else
template <typename A>
SNN_HD void stream(A* to, Vec<A> v) {
  v.store(to);
}
#endif

// Whether one non-temporal store fills a cache line. Smaller ones are collected in a few buffers: parts of many lines
// in turns drive each other out, and are then several times slower than ordinary stores.
constexpr bool kWholeLines = kVectorBytes == 64;

// Orders non-temporal stores before any later store by which another thread learns that the data is there.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
