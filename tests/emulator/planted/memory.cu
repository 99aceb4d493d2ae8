// Accesses to memory that is not there, not aligned or not written.
#include "planted.h"

namespace planted {
namespace {

template <bool kPlanted>
__global__ void global_bounds(float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (kPlanted ? i <= n : i < n) {
    y[i] = 1;  // planted: global_bounds
  }
}

template <bool kPlanted>
void run_global_bounds() {
  const Memory<float> y(100);
  run(global_bounds<kPlanted>, 2, 64, y.get(), 100);
}

// Where the compiler sees the array, UndefinedBehaviorSanitizer is first.
[[gnu::noinline]] __device__ void put(float* row, unsigned i) {
  row[i] = 1;  // planted: static_shared_bounds
}

template <bool kPlanted>
__global__ void static_shared_bounds() {
  __shared__ float tile[32];
  put(tile, threadIdx.x + kPlanted);
}

template <bool kPlanted>
void run_static_shared_bounds() {
  run(static_shared_bounds<kPlanted>, 1, 32);
}

template <bool kPlanted>
__global__ void alignment(const float* x, float* y) {
  const float4 four = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + kPlanted);  // planted: alignment
  y[threadIdx.x] = four.x + four.y + four.z + four.w;
}

template <bool kPlanted>
void run_alignment() {
  const Memory<float> x(132, 1), y(32);
  run(alignment<kPlanted>, 1, 32, static_cast<const float*>(x.get()), y.get());
}

template <bool kPlanted>
__global__ void fill(float* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (kPlanted ? i < n - 1 : i < n) y[i] = 1;
}

__global__ void twice(const float* x, float* y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }

template <bool kPlanted>
void run_unwritten_global() {
  const Memory<float> x(32), y(32);
  run(fill<kPlanted>, 1, 64, x.get(), 32);
  run(twice, 1, 32, static_cast<const float*>(x.get()), y.get());
  y.expect_written();
}

template <bool kPlanted>
__global__ void unwritten_shared(float* y) {
  __shared__ float tile[32];
  if (!kPlanted || threadIdx.x != 7) tile[threadIdx.x] = 1;
  __syncthreads();
  y[blockIdx.x * 32 + threadIdx.x] = 2 * tile[31 - threadIdx.x];
}

template <bool kPlanted>
void run_unwritten_shared() {
  const Memory<float> y(64);
  run(unwritten_shared<kPlanted>, 2, 32, y.get());
  y.expect_written();
}

template <bool kPlanted>
void run_unwritten_output() {
  const Memory<float> y(32);
  run(fill<kPlanted>, 1, 64, y.get(), 32);
  y.expect_written();
}

}  // namespace
}  // namespace planted
