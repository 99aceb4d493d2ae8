// Blocks of a kernel that a multiprocessor holds at once, by the CUDA toolkit's own calculator.
//
// Reads lines of: compute capability major and minor; threads, registers and bytes of shared memory of a
// multiprocessor; most bytes of shared memory of a block; and the kernel's threads per block, registers per thread,
// bytes of shared memory.
#include <climits>
#include <cstdio>

#include <cuda_occupancy.h>

int main() {
  constexpr size_t kReserved = 1024;      // bytes of shared memory per block that the driver keeps, from 8.0 on
  constexpr size_t kUnasked = 48 * 1024;  // bytes of shared memory that a block gets without opting in to more
  int major, minor, threads, registers, block, used;
  size_t shared, optin, taken;
  while (std::scanf("%d %d %d %d %zu %zu %d %d %zu", &major, &minor, &threads, &registers, &shared, &optin, &block,
                    &used, &taken) == 9) {
    cudaOccDeviceProp card;
    card.computeMajor = major;
    card.computeMinor = minor;
    card.maxThreadsPerBlock = 1024;
    card.maxThreadsPerMultiprocessor = threads;
    card.regsPerBlock = card.regsPerMultiprocessor = registers;
    card.warpSize = 32;
    card.sharedMemPerBlock = kUnasked;
    card.sharedMemPerMultiprocessor = shared;
    card.numSms = 1;  // plays no part in what one of them holds
    card.sharedMemPerBlockOptin = optin;
    card.reservedSharedMemPerBlock = major >= 8 ? kReserved : 0;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX;
    kernel.numRegs = used;
    kernel.sharedSizeBytes = taken;
    kernel.maxDynamicSharedSizeBytes = 0;
    const cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &card, &kernel, &state, block, 0) != CUDA_OCC_SUCCESS)
      return 1;
    std::printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
  return 0;
}
