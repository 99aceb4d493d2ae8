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

// V adjacent elements, which one access of 16 bytes moves, or several.
template <typename S, int V>
struct alignas(sizeof(S) * V < 16 ? sizeof(S) * V : 16) Pack {
  S values[V];
};

// An integer of the size of a pack, or of 16 bytes of it.
template <int kBytes>
using Word = std::conditional_t<
    kBytes == 1, unsigned char,
    std::conditional_t<kBytes == 2, unsigned short,
                       std::conditional_t<kBytes == 4, unsigned, std::conditional_t<kBytes == 8, uint2, uint4>>>>;

// A pack as it comes from memory, in words. The compiler would take a pack of 16-bit elements apart at the next branch,
// and wait for its load there. It leaves words alone, so that several loads can be under way at once.
template <typename S, int V>
struct Raw {
  using W = Word<static_cast<int>(sizeof(Pack<S, V>))>;
  W words[sizeof(Pack<S, V>) / sizeof(W)];
};

template <typename S, int V>
__device__ __forceinline__ Raw<S, V> get(const S* from) {
#if !defined(SNN_EMULATED)
  __builtin_assume(__isGlobal(from));
#endif
  Raw<S, V> raw;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof raw / sizeof raw.words[0]); ++i) {
    raw.words[i] = reinterpret_cast<const typename Raw<S, V>::W*>(from)[i];
  }
  return raw;
}

template <typename S, int V>
__device__ __forceinline__ Pack<S, V> pack_of(const Raw<S, V>& raw) {
  Pack<S, V> pack;
  memcpy(&pack, &raw, sizeof pack);
  return pack;
}

template <typename S, int V>
__device__ __forceinline__ Raw<S, V> raw_of(const Pack<S, V>& pack) {
  Raw<S, V> raw;
  memcpy(&raw, &pack, sizeof raw);
  return raw;
}

template <typename S, int V, typename A>
__device__ __forceinline__ void unpack(const Raw<S, V>& raw, A (&to)[V]) {
  const Pack<S, V> pack = pack_of(raw);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = widen(pack.values[i]);
}

template <int V, typename S, typename A>
__device__ __forceinline__ void load(const S* from, A (&to)[V]) {
  unpack(get<S, V>(from), to);
}

#if !defined(SNN_EMULATED)
// Without volatile and "memory" the compiler would see no effect of these instructions, and might drop or move them.
__device__ __forceinline__ void put_words(size_t at, uint32_t (&w)[1]) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(at), "r"(w[0]) : "memory");
}
__device__ __forceinline__ void put_words(size_t at, uint32_t (&w)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(w[0]), "r"(w[1]) : "memory");
}
template <int kWords>
__device__ __forceinline__ void put_words(size_t at, uint32_t (&w)[kWords]) {
  static_assert(kWords % 4 == 0);
#pragma unroll
  for (int i = 0; i < kWords; i += 4) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at + 4 * i), "r"(w[i]), "r"(w[i + 1]), "r"(w[i + 2]),
                 "r"(w[i + 3])
                 : "memory");
  }
}
#endif

// Stores in as few accesses as the pack's alignment allows. For architectures before 10.0 nvcc takes an assignment of a
// pack, or of a vector, apart into one store per element; it leaves instructions as they are.
template <typename S, int V>
__device__ __forceinline__ void put(S* to, const Pack<S, V>& pack) {
#if !defined(SNN_EMULATED)
  if constexpr (sizeof pack % 4 == 0) {
    uint32_t words[sizeof pack / 4];
    memcpy(words, &pack, sizeof pack);
    put_words(__cvta_generic_to_global(to), words);
    return;
  }
#endif
  *reinterpret_cast<Pack<S, V>*>(to) = pack;
}

// One instruction converts two floats where there is one, and rounds as that for one float does.
template <typename S, typename A, int V>
__device__ __forceinline__ void narrow_two(const A* from, Pack<S, V>& to, int i) {
  to.values[i] = narrow<S>(from[0]);
  to.values[i + 1] = narrow<S>(from[1]);
}
template <int V>
__device__ __forceinline__ void narrow_two(const float* from, Pack<Half, V>& to, int i) {
  const __half2 two = __floats2half2_rn(from[0], from[1]);
  memcpy(&to.values[i], &two, sizeof two);
}
template <int V>
__device__ __forceinline__ void narrow_two(const float* from, Pack<BFloat16, V>& to, int i) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(from[0], from[1]);
  memcpy(&to.values[i], &two, sizeof two);
}

template <int V, typename S, typename A>
__device__ __forceinline__ void store(S* to, const A (&from)[V]) {
  Pack<S, V> pack;
  if constexpr (V == 1) {
    pack.values[0] = narrow<S>(from[0]);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += 2) narrow_two(from + i, pack, i);
  }
  put(to, pack);
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
