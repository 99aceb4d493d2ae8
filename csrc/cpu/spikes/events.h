// The kernels of products with spikes, each on a part of a call. events.cpp has them, compiled once for each
// instruction set; linear.cpp divides the work.
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

// The number of neurons whose weights are added up before their sum goes into the total.
inline constexpr int64_t kListed = 256;

struct EventList {  // of one row
  int listed;
  uint16_t neurons[kListed + 16];
};

// The most units whose rows are added up before their sum goes into the total: 256 rows.
inline constexpr int64_t kSummed = 32;

// How many these are. The error grows with the length of a sum and with the number of sums in a total, so fewer rows
// have shorter sums.
SNN_HD int64_t summed_units(const SpikeBits& spikes) { return spikes.units() <= 4 * kSummed ? kSummed / 2 : kSummed; }

// The most outputs for which sums of all subsets of four rows are made, and looked up by four bits.
inline constexpr int64_t kLookedUpOutputs = 16;

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
  // Sets bits [N] where values [steps, N] of one unit are not 0. Returns whether all of these are the value `height`.
  bool (*pack[4])(const void* values, int64_t steps, int64_t N, const void* height, uint8_t* bits);
  // Puts weight [O, N] times the height of the spikes into tiles [count, N, width], for neurons first to last - 1.
  void (*pack_weight[4])(const void* weight, int64_t O, int64_t N, const Height&, const Packed&, int64_t first,
                         int64_t last);
  // Puts one tile of rows [T, R, O] into a panel [last - first, 8, width], for units first to last - 1.
  void (*pack_rows[4])(const SpikeBits&, const void* rows, int64_t O, const Tiles&, int64_t tile, int64_t first,
                       int64_t last, void* panel);
  // Computes y [T, R, O] for units first to last - 1. `lists` is room for all rows and neurons of these units.
  void (*forward[4])(const SpikeBits&, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
                     int64_t last, EventList* lists);
  // Adds to the totals [tiles, N, width] the packed rows [tiles, last_unit - first_unit, 8, width] of the units in
  // which a neuron spikes. The parts `begin` to `end` - 1 of the totals are all tiles of kWord neurons, then of the
  // next ones. first_unit is a multiple of kSummed.
  void (*add_rows[4])(const SpikeBits&, const Packed& rows, int64_t first_unit, int64_t last_unit, int64_t begin,
                      int64_t end, void* totals);
  // The same for one tile of up to kLookedUpOutputs: a byte that is not 0 adds the sum of up to eight rows.
  void (*add_subsets_of_rows[4])(const SpikeBits&, const Packed& rows, int64_t first_unit, int64_t last_unit,
                                 int64_t begin, int64_t end, void* totals);
  // Computes the gradient [O, N] of the weight from these totals, for one tile and neurons first to last - 1.
  void (*unpack_totals[4])(const void* totals, const Tiles&, int64_t tile, int64_t O, int64_t N, const Height&,
                           int64_t first, int64_t last, void* gradient);
  // Converts rows first to last - 1 of the spikes [T, R, N] to numbers [last - first, N].
  void (*as_numbers[4])(const SpikeBits&, const Height&, int64_t first, int64_t last, void* out);
};

SNN_DECLARE_FOR_EACH_ISA(const EventKernels& event_kernels())

}  // namespace snnfast::cpu
