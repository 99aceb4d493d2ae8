// What the launches of all neurons share: whether a device can run the kernels, its cache, the limits by which a kernel
// is chosen, and errors.
#include "device.h"

#include <atomic>
#include <stdexcept>

#include "launch.cuh"

namespace snnfast::cuda {
namespace {

int64_t g_stream_bytes = -1;
int64_t g_vector_minimum = int64_t{1} << 18;
// From so many steps on each of 16 warps has a chunk. Up to so many neurons the plain kernel has less than three warps
// to a multiprocessor, with which to hide the latency of memory. With more, that it reads its inputs only once is worth
// more (docs/design-cuda.md).
int64_t g_least_steps = 16 * kCheckpoint;
int64_t g_most_neurons = 12288;

// Of the current device; asked for once for each. 0 where it can't be told: then every call is streamed.
int64_t cache_bytes() {
  if (g_stream_bytes >= 0) return g_stream_bytes;
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (device < kDevices) bytes = known[device].load(std::memory_order_relaxed);
  if (bytes != 0) return bytes;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device) != cudaSuccess) return 0;
  if (device < kDevices) known[device].store(bytes, std::memory_order_relaxed);
  return bytes;
}

#if !defined(SNN_EMULATED)
// There is machine code of it for the same architectures as of every kernel.
__global__ void __launch_bounds__(32) probe_kernel() {}

// 13.0 of 13000.
std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string old_driver() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "there is no driver of NVIDIA's";
  return "its driver is one for CUDA " + version(driver) + ", and the kernels need one for CUDA " +
         std::to_string(runtime / 1000) + " or newer";
}
#endif

}  // namespace

#if !defined(SNN_EMULATED)
std::string unavailable() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaGetLastError();  // else the next launch would report it
  switch (error) {
    case cudaSuccess: return "";
    case cudaErrorInsufficientDriver: return old_driver();
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction: return "there are no kernels for this card in the library";
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return std::string("its driver can't compile the kernels from the PTX in the library: ") + error_string(error);
    default: throw std::runtime_error(std::string("snnfast: CUDA failed: ") + error_string(error));
  }
}
#endif

bool exceeds_cache(int64_t bytes) { return bytes > cache_bytes(); }

int64_t vector_minimum() { return g_vector_minimum; }

bool wants_chunked(int64_t steps, int64_t neurons) { return steps >= g_least_steps && neurons <= g_most_neurons; }

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

void set_vector_minimum(int64_t neurons) { g_vector_minimum = neurons; }

void set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  g_least_steps = least_steps;
  g_most_neurons = most_neurons;
}

void set_stream_bytes(int64_t bytes) { g_stream_bytes = bytes; }

}  // namespace snnfast::cuda
