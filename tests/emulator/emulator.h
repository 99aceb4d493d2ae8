// The CUDA language on the CPU, for tests: what kernel sources see when g++ compiles them. See docs/emulator.md.
//
// The scheduler behind it is in emulator.cpp. Types and their conversions are those of the toolkit's own headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <atomic>
#include <cstdint>
#include <source_location>
#include <type_traits>
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
// Blocks run one after the other, so one copy serves them all. The tag becomes part of the symbol's name, by which
// shared.ld finds the variables: g++ 12 ignores section attributes in templates.
#define __shared__ __attribute__((abi_tag("cuda_shared"))) static
// For what the scheduler writes between the steps of threads: ThreadSanitizer would take it for a race of theirs.
#define EMULATOR_UNWATCHED __attribute__((no_sanitize("thread")))

namespace emulator {

using Location = std::source_location;

// Of the CUDA thread that runs now.
struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Position position;
EMULATOR_UNWATCHED inline Position here() { return position; }

// Where a thread waits: at a barrier for its block, and before an atomic it only lets the others run.
struct Wait {
  bool barrier;
  const char* name;
  bool predicate;
  Location at;  // in the kernel
};
bool wait(const Wait& wait);  // returns whether a predicate was true at a barrier
void fence();

// Seeds other than 0 shuffle the order of threads, odd ones reverse that of blocks. The first: SNNFAST_EMULATOR_SEED.
void set_seed(unsigned seed);

struct Launch {
  const void* kernel;
  unsigned blocks, threads;
  std::vector<unsigned char> parameters;  // the only one of a kernel that has one, as it lies in memory
};
// Those since the call before.
std::vector<Launch> take_launches();

int run_grid(const void* kernel, dim3 grid, dim3 block, void (*run)(const void*), const void* of,
             std::vector<unsigned char> parameters);
const char* error_string(int error);  // for a fault of the kernel itself, of the last launch that had one

// kernel<<<grid, block>>>(arguments...), to its end. Returns a cudaError_t, 0 for success.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel takes 4 KiB of parameters at most");
  const auto body = [&] { kernel(arguments...); };
  std::vector<unsigned char> parameters;
  if constexpr (sizeof...(Arguments) == 1 && (std::is_same_v<Parameters, Arguments> && ...)) {
    const void* const only[] = {&arguments...};
    const auto* const bytes = static_cast<const unsigned char*>(only[0]);
    parameters.assign(bytes, bytes + (sizeof(Arguments) + ...));
  }
  return run_grid(
      reinterpret_cast<const void*>(kernel), grid, block, [](const void* of) { (*static_cast<decltype(&body)>(of))(); },
      &body, std::move(parameters));
}

}  // namespace emulator

// A load past the first-level cache, which does not see what other multiprocessors write.
template <typename T>
T __ldcg(const T* from) {
  return *static_cast<const volatile T*>(from);
}

#define threadIdx (emulator::here().thread)
#define blockIdx (emulator::here().block)
#define blockDim (emulator::here().block_size)
#define gridDim (emulator::here().grid_size)
// There is no CUDA runtime to ask.
#define cudaGetErrorString emulator::error_string

// ---- device functions that wait: their last argument is where the kernel calls them

#define EMULATOR_AT emulator::Location at = emulator::Location::current()

inline void __syncthreads(EMULATOR_AT) { emulator::wait({true, __func__, false, at}); }
inline int __syncthreads_or(int is, EMULATOR_AT) { return emulator::wait({true, __func__, is != 0, at}); }
template <typename T>
T atomicAdd(T* to, std::type_identity_t<T> value, EMULATOR_AT) {
  emulator::wait({false, __func__, false, at});
  return std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
}
inline void __threadfence() { emulator::fence(); }
