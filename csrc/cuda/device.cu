// What the launches of all neurons share: whether a device can run the kernels, the limits that choose a kernel, and
// errors.
#include "device.h"

#include <stdexcept>

#include "../op/norm.h"
#include "launch.cuh"

namespace snnfast::cuda {
namespace {

constexpr int64_t kForwardVectors = int64_t{1} << 18;
// Up to here a card of 132 multiprocessors runs all threads of one neuron each at once. With a few more neurons, some
// blocks would run alone at the end.
constexpr int64_t kBackwardVectors = 98304;
int64_t g_vector_minimum = -1;  // in place of both
// From so many steps on, each of 16 warps has a chunk. Up to so many neurons, the plain kernel has fewer than three
// warps on a multiprocessor, too few to hide the latency of memory. With more it wins, because it reads its inputs only
// once (docs/design-cuda.md).
int64_t g_least_steps = 16 * kCheckpoint;
int64_t g_most_neurons = 12288;
// Behind a batch normalisation: eight blocks of two warps for each of 132 multiprocessors.
int64_t g_norm_blocks = 1024;

#if !defined(SNN_EMULATED)
// A kernel to ask about: it is compiled for the same architectures as all others.
__global__ void __launch_bounds__(32) probe_kernel() {}

// CUDA writes 13.0 as 13000.
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

bool wants_vectors(Pass pass, int64_t neurons, int V) {
  const int64_t least = pass == Pass::kForward ? kForwardVectors : kBackwardVectors;
  return neurons >= (g_vector_minimum < 0 ? least : g_vector_minimum) && neurons % V == 0;
}

bool wants_chunked(int64_t steps, int64_t neurons) { return steps >= g_least_steps && neurons <= g_most_neurons; }

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int64_t norm_blocks() { return g_norm_blocks; }

void set_vector_minimum(int64_t neurons) { g_vector_minimum = neurons; }

void set_norm_blocks(int64_t blocks) { g_norm_blocks = blocks; }

void set_chunked_limits(int64_t least_steps, int64_t most_neurons) {
  g_least_steps = least_steps;
  g_most_neurons = most_neurons;
}

}  // namespace snnfast::cuda
