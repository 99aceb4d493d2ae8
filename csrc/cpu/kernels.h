// The two CPU kernels on a range of blocks, compiled once for each instruction set (SNN_ISA) from lif_kernels.cpp.
#pragma once

#include "../lif.h"

namespace snnfast::cpu {

// Neurons that a thread takes through all time steps at once. Their state and a checkpoint's worth of membranes stay in
// the first- and second-level cache. Fixed, so that no result depends on the number of threads.
inline constexpr int kBlock = 2048;

struct Kernels {
  const char* name;
  void (*forward)(const LifForward&, int64_t first_block, int64_t last_block);
  void (*backward)(const LifBackward&, int64_t first_block, int64_t last_block);
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(SNN_X86)
namespace avx2 {
extern const Kernels kernels;
}
#endif

}  // namespace snnfast::cpu
