// No bug: what the functions of the language must compute, in any order of threads.
#include "planted.h"

namespace planted {
namespace {

constexpr unsigned kAll = 0xffffffffu;

__device__ void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "language: %s\n", what);
  std::exit(1);
}

__global__ void warp_functions() {
  const unsigned lane = threadIdx.x % 32;
  const int i = static_cast<int>(lane);
  expect(__shfl_sync(kAll, i, 5) == 5, "__shfl_sync");
  expect(__shfl_sync(kAll, i, 9, 8) == (i / 8) * 8 + 1, "__shfl_sync in segments of 8");
  expect(__shfl_up_sync(kAll, i, 3) == (i < 3 ? i : i - 3), "__shfl_up_sync");
  expect(__shfl_up_sync(kAll, i, 3, 16) == (i % 16 < 3 ? i : i - 3), "__shfl_up_sync in segments of 16");
  expect(__shfl_down_sync(kAll, i, 3) == (i > 28 ? i : i + 3), "__shfl_down_sync");
  expect(__shfl_down_sync(kAll, i, 3, 4) == (i % 4 > 0 ? i : i + 3), "__shfl_down_sync in segments of 4");
  expect(__shfl_xor_sync(kAll, 0.5 * i, 7) == 0.5 * (i ^ 7), "__shfl_xor_sync");
  expect(__shfl_xor_sync(kAll, i, 16, 16) == (i < 16 ? i : i - 16), "__shfl_xor_sync in segments of 16");
  expect(__ballot_sync(kAll, i % 2) == 0xaaaaaaaau, "__ballot_sync");
  expect(__any_sync(kAll, i == 31) && !__any_sync(kAll, 0), "__any_sync");
  expect(__all_sync(kAll, 1) && !__all_sync(kAll, i != 31), "__all_sync");
  expect(__activemask() >> lane & 1u, "__activemask");
  if (lane < 8) expect(__ballot_sync(0xffu, 1) == 0xffu, "__ballot_sync of a part of a warp");
  if (lane == 31) return;
  __syncwarp();
  expect(__ballot_sync(kAll, 1) == 0x7fffffffu, "__ballot_sync after a lane has exited");
}

__global__ void block_functions(int* sum, float* most) {
  const int i = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y);
  expect(__syncthreads_count(i % 2) == 24, "__syncthreads_count");
  expect(__syncthreads_or(i == 3) && !__syncthreads_or(0), "__syncthreads_or");
  expect(__syncthreads_and(1) && !__syncthreads_and(i != 3), "__syncthreads_and");
  atomicAdd(sum, i);
  atomicMax(sum + 1, i);
  atomicMin(sum + 2, i);
  atomicExch(sum + 3, 5);
  atomicCAS(sum + 4, 0, i + 1);
  atomicAdd(most, 0.5f);
}

// The last block to arrive adds up what the others wrote before their fence.
__global__ void last_block(float* parts, int* arrived, float* sum) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = static_cast<float>(blockIdx.x);
    __threadfence();
    last = atomicAdd(arrived, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  *sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) *sum += parts[i];
}

__global__ void half_types(float* y) {
  const __half2 halves = __floats2half2_rn(1.0f, 2.0f);
  y[0] = __low2float(halves) + __high2float(halves) + __bfloat162float(__float2bfloat16(0.5f));
}

__global__ void indices(int* seen) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  seen[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1;
}

void check_language() {
  run(warp_functions, 2, 64);
  const Memory<int> sum(5, 0), arrived(1, 0), seen(24 * 24);
  const Memory<float> most(1, 0), parts(4), total(1), halves(1);
  expect_success(emulator::launch(block_functions, 1, {12, 4}, 0, sum.get(), most.get()));
  const int* s = sum.get();
  expect(s[0] == 48 * 47 / 2 && s[1] == 47 && s[2] == 0 && s[3] == 5 && s[4] > 0 && *most.get() == 24, "atomics");
  run(last_block, 4, 32, parts.get(), arrived.get(), total.get());
  expect(*total.get() == 6, "__threadfence");
  run(half_types, 1, 1, halves.get());
  expect(*halves.get() == 3.5f, "half types");
  expect_success(emulator::launch(indices, {2, 3, 4}, {4, 3, 2}, 0, seen.get()));
  seen.expect_written();
  const dim3 one(1);
  expect(emulator::launch(nothing, 0, one, 0) == cudaErrorInvalidConfiguration, "a grid of no blocks");
  expect(emulator::launch(nothing, {1, 65536}, one, 0) == cudaErrorInvalidConfiguration, "a grid too high");
  expect(emulator::launch(nothing, one, {1, 1, 65}, 0) == cudaErrorInvalidConfiguration, "a block too deep");
}

}  // namespace
}  // namespace planted
