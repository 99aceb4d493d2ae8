// What the host does for every kernel: which of them runs, and its launch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../op/problem.h"
#include "elements.cuh"

namespace snnfast::cuda {

// ---- of device.cu: what does not depend on the neuron

enum class Pass { kForward, kBackward };
// Whether a thread had better take V neurons in a pass: there are many, in a multiple of V.
bool wants_vectors(Pass pass, int64_t neurons, int V);
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

// Whether threads take V neurons each in a call. These share their parameters, and have no results but their sums.
template <typename Neuron>
bool takes_vectors(const Problem<Neuron>& p, Pass pass, int V) {
  return wants_vectors(pass, p.N, V) && p.lengths == nullptr && aligned(p.x, p.initial) &&
         std::ranges::all_of(p.parameters, &Parameter::uniform);
}
template <typename Neuron>
bool takes_vectors(const Forward<Neuron>& p, int V) {
  // The user's callable, which gets the membranes that decided the spikes, takes longer than one neuron per thread.
  return takes_vectors(p, Pass::kForward, V) && p.deciding == nullptr && aligned(p.spk, p.record, p.last, p.rows);
}
template <typename Neuron>
bool takes_vectors(const Backward<Neuron>& p, int V) {
  return takes_vectors(p, Pass::kBackward, V) && (p.summed != 0 || !p.sums_parameters()) &&
         aligned(p.mem_rec, p.rows, p.derivative, p.grad_spk, p.grad_record, p.grad_last, p.grad_x, p.grad_x_sum,
                 p.grad_initial);
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

// A thread for V neurons, `most` of them in a block.
template <int V, typename P>
int launch(void (*kernel)(P), int most, void* stream, const P& problem) {
  const int threads = V > 1 ? most : threads_for(problem.N, most);
  return launch_blocks(kernel, (problem.N / V + threads - 1) / threads, threads, stream, problem);
}

}  // namespace snnfast::cuda
