// Threads that do not wait for each other, or wait for what does not come.
#include "planted.h"

namespace planted {
namespace {

template <bool kPlanted>
__global__ void missing_syncthreads(float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!kPlanted) __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // planted: missing_syncthreads
}

template <bool kPlanted>
void run_missing_syncthreads() {
  const Memory<float> y(64);
  run(missing_syncthreads<kPlanted>, 1, 64, y.get());
}

// One barrier of two: the threads meet before each write, but not after the last.
template <bool kPlanted>
__global__ void missing_second_syncthreads(float* y) {
  __shared__ float tile[64];
  for (int k = 0; k < 2; ++k) {
    tile[threadIdx.x] = static_cast<float>(k);  // planted: missing_second_syncthreads
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
    if (!kPlanted) __syncthreads();
  }
}

template <bool kPlanted>
void run_missing_second_syncthreads() {
  const Memory<float> y(64);
  run(missing_second_syncthreads<kPlanted>, 1, 64, y.get());
}

template <bool kPlanted>
__global__ void missing_syncwarp(float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!kPlanted) __syncwarp();
  y[threadIdx.x] = tile[threadIdx.x ^ 1u];  // planted: missing_syncwarp
}

template <bool kPlanted>
void run_missing_syncwarp() {
  const Memory<float> y(64);
  run(missing_syncwarp<kPlanted>, 1, 64, y.get());
}

template <bool kPlanted>
__global__ void block_race(int* y) {
  if (threadIdx.x != 0) return;
  if (kPlanted) {
    *y += 1;  // planted: block_race
  } else {
    atomicAdd(y, 1);
  }
}

template <bool kPlanted>
void run_block_race() {
  const Memory<int> y(1, 0);
  run(block_race<kPlanted>, 4, 32, y.get());
}

template <bool kPlanted>
__global__ void divergent_barrier() {
  if (!kPlanted || threadIdx.x < 16) {
    __syncthreads();  // planted: divergent_barrier
  }
}

template <bool kPlanted>
void run_divergent_barrier() {
  run(divergent_barrier<kPlanted>, 2, 64);
}

template <bool kPlanted>
__global__ void two_barriers() {
  if (!kPlanted || threadIdx.x < 16) {
    __syncthreads();  // planted: two_barriers
  } else {
    __syncthreads();
  }
}

template <bool kPlanted>
void run_two_barriers() {
  run(two_barriers<kPlanted>, 1, 64);
}

// The lower half of a warp adds up its lanes.
template <bool kPlanted>
__global__ void exited_lane(float* y) {
  if (threadIdx.x >= 16) return;
  float sum = 1;
  for (unsigned offset = 8; offset > 0; offset /= 2) {
    sum += __shfl_down_sync(kPlanted ? 0xffffffffu : 0xffffu, sum, offset);  // planted: exited_lane
  }
  if (threadIdx.x == 0) *y = sum;
}

template <bool kPlanted>
void run_exited_lane() {
  const Memory<float> y(1);
  run(exited_lane<kPlanted>, 1, 32, y.get());
  y.expect_written();
}

template <bool kPlanted>
__global__ void own_lane() {
  __syncwarp(kPlanted ? 0xfffffffeu : 0xffffffffu);  // planted: own_lane
}

template <bool kPlanted>
void run_own_lane() {
  run(own_lane<kPlanted>, 1, 32);
}

template <bool kPlanted>
__global__ void absent_lane(int* y) {
  const unsigned mask = threadIdx.x < 32 ? 0xffffffffu : kPlanted ? 0xffffffffu : 0xffffu;
  y[threadIdx.x] = __shfl_xor_sync(mask, static_cast<int>(threadIdx.x), 1);  // planted: absent_lane
}

template <bool kPlanted>
void run_absent_lane() {
  const Memory<int> y(48);
  run(absent_lane<kPlanted>, 1, 48, y.get());
}

template <bool kPlanted>
__global__ void different_masks() {
  __syncwarp(kPlanted && threadIdx.x == 3 ? 0xffu : 0xffffffffu);  // planted: different_masks
}

template <bool kPlanted>
void run_different_masks() {
  run(different_masks<kPlanted>, 1, 32);
}

// Blocks need not run at the same time.
template <bool kPlanted>
__global__ void block_waits(int* arrived) {
  atomicAdd(arrived, 1);
  int now = 0;
  do {
    now = atomicAdd(arrived, 0);  // planted: block_waits
  } while (kPlanted && now < 2);
}

template <bool kPlanted>
void run_block_waits() {
  const Memory<int> arrived(1, 0);
  run(block_waits<kPlanted>, 2, 1, arrived.get());
}

template <bool kPlanted>
void run_block_size() {
  run(nothing, 1, kPlanted ? 1025 : 1024);
}

template <bool kPlanted>
void run_shared_size() {
  expect_success(emulator::launch(nothing, 1, 32, 48 * 1024 + kPlanted));
}

}  // namespace
}  // namespace planted
