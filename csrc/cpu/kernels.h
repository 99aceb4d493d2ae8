// The two CPU kernels on a range of neurons, compiled once for each instruction set (SNN_ISA) from lif_kernels.cpp.
#pragma once

#include "../lif.h"

namespace snnfast::cpu {

// Neurons that a thread takes through all time steps at once: their state stays in the first-level cache, a
// checkpoint's worth of their currents in the second, and their rows are long enough for the memory.
inline constexpr int kBlock = 2048;

// The same where there are fewer steps than a row loop takes or rows are converted, and, forward, where nothing fits in
// the caches anyway.
inline constexpr int kShortBlock = 512;
inline constexpr int kLongBlock = 8192;

// Bytes of one tensor from which on blocks are long wherever the arithmetic is in float32: the system's page tables do
// not stay in the caches either, and a cache line of them then serves a whole row.
inline constexpr int64_t kFar = int64_t{64} << 20;

// A stretch of time of a backward pass: steps `to` - 1 down to `from`, which are multiples of kCheckpoint or T.
struct TimeRange {
  int64_t from, to;
  const void* carry;  // [N] acc: gradient with respect to the membrane after the last of them; nullptr: grad_mem_last
  void* carry_out;    // [N] acc or nullptr: and before the first of them
};

struct Kernels {
  const char* name;
  // On neurons first to last - 1; no result depends on how they are divided into ranges. `stream`: what has a row for
  // every step is written past the caches; the rows must then be aligned to 64 bytes.
  void (*forward)(const LifForward&, int64_t first, int64_t last, bool stream);
  void (*backward)(const LifBackward&, const TimeRange&, int64_t first, int64_t last, bool stream);
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(SNN_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace snnfast::cpu
