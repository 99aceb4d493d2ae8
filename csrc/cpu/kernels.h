// The two CPU kernels on a range of neurons, compiled once for each instruction set (SNN_ISA) from lif_kernels.cpp.
#pragma once

#include "../lif.h"

namespace snnfast::cpu {

// Neurons that a thread takes through all time steps at once: their state stays in the first-level cache, a
// checkpoint's worth of their currents in the second, and their rows are long enough for the memory.
inline constexpr int kBlock = 2048;

// The same where there are fewer steps than a row loop takes or rows are converted; and where nothing fits in the
// caches anyway: forward, and from kFar on backward too.
inline constexpr int kShortBlock = 512;
inline constexpr int kLongBlock = 8192;

// Bytes of a tensor [T, N] from which on blocks are long where the arithmetic is in float32 and there are as many steps
// as a row loop takes: the system's page tables do not stay in the caches either, and a cache line of them then serves
// a whole row.
inline constexpr int64_t kFar = int64_t{64} << 20;

// A stretch of time of a backward pass: steps `to` - 1 down to `from`, which are multiples of kCheckpoint or T.
struct TimeRange {
  int64_t from, to;
  const void* carry;  // [N] acc: gradient with respect to the membrane after the last of them; nullptr: grad_mem_last
  void* carry_out;    // [N] acc or nullptr: and before the first of them
  void* grad_x_sum = nullptr;  // [N] acc: where the gradient of a constant current goes; nullptr: rounded, to grad_x
};

struct Kernels {
  const char* name;
  // On neurons first to last - 1; no result depends on how they are divided into ranges. `stream`: what has a row for
  // every step is written past the caches; the rows must then be aligned to 64 bytes.
  void (*forward)(const LifForward&, int64_t first, int64_t last, bool stream);
  void (*backward)(const LifBackward&, const TimeRange&, int64_t first, int64_t last, bool stream);
  // total[i] = parts[count - 1][i] + ... + parts[0][i] in this order, for i from first to last - 1. `total`: [N] of
  // `dtype`, rounded once; it may be one of the parts. `parts`: rows of acc, `stride` values apart.
  void (*add_up)(DType dtype, const void* parts, int64_t count, int64_t stride, int64_t first, int64_t last,
                 void* total);
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
