// The two CPU kernels on a range of neurons, compiled once for each instruction set (SNN_ISA) from lif_kernels.cpp.
#pragma once

#include "../lif.h"

namespace snnfast::cpu {

// The most neurons that a thread takes through all time steps at once: their state and a checkpoint's worth of
// membranes stay in the first- and second-level cache, and their rows are long enough for the memory.
inline constexpr int kBlock = 2048;

// The same where there are fewer steps than a row loop takes.
inline constexpr int kShortBlock = 512;

struct Kernels {
  const char* name;
  // On neurons first to last - 1; no result depends on how they are divided into ranges.
  void (*forward)(const LifForward&, int64_t first, int64_t last);
  void (*backward)(const LifBackward&, int64_t first, int64_t last);
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
