// What the kernels need around them: element types, 16-byte accesses, and the launch itself.
#pragma once

#if defined(SNN_EMULATED)
#include "emulator.h"  // the CUDA language on the CPU, for tests
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "../lif.h"

namespace snnfast::cuda {

// Half-precision elements as bits: trivial types, so that a pack of them moves in one access.
struct Half {
  uint16_t bits;
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

// V adjacent elements. One access of 16 bytes, or several where they are more.
template <typename S, int V>
struct alignas(sizeof(S) * V < 16 ? sizeof(S) * V : 16) Pack {
  S values[V];
};

template <int V, typename S, typename A>
__device__ __forceinline__ void load(const S* from, A (&to)[V]) {
  const Pack<S, V> pack = *reinterpret_cast<const Pack<S, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = widen(pack.values[i]);
}

// In as few accesses as the pack's alignment allows. For architectures before 10.0 nvcc takes an assignment of a pack,
// or of a vector, apart into one store per element; instructions it does not.
template <typename S, int V>
__device__ __forceinline__ void put(S* to, const Pack<S, V>& pack) {
#if defined(SNN_EMULATED)
  *reinterpret_cast<Pack<S, V>*>(to) = pack;
#else
  if constexpr (sizeof pack % 4 == 0) {
    constexpr int kWords = sizeof pack / 4;
    uint32_t w[kWords];
    memcpy(w, &pack, sizeof pack);
    const auto at = __cvta_generic_to_global(to);
    if constexpr (kWords % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        asm("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at + 4 * i), "r"(w[i]), "r"(w[i + 1]), "r"(w[i + 2]),
            "r"(w[i + 3]));
      }
    } else if constexpr (kWords == 2) {
      asm("st.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(w[0]), "r"(w[1]));
    } else {
      static_assert(kWords == 1);
      asm("st.global.b32 [%0], %1;" ::"l"(at), "r"(w[0]));
    }
  } else {
    *reinterpret_cast<Pack<S, V>*>(to) = pack;
  }
#endif
}

template <int V, typename S, typename A>
__device__ __forceinline__ void store(S* to, const A (&from)[V]) {
  Pack<S, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.values[i] = narrow<S>(from[i]);
  put(to, pack);
}

template <typename A, int V>
__device__ __forceinline__ void fill(A (&to)[V], A value) {
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = value;
}

// Elements in 16 bytes.
template <typename S>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(S));

// Calls f with an element of the type.
template <typename F>
int visit_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat: return f(float{});
    case DType::kDouble: return f(double{});
    case DType::kHalf: return f(Half{});
    case DType::kBFloat16: return f(BFloat16{});
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

inline bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
  }
  return true;
}

// At most the largest grid: kernels that need more blocks stride over what is left.
template <typename Problem>
int launch_blocks(void (*kernel)(Problem), int64_t blocks, int threads, [[maybe_unused]] void* stream,
                  const Problem& problem) {
  constexpr int64_t kLargestGrid = 0x7fffffff;
  const auto grid = static_cast<unsigned>(blocks < kLargestGrid ? blocks : kLargestGrid);
#if defined(SNN_EMULATED)
  return emulator::launch(kernel, grid, static_cast<unsigned>(threads), 0, problem);
#else
  // clang-format off
  kernel<<<grid, static_cast<unsigned>(threads), 0, static_cast<cudaStream_t>(stream)>>>(problem);
  // clang-format on
  return static_cast<int>(cudaGetLastError());
#endif
}

// One thread per group of neurons.
template <typename Problem>
int launch(void (*kernel)(Problem), int64_t groups, int threads, void* stream, const Problem& problem) {
  return launch_blocks<Problem>(kernel, (groups + threads - 1) / threads, threads, stream, problem);
}

int64_t vector_minimum();

}  // namespace snnfast::cuda
