// Convolutions with kernels of 3x3 and a stride of 1 by Winograd's method, F(2x2, 3x3) and F(4x4, 3x3): tiles of the
// input and the kernels are transformed, multiplied, and the products of all channels transformed back. A tile of 2x2
// outputs takes 16 products instead of 36, and one of 4x4 outputs 36 instead of 144. winograd_conv2d.cpp divides the
// work among threads.
//
// A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace snnfast::cpu {

// Channels of the input lie in groups of so many. The last group ends with the last channel. It may begin with channels
// of the group before, whose weights in it are 0.
inline constexpr int kWinogradGroup = 16;

// Tiles are multiplied by 6 or 8 at a time. Memory has room for a multiple of both.
inline constexpr int kWinogradTiles = 24;

// The fewest channels of the input and of the output. No vector is longer.
inline constexpr int kLeastChannels = 16;

// The sizes of a convolution. Images are in channels_last order.
struct Winograd {
  int64_t N;
  int C, H, W;  // of the input
  int O, Y, X;  // of the output
  int padding_y, padding_x;
  int side;    // of the outputs of a tile, 2 or 4
  int lanes;   // output channels of a block
  int blocks;  // of output channels. The last one ends with the last channel, and may overlap the one before.
  int tiles;   // that are computed together

  int places() const { return (side + 2) * (side + 2); }  // of a transformed tile
  int groups() const { return (C + kWinogradGroup - 1) / kWinogradGroup; }
  int channels() const { return groups() * kWinogradGroup; }
  int tiles_y() const { return (Y + side - 1) / side; }
  int tiles_x() const { return (X + side - 1) / side; }
  int64_t all_tiles() const { return N * tiles_y() * tiles_x(); }
  int rows() const { return (tiles + kWinogradTiles - 1) / kWinogradTiles * kWinogradTiles; }
  int first_input(int group) const { return group + 1 < groups() ? group * kWinogradGroup : C - kWinogradGroup; }
  int first_output(int block) const { return block + 1 < blocks ? block * lanes : O - lanes; }

  // Transformed inputs are [places][groups, rows, kWinogradGroup], and products [places][rows, lanes]. A cache line
  // between two places keeps them in different sets of the L1 cache.
  int64_t next_input() const { return int64_t{rows()} * channels() + kWinogradGroup; }
  int64_t next_product() const { return int64_t{rows()} * lanes + kWinogradGroup; }
  int64_t weights() const { return int64_t{blocks} * places() * channels() * lanes; }
  int64_t scratch() const { return places() * (next_input() + next_product()); }
};

// The weight of an output channel, an input channel, and a tap is at the sum of their numbers times their strides.
struct WinogradWeights {
  const float* data;
  int64_t output, input, y, x;
};

struct WinogradKernels {
  // The output channels of a block.
  int (*lanes)(int outputs);
  // Transforms the weights of a block and of one group of input channels to [blocks, places, channels, lanes].
  void (*transform)(const Winograd&, const WinogradWeights&, int block, int group, float* to);
  // Computes tiles `first` to `last` - 1, at most `tiles`. Returns whether all of their outputs are finite.
  bool (*run)(const Winograd&, const float* images, const float* weights,  // as transformed
              const float* bias,                                           // [O], or null
              const float* zeros,                                          // [C]
              float* scratch, int64_t first, int64_t last, float* outputs);
};

SNN_DECLARE_FOR_EACH_ISA(const WinogradKernels& winograd_kernels())

}  // namespace snnfast::cpu
