// Convolutions of images with few values that are not 0. Each such value is an event: it adds its weights to the
// outputs that it reaches.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace snnfast::cpu {

struct Event {
  int32_t channel, y, x;
  float value;
};

// The outputs that an event reaches along one dimension: n of them, beginning with `output`, through `tap` of the
// kernel. The next output is one nearer to the origin, and its tap is a stride further.
struct Reach {
  int tap, output, n;
};

// The most output channels that are added up at once.
inline constexpr int kMostLanes = 64;

// The sizes of a convolution. All memory is channels_last.
struct Convolution {
  int64_t N;
  int C, H, W;  // of the input
  int O, Y, X;  // of the output
  int kernel_y, kernel_x, stride_y, stride_x;
  const Reach *reach_y, *reach_x;  // of each row and column of the input
  int lanes;                       // output channels of a block: 16, 32 or 64
  int blocks;

  // The number of weights of a block, [C, kernel_y, kernel_x, lanes].
  int64_t weights() const { return int64_t{C} * kernel_y * kernel_x * lanes; }
};

struct ConvolutionKernels {
  // Adds the events of an image, through the weights of a block, to `tile` [Y, X, lanes].
  void (*forward)(const Convolution&, const Event* first, const Event* last, const float* weights, float* tile);
  // Adds to the gradient of these weights, from that of the image's output, whose pixels are O channels apart.
  void (*backward)(const Convolution&, const Event* first, const Event* last, const float* grad, float* weights);
};

SNN_DECLARE_FOR_EACH_ISA(const ConvolutionKernels& convolution_kernels())

}  // namespace snnfast::cpu
