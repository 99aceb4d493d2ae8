// The kernels of products with spikes, each on a part of a call. events.cpp has them, compiled once for each
// instruction set; spikes_linear.cpp divides the work.
//
// The spikes of T steps are bytes [ceil(T / 8), R, N]. A byte holds the spikes of eight steps, the first in its lowest
// bit. The N bytes of one sample are a unit; there are ceil(T / 8) * R units. The weight is [O, N].
#pragma once

#include <cstdint>

#include "../../op/problem.h"
#include "../isa.h"

namespace snnfast::cpu {

struct SpikeBits {
  const uint8_t* bits;
  int64_t T, R, N;

  SNN_HD int64_t units() const { return (T + 7) / 8 * R; }
  // The first step of a unit, its sample, and its number of steps, which is less than eight at the end.
  SNN_HD int64_t step(int64_t unit) const { return unit / R * 8; }
  SNN_HD int64_t sample(int64_t unit) const { return unit % R; }
  SNN_HD int steps(int64_t unit) const { return static_cast<int>(T - step(unit) < 8 ? T - step(unit) : 8); }
};

// The number of neurons whose bytes are read at once.
inline constexpr int64_t kWord = 64;

// A row of outputs is cut into tiles of a few vectors, which are added up in registers.
struct Tiles {
  int64_t count;
  int vectors;  // of a tile
  int lanes;    // values of a vector

  SNN_HD int64_t width() const { return int64_t{vectors} * lanes; }
};

// A matrix [rows, O] in tiles: [tiles, rows, width] in the opmath dtype, with zeros behind O.
struct Packed {
  void* data;
  Tiles tiles;
};

struct Height {      // of the spikes
  const void* data;  // [N] in the opmath dtype; nullptr: `value` for all
  double value;
};

// Each function but `count` exists once for each DType, in its order.
struct EventKernels {
  // Counts the bits that are set.
  int64_t (*count)(const uint8_t* bits, int64_t bytes);
  // Puts weight [O, N] times the height of the spikes into tiles [count, N, width], for neurons first to last - 1.
  void (*pack_weight[4])(const void* weight, int64_t O, int64_t N, const Height&, const Packed&, int64_t first,
                         int64_t last);
  // Puts one tile of rows [T, R, O] into a panel [last - first, 8, width], for units first to last - 1.
  void (*pack_rows[4])(const SpikeBits&, const void* rows, int64_t O, const Tiles&, int64_t tile, int64_t first,
                       int64_t last, void* panel);
  // Computes y [T, R, O] for units first to last - 1.
  void (*forward[4])(const SpikeBits&, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
                     int64_t last);
  // Adds the rows of a panel to the sums [N, width] of a tile: to those of the given neurons that spike there.
  void (*add_rows[4])(const SpikeBits&, int64_t first_neuron, int64_t last_neuron, int64_t first, int64_t last,
                      const Tiles&, const void* panel, void* sums);
  // Computes the gradient [O, N] of the weight from these sums, for one tile and neurons first to last - 1.
  void (*unpack_sums[4])(const void* sums, const Tiles&, int64_t tile, int64_t O, int64_t N, const Height&,
                         int64_t first, int64_t last, void* gradient);
  // Converts rows first to last - 1 of the spikes [T, R, N] to numbers [last - first, N].
  void (*as_numbers[4])(const SpikeBits&, const Height&, int64_t first, int64_t last, void* out);
};

SNN_DECLARE_FOR_EACH_ISA(const EventKernels& event_kernels())

}  // namespace snnfast::cpu
