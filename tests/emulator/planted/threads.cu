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

}  // namespace
}  // namespace planted
