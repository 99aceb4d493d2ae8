// The kernels of products with spikes, each on a part of a call. events.cpp has them, compiled once for each
// instruction set; products.cpp divides the work.
//
// The spikes of T steps are bytes [ceil(T / 8), R, N]: those of eight steps, the first in the lowest bit. The N bytes
// of one sample and eight steps are a unit, [ceil(T / 8), R] of them. A Linear with weight [O, N] follows.
#pragma once

#include <cstdint>

#include "../../op/problem.h"
#include "../isas.h"

namespace snnfast::cpu {

struct SpikeBits {
  const uint8_t* bits;
  int64_t T, R, N;

  SNN_HD int64_t units() const { return (T + 7) / 8 * R; }
  // Of a unit: its first step, its sample, and how many of its eight steps there are.
  SNN_HD int64_t step(int64_t unit) const { return unit / R * 8; }
  SNN_HD int64_t sample(int64_t unit) const { return unit % R; }
  SNN_HD int steps(int64_t unit) const { return static_cast<int>(T - step(unit) < 8 ? T - step(unit) : 8); }
};

// Neurons whose bytes are read at once.
inline constexpr int64_t kWord = 64;

// A row of outputs is cut in tiles of whole vectors: as many as are added up in registers.
struct Tiles {
  int64_t count;
  int vectors;  // of a tile
  int lanes;    // values of a vector

  SNN_HD int64_t width() const { return int64_t{vectors} * lanes; }
};

// A matrix [rows, O] in tiles: [tiles, rows, width], in the dtype of the arithmetic, zeros where O ends in a tile.
struct Packed {
  void* data;
  Tiles tiles;
};

struct Height {      // of the spikes
  const void* data;  // [N] acc; nullptr: `value` for all
  double value;
};

// Each function but `count` is there once for each DType, in its order.
struct EventKernels {
  int64_t (*count)(const uint8_t* bits, int64_t bytes);  // of the bits that are set

  // weight [O, N] times the height of the spikes, in tiles [count, N, width]: those of neurons first to last - 1.
  void (*pack_weight[4])(const void* weight, int64_t O, int64_t N, const Height&, const Packed&, int64_t first,
                         int64_t last);
  // One tile of rows [T, R, O], those of units first to last - 1, to a panel [last - first, 8, width].
  void (*pack_rows[4])(const SpikeBits&, const void* rows, int64_t O, const Tiles&, int64_t tile, int64_t first,
                       int64_t last, void* panel);
  // y [T, R, O] of units first to last - 1.
  void (*forward[4])(const SpikeBits&, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
                     int64_t last);
  // Adds to the sums [N, width] of a tile, for some neurons, the rows of a panel at which they spike.
  void (*add_rows[4])(const SpikeBits&, int64_t first_neuron, int64_t last_neuron, int64_t first, int64_t last,
                      const Tiles&, const void* panel, void* sums);
  // The gradient [O, N] of the weight from these sums, for one tile and neurons first to last - 1.
  void (*unpack_sums[4])(const void* sums, const Tiles&, int64_t tile, int64_t O, int64_t N, const Height&,
                         int64_t first, int64_t last, void* gradient);
  // Rows first to last - 1 of spikes [T, R, N] as numbers [last - first, N].
  void (*as_numbers[4])(const SpikeBits&, const Height&, int64_t first, int64_t last, void* out);
};

SNN_DECLARE_FOR_EACH_ISA(const EventKernels& event_kernels())

}  // namespace snnfast::cpu
