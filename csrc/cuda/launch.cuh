// What the host does for every kernel: which of them runs, and its launch.
#pragma once

#include <cstdint>
#include <cstring>

#include "../op/problem.h"
#include "elements.cuh"

namespace snnfast::cuda {

// ---- of device.cu: what does not depend on the neuron

// Whether a thread had better take V neurons: there are many, in a multiple of V.
bool forward_wants_vectors(int64_t neurons, int V);
bool backward_wants_vectors(int64_t neurons, int V);
// Whether the kernel of backward_chunked.cuh is the faster one.
bool wants_chunked(int64_t steps, int64_t neurons);

// ----

// Calls f with an element of the type. Without kDoubles, there are no kernels for float64.
template <bool kDoubles = true, typename F>
int visit_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat: return f(float{});
    case DType::kHalf: return f(Half{});
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kDouble:
      if constexpr (kDoubles) return f(double{});
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
template <typename T, size_t n>
bool is_aligned(T* const (&pointers)[n]) {
  for (const void* pointer : pointers) {
    if (!is_aligned(pointer)) return false;
  }
  return true;
}
template <typename... Pointers>
bool aligned(const Pointers&... pointers) {
  return (is_aligned(pointers) && ...);
}

template <typename P>
int launch_blocks(void (*kernel)(P), int64_t blocks, int threads, [[maybe_unused]] void* stream, const P& problem) {
  constexpr int64_t kLargestGrid = 0x7fffffff;  // of 32 neurons or more in a block, which no card has memory for
  if (blocks > kLargestGrid) return static_cast<int>(cudaErrorInvalidConfiguration);
  const auto grid = static_cast<unsigned>(blocks);
#if defined(SNN_EMULATED)
  return emulator::launch(kernel, grid, static_cast<unsigned>(threads), problem);
#else
  // clang-format off
  kernel<<<grid, static_cast<unsigned>(threads), 0, static_cast<cudaStream_t>(stream)>>>(problem);
  // clang-format on
  return static_cast<int>(cudaGetLastError());
#endif
}

// Clears memory, in the order of the stream.
inline int clear(void* memory, size_t bytes, [[maybe_unused]] void* stream) {
#if defined(SNN_EMULATED)
  std::memset(memory, 0, bytes);
  return 0;
#else
  return static_cast<int>(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
#endif
}

// The threads of a block, `most` at most. Few neurons get smaller blocks, so that large cards have a block for each
// multiprocessor. Only the number of neurons decides, so that every card has the same order of sums.
inline int threads_for(int64_t neurons, int most) {
  constexpr int64_t kBlocks = 128;
  constexpr int kWarp = 32;
  int threads = most;
  while (threads > kWarp && neurons < kBlocks * threads) threads /= 2;
  return threads;
}

// One thread per group of neurons.
template <typename P>
int launch(void (*kernel)(P), int64_t groups, int threads, void* stream, const P& problem) {
  return launch_blocks(kernel, (groups + threads - 1) / threads, threads, stream, problem);
}

}  // namespace snnfast::cuda
