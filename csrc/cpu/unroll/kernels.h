// The CPU kernels on a range of neurons, compiled once for each neuron and instruction set from kernels.cpp.
#pragma once

#include "../../op/problem.h"
#include "../isas.h"

namespace snnfast::cpu {

// Neurons that a thread takes through all time steps at once: their state stays in the L1 cache, a checkpoint's worth
// of their currents in the L2 cache, and their rows are long enough for the memory.
inline constexpr int kBlock = 2048;

// The same where there are fewer steps than a row loop takes or rows are converted; and where nothing fits in the
// caches anyway: forward, and from kFar on backward too.
inline constexpr int kShortBlock = 512;
inline constexpr int kLongBlock = 8192;

// Bytes of a tensor [T, N] from which on blocks are long where the arithmetic is in float32 and there are as many steps
// as a row loop takes: the system's page tables do not stay in the caches either, and a cache line of them then serves
// a whole row.
inline constexpr int64_t kFar = int64_t{64} << 20;

// Each function is there once for each DType, in its order. It works on neurons first to last - 1; no result depends on
// how they are divided into ranges. `stream`: what has a row for every step is written by non-temporal stores; the rows
// must then be aligned to 64 bytes.
template <typename Neuron>
struct Kernels {
  void (*forward[4])(const Forward<Neuron>&, int64_t first, int64_t last, bool stream);
  void (*backward[4])(const Backward<Neuron>&, int64_t first, int64_t last, bool stream);
};

SNN_DECLARE_FOR_EACH_ISA(template <typename Neuron> const Kernels<Neuron>& kernels())

}  // namespace snnfast::cpu
