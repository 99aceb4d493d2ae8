// The CUDA language on the CPU, for tests: what kernel sources see when g++ compiles them. See docs/emulator.md.
//
// The scheduler behind it is in emulator.cpp. Types and their conversions are those of the toolkit's own headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
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
  unsigned lane;
  void* dynamic_shared;
};
extern Position position;
EMULATOR_UNWATCHED inline Position here() { return position; }

// In place of `extern __shared__`: the bytes that the launch asked for.
template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(here().dynamic_shared);
}

// Where threads wait. A barrier is for the block, a warp's operations are for the lanes of their mask; before an atomic
// a thread only lets the others run.
enum class Operation { kBarrier, kSyncWarp, kVote, kShuffle, kAtomic };
struct Wait {
  Operation operation;
  const char* name;
  unsigned mask;
  uint64_t value;   // the predicate of a barrier or vote, the value of a shuffle
  unsigned source;  // the lane whose value a shuffle takes
  Location at;      // in the kernel
};
// Returns how many predicates were true at a barrier, whose lanes' were in a vote, and the value of a shuffle.
uint64_t wait(const Wait& wait);
void fence();

// Seeds other than 0 shuffle the order of threads, odd ones reverse that of blocks. The first: SNNFAST_EMULATOR_SEED.
void set_seed(unsigned seed);

struct Launch {
  const void* kernel;
  unsigned blocks, threads;
};
// Those since the call before.
std::vector<Launch> take_launches();

int run_grid(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*run)(const void*), const void* of);
const char* error_string(int error);  // for a fault of the kernel itself, of the last launch that had one

// kernel<<<grid, block, shared_bytes>>>(arguments...), to its end. Returns a cudaError_t, 0 for success.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel takes 4 KiB of parameters at most");
  const auto body = [&] { kernel(arguments...); };
  return run_grid(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [](const void* of) { (*static_cast<decltype(&body)>(of))(); }, &body);
}

template <typename T>
T shuffle(const char* name, unsigned mask, T value, unsigned source, Location at) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = wait({Operation::kShuffle, name, mask, bits, source, at});
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T, typename Change>
T atomic(const char* name, T* address, Location at, Change&& change) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  wait({Operation::kAtomic, name, 0, 0, 0, at});
  Bits* const bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED), now;
  do {
    now = std::bit_cast<Bits>(static_cast<T>(change(std::bit_cast<T>(old))));
  } while (!__atomic_compare_exchange_n(bits, &old, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return std::bit_cast<T>(old);
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
inline constexpr int warpSize = 32;

// ---- device functions that wait: their last argument is where the kernel calls them

#define EMULATOR_WAIT(OPERATION, MASK, VALUE) \
  emulator::wait({emulator::Operation::OPERATION, __func__, MASK, static_cast<uint64_t>(VALUE), 0, at})
#define EMULATOR_AT emulator::Location at = emulator::Location::current()

inline void __syncthreads(EMULATOR_AT) { EMULATOR_WAIT(kBarrier, 0, 0); }
inline int __syncthreads_count(int is, EMULATOR_AT) { return static_cast<int>(EMULATOR_WAIT(kBarrier, 0, is != 0)); }
inline int __syncthreads_or(int is, EMULATOR_AT) { return EMULATOR_WAIT(kBarrier, 0, is != 0) != 0; }
inline int __syncthreads_and(int is, EMULATOR_AT) { return EMULATOR_WAIT(kBarrier, 0, is == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_AT) { EMULATOR_WAIT(kSyncWarp, mask, 0); }
inline unsigned __ballot_sync(unsigned mask, int is, EMULATOR_AT) {
  return static_cast<unsigned>(EMULATOR_WAIT(kVote, mask, is != 0));
}
inline int __any_sync(unsigned mask, int is, EMULATOR_AT) { return EMULATOR_WAIT(kVote, mask, is != 0) != 0; }
inline int __all_sync(unsigned mask, int is, EMULATOR_AT) { return EMULATOR_WAIT(kVote, mask, is == 0) == 0; }
// No thread may count on company: a card, too, may run each lane by itself.
inline unsigned __activemask() { return 1u << emulator::here().lane; }

// `lane` is the caller's; its segment of `width` lanes ends with lane | (width - 1).
#define EMULATOR_SHUFFLE(NAME, ARGUMENT, SOURCE)                                        \
  template <typename T>                                                                 \
  T NAME(unsigned mask, T value, unsigned ARGUMENT, unsigned width = 32, EMULATOR_AT) { \
    const unsigned lane = emulator::here().lane;                                        \
    return emulator::shuffle(#NAME, mask, value, SOURCE, at);                           \
  }
EMULATOR_SHUFFLE(__shfl_sync, source, (lane & ~(width - 1)) + source % width)
EMULATOR_SHUFFLE(__shfl_up_sync, delta, lane % width < delta ? lane : lane - delta)
EMULATOR_SHUFFLE(__shfl_down_sync, delta, lane % width + delta < width ? lane + delta : lane)
EMULATOR_SHUFFLE(__shfl_xor_sync, bits, (lane ^ bits) > (lane | (width - 1)) ? lane : lane ^ bits)

#define EMULATOR_ATOMIC(NAME, NOW)                                                            \
  template <typename T>                                                                       \
  T NAME(T* to, std::type_identity_t<T> value, EMULATOR_AT) {                                 \
    return emulator::atomic(#NAME, to, at, [=]([[maybe_unused]] T old) -> T { return NOW; }); \
  }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicMax, std::max(old, value))
EMULATOR_ATOMIC(atomicMin, std::min(old, value))
EMULATOR_ATOMIC(atomicExch, value)
template <typename T>
T atomicCAS(T* to, std::type_identity_t<T> expected, std::type_identity_t<T> value, EMULATOR_AT) {
  return emulator::atomic(__func__, to, at, [=](T old) { return old == expected ? value : old; });
}
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
