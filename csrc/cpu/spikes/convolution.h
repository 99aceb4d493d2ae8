// Convolutions of images with few values that are not 0. Each such value is an event, and only events are multiplied.
// conv2d.cpp divides the work among threads.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace snnfast::cpu {

// The events of an image, in the order of its memory.
struct Events {
  const int32_t* at;  // of the values of the image
  const float* value;
  const int32_t* pixels;  // [H * W + 1], the first event of each pixel, and behind them the number of all
};

// `find` writes whole vectors: events need room for so many more.
inline constexpr int kMoreEvents = 16;

// Output channels are added up in blocks of so many lanes: 16, 32 or 64; 16 or 32 by `add_taps`.
inline constexpr int kMostLanes = 64, kMostLanesOfTaps = 32;

// The sizes of a convolution. All memory is channels_last.
struct Convolution {
  int64_t N;
  int C, H, W;  // of the input
  int O, Y, X;  // of the output
  int kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
  int lanes, blocks;

  // Whether events are so few under a row of the kernel that each is added by itself to the outputs that it reaches.
  bool few_channels() const { return int64_t{C} * kernel_x <= 16; }

  // The number of weights of a block, [kernel_y, kernel_x, C, lanes].
  int64_t weights() const { return int64_t{C} * kernel_y * kernel_x * lanes; }
};

struct ConvolutionKernels {
  // Lists the events of an image.
  void (*find)(const float* image, int64_t pixels, int C, int32_t* at, float* value, int32_t* first_of_pixel);
  // Computes a block of the output of an image, whose pixels are `stride` values apart.
  void (*forward)(const Convolution&, const Events&, const float* weights, const float* bias, float* out,
                  int64_t stride);
  // Adds what the events of an image contribute to the gradient of a block of weights, with few channels. The pixels of
  // `grads` are `stride` values apart.
  void (*add_events)(const Convolution&, const Events&, const float* grads, int64_t stride, float* sums);
  // Adds to `sums` of some taps, `tap` values apart, what the events of one channel contribute to the gradient of the
  // weights: their value times `grads`, at lanes * at for the first tap, and one pixel before that for each further.
  void (*add_taps)(int lanes, int taps, const int32_t* at, const float* value, int64_t events, const float* grads,
                   float* sums, int64_t tap);
};

SNN_DECLARE_FOR_EACH_ISA(const ConvolutionKernels& convolution_kernels())

}  // namespace snnfast::cpu
