// Elements in memory: their types, and loads and stores of V adjacent ones, 16 bytes at a time.
#pragma once

#if defined(SNN_EMULATED)
#include "emulator.h"  // the CUDA language on the CPU, for tests
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace snnfast::cuda {

// Half-precision elements as bits: trivial types, so that a pack of them moves in one access.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type of the arithmetic on elements of a type, and of the states between steps.
template <typename S>
using Opmath = std::conditional_t<std::is_same_v<S, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float widen(BFloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

template <typename S, typename A>
__device__ __forceinline__ S narrow(A x) {
  return x;
}
template <>
__device__ __forceinline__ Half narrow<Half, float>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16, float>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// An integer of so many bytes, or of 16 of them.
template <int kBytes>
using Word =
    std::conditional_t<kBytes == 2, unsigned short,
                       std::conditional_t<kBytes == 4, unsigned, std::conditional_t<kBytes == 8, uint2, uint4>>>;

// V adjacent elements as they lie in memory, in words that one access moves. The compiler would take 16-bit elements
// apart at the next branch, and wait for their load there. It leaves words alone, so that several loads can be under
// way at once.
template <typename S, int V>
struct Raw {
  using W = Word<static_cast<int>(sizeof(S)) * V>;
  static constexpr int kWords = static_cast<int>(sizeof(S) * V / sizeof(W));
  W words[kWords];
};

template <typename S, int V>
__device__ __forceinline__ Raw<S, V> get(const S* from) {
#if !defined(SNN_EMULATED)
  __builtin_assume(__isGlobal(from));
#endif
  Raw<S, V> raw;
#pragma unroll
  for (int i = 0; i < Raw<S, V>::kWords; ++i) raw.words[i] = reinterpret_cast<const typename Raw<S, V>::W*>(from)[i];
  return raw;
}

template <typename S, int V>
__device__ __forceinline__ Raw<S, V> raw_of(const S (&values)[V]) {
  Raw<S, V> raw;
  memcpy(&raw, values, sizeof raw);
  return raw;
}

template <typename S, int V, typename A>
__device__ __forceinline__ void unpack(const Raw<S, V>& raw, A (&to)[V]) {
  S values[V];
  memcpy(values, &raw, sizeof raw);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = widen(values[i]);
}

template <int V, typename S, typename A>
__device__ __forceinline__ void load(const S* from, A (&to)[V]) {
  unpack(get<S, V>(from), to);
}

// One instruction converts two floats where there is one, and rounds as that for one float does.
template <typename S, typename A>
__device__ __forceinline__ void narrow_two(const A* from, S* to) {
  to[0] = narrow<S>(from[0]);
  to[1] = narrow<S>(from[1]);
}
template <>
__device__ __forceinline__ void narrow_two(const float* from, Half* to) {
  const __half2 two = __floats2half2_rn(from[0], from[1]);
  memcpy(to, &two, sizeof two);
}
template <>
__device__ __forceinline__ void narrow_two(const float* from, BFloat16* to) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(from[0], from[1]);
  memcpy(to, &two, sizeof two);
}

template <typename W>
__device__ __forceinline__ void put(W* to, W word) {
  *to = word;
}
#if !defined(SNN_EMULATED)
// For architectures before 10.0 nvcc takes an assignment of a vector apart into one store per element; it leaves
// instructions as they are. Without volatile and "memory" it would see no effect of these, and might drop or move them.
__device__ __forceinline__ void put(unsigned* to, unsigned w) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(w) : "memory");
}
__device__ __forceinline__ void put(uint2* to, uint2 w) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(w.x), "r"(w.y) : "memory");
}
__device__ __forceinline__ void put(uint4* to, uint4 w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(w.x), "r"(w.y),
               "r"(w.z), "r"(w.w)
               : "memory");
}
#endif

template <int V, typename S, typename A>
__device__ __forceinline__ void store(S* to, const A (&from)[V]) {
  S values[V];
  if constexpr (V == 1) {
    values[0] = narrow<S>(from[0]);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 2) narrow_two(from + i, values + i);
  }
  const Raw<S, V> raw = raw_of(values);
#pragma unroll
  for (int i = 0; i < Raw<S, V>::kWords; ++i) put(reinterpret_cast<typename Raw<S, V>::W*>(to) + i, raw.words[i]);
}

template <typename A, int V>
__device__ __forceinline__ void fill(A (&to)[V], A value) {
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = value;
}

// The neurons of a thread that takes several: in forward those whose elements are 16 bytes, in backward those whose
// states are. The states of twice as many would leave registers for an eighth of a multiprocessor's threads.
template <typename S>
inline constexpr int kForwardWidth = 16 / static_cast<int>(sizeof(S));
template <typename S>
inline constexpr int kBackwardWidth = 16 / static_cast<int>(sizeof(Opmath<S>));

}  // namespace snnfast::cuda
