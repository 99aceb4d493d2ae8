// The CPU kernels on a range of neurons, compiled once for each neuron and instruction set from kernels.cpp.
#pragma once

#include "../../op/problem.h"
#include "../isa.h"
#include "../norm/channels.h"

namespace snnfast::cpu {

// The number of neurons that a thread takes through all time steps at once. Their state stays in the L1 cache and 16
// steps of their currents in the L2 cache, and their rows are long enough for the memory.
inline constexpr int kBlock = 2048;

// Blocks are short if there are fewer steps than a row loop takes, or if rows are converted. They are long if nothing
// fits in the caches anyway: forward with non-temporal stores, and everything from kFar on.
inline constexpr int kShortBlock = 512;

// Behind a normalisation, the currents of a few steps stay in the L1 cache from when they are made to when they are
// read.
inline constexpr int kNormedBlock = 1024;
inline constexpr int kLongBlock = 8192;

// Bytes of a tensor [T, N] that is so large that even the system's page tables do not stay in the caches. In a long
// block, a cache line of them serves a whole row.
inline constexpr int64_t kFar = int64_t{64} << 20;

// Each function exists once for each DType, in its order. It works on neurons first to last - 1, and no result depends
// on how neurons are divided into ranges. `stream`: the tensors exceed the caches, so rows of every step are
// prefetched, and written by non-temporal stores, for which they must be aligned to 64 bytes. `norm`: how x becomes the
// currents; nullptr: it is the currents.
template <typename Neuron>
struct Kernels {
  void (*forward[4])(const Forward<Neuron>&, const Normalised* norm, int64_t first, int64_t last, bool stream);
  void (*backward[4])(const Backward<Neuron>&, const Normalised* norm, int64_t first, int64_t last, bool stream);
};

SNN_DECLARE_FOR_EACH_ISA(template <typename Neuron> const Kernels<Neuron>& kernels())

}  // namespace snnfast::cpu
