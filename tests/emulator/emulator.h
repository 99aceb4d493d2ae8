// Runs CUDA kernel sources on the CPU, for tests: the CUDA language as g++ sees it, and a launch that is a loop.
//
// The threads of a grid run one after the other, each to its end, so a kernel whose threads wait for one another does
// not compile here (there is no __syncthreads). What is real: the kernel source itself, its indexing, its types from
// the toolkit's headers, launch limits, and whatever the sanitizers see of it. SNNFAST_EMULATOR_SEED other than 0
// shuffles the order of blocks and threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

// The toolkit's host headers define these for its own host compiler.
#undef __device__
#undef __global__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#define __device__
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
// Blocks run one after the other, so one copy serves them all.
#define __shared__ static

namespace emulator {

struct Index {
  unsigned x;
};

inline thread_local Index thread_index, block_index, block_size, grid_size;

inline unsigned seed() {
  const char* text = std::getenv("SNNFAST_EMULATOR_SEED");
  return text == nullptr ? 0 : static_cast<unsigned>(std::atoi(text));
}

inline std::vector<unsigned> order(unsigned count, std::mt19937& random) {
  std::vector<unsigned> indices(count);
  std::iota(indices.begin(), indices.end(), 0u);
  if (seed() != 0) std::shuffle(indices.begin(), indices.end(), random);
  return indices;
}

template <typename Problem>
int launch(void (*kernel)(Problem), unsigned grid, unsigned threads, const Problem& problem) {
  if (grid == 0 || grid > 0x7fffffffu || threads == 0 || threads > 1024) return cudaErrorInvalidConfiguration;
  std::mt19937 random(seed());
  grid_size = {grid};
  block_size = {threads};
  for (const unsigned block : order(grid, random)) {
    block_index = {block};
    for (const unsigned thread : order(threads, random)) {
      thread_index = {thread};
      kernel(problem);
    }
  }
  return cudaSuccess;
}

inline const char* error_string(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "unknown error";
}

}  // namespace emulator

#define threadIdx (emulator::thread_index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
// There is no CUDA runtime to ask.
#define cudaGetErrorString emulator::error_string
