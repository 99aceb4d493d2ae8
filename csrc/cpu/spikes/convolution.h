// Convolutions of images with few values that are not 0. Each such value is an event, and only events are added up.
// conv2d.cpp divides the work among threads.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace snnfast::cpu {

// The sizes of a convolution. All memory is channels_last.
struct Convolution {
  int64_t N;
  int C, H, W;  // of the input
  int O, Y, X;  // of the output
  int kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
};

// Lists of events are written in whole vectors, and need room for so many more.
inline constexpr int kMoreEvents = 64;

// ---- forward

// The weights of some channels and rows of the kernel, which stay in the L1 cache while events are added up: a row of
// `lanes` outputs for each place [row of the kernel, column, channel], and a row of zeros behind them.
struct Chunks {
  int channels, kernel_rows;        // of a chunk; the last ones may have fewer
  int of_channels, of_kernel_rows;  // the number of chunks
  int lanes, blocks;                // blocks of outputs
  int places(const Convolution& p) const { return kernel_rows * p.kernel_x * channels; }
  int64_t size(const Convolution& p) const { return (int64_t{places(p)} + 1) * lanes; }
};

// The largest number of places. The order of sums depends on it, so that it is the same for all instruction sets.
inline constexpr int kMostPlaces = 288;

// The rows of outputs that are computed at a time may belong to several images. These are the lists of their events.
struct BandLists {
  uint16_t* at;        // of the rows of the input: places
  float* value;        // of the same events
  int32_t* pixel;      // the first event of each pixel, and behind them the number of all
  uint16_t* reaching;  // of the pixels of the output, in multiples of kChains: places
  float* reaching_value;
  int32_t* output;  // the first event of each pixel of the output, and behind them the number of all
};

// A sum is computed in so many parts, so that an addition need not wait for the one before.
inline constexpr int kChains = 4;

// ---- forward, by tables

// Four channels that are 0 or 1 have 16 sums of their weights. A table has them, in this order, for one place of the
// kernel and some outputs: one addition then takes four channels, however many are set. The tables of a chunk stay in
// the L1 cache, and the order of sums depends on their number.
inline constexpr int kTableLanes = 16, kTableRows = 16, kMostTables = 36;

// Pixels of the output whose sums stay in registers. Patterns are read for so many.
inline constexpr int kTablePixels = 4;

// Which channels are set, [chunks of channels, rows of the input, channels / 4, columns with padding]. Columns that are
// a stride apart lie side by side, as the outputs that they reach by one place of the kernel do. All are 0 at first.
struct BandPatterns {
  uint8_t* at;
  int of_stride;     // the number of columns that are a stride apart
  int64_t row;       // the number of bytes of a row
  int64_t of_chunk;  // and of a chunk
  int64_t* offsets;  // of the tables of a chunk: from the patterns of a place to those that its first pixel needs
  float* sums;       // [pixels of the output, kTableLanes]
};

// ---- the gradient of the weights

// An event at (y, x) of the input reaches outputs by some taps of the kernel. The first one is (y + padding) % stride;
// each further one is a stride behind it, and reaches the output before. Events with the same first tap are a class.
//
// A tile is a rectangle of `first outputs`, those that are reached by the first tap, of some images. Tiles are of the
// same size for all instruction sets, because their sums are.
struct Tiles {
  int first_row, last_row, first_column, last_column;  // of first outputs
  int rows, columns, images;                           // of a tile
  int taps_y, taps_x;                                  // of a class, at most
  int lanes;                                           // of a block of outputs
  int places() const { return rows * columns * images; }
  int padded() const { return (rows + taps_y - 1) * (columns + taps_x - 1) * images; }
};

struct TileLists {
  uint16_t* at;         // [classes, C, places + kMoreEvents]
  float* value;         // of the same events
  int32_t* number;      // [classes, C] of events
  uint8_t* valued;      // [classes, C / 16]: whether there are several values
  uint16_t* masks;      // [places + kMoreEvents]
  uint32_t* place;      // [places + kMoreEvents]
  const float** pixel;  // [places]
  float* grads;         // [padded, lanes]
};

struct ConvolutionKernels {
  int lanes, lanes_of_gradient;  // the largest number of outputs of a block

  // Computes `rows` rows of the output, of which N * Y are. Returns false if all events should have the same value and
  // one has not; `value` is NaN if they may have several.
  bool (*forward)(const Convolution&, const Chunks&, const float* images, const float* weights, const float* bias,
                  float value, int64_t first_row, int rows, const BandLists&, float* tile, float* out);
  // The same from tables, [blocks, chunks of channels and of rows, places / 4, kTableRows, kTableLanes], and always
  // with one value.
  bool (*look_up)(const Convolution&, const Chunks&, const float* images, const float* tables, const float* bias,
                  float value, int64_t first_row, int rows, const BandPatterns&, float* out);
  // Adds to `sums` [blocks, C, taps, lanes] what images first to last - 1 contribute to the gradient of the weights of
  // outputs first_output to last_output - 1. `value` is that of most events.
  void (*add_gradient)(const Convolution&, const Tiles&, const float* images, const float* grads, int64_t first,
                       int64_t last, int first_output, int last_output, float value, const TileLists&, float* sums);
};

SNN_DECLARE_FOR_EACH_ISA(const ConvolutionKernels& convolution_kernels())

}  // namespace snnfast::cpu
