// Convolutions of spikes, of which few are not zero: each is one event, and adds its weights to what it reaches.
#pragma once

#include <cstdint>

#include "../isas.h"

namespace snnfast::cpu {

struct Event {
  int32_t channel, y, x;
  float value;
};

// What a coordinate of an event reaches along one dimension: n outputs, each nearer to the origin than the one before,
// and each through a tap of the kernel that is a stride further.
struct Reach {
  int tap, output, n;
};

// Channels of the output that are added up at once.
inline constexpr int kMostLanes = 64;

// All memory is [.., channels]: channels_last.
struct Convolution {
  int64_t N;
  int C, H, W;  // of the input
  int O, Y, X;  // of the output
  int kernel_y, kernel_x, stride_y, stride_x;
  const Reach *reach_y, *reach_x;  // of each row and column of the input
  int lanes;                       // 16, 32 or 64; of as many output channels: a block
  int blocks;

  // Floats of the weights of a block: [C, kernel_y, kernel_x, lanes].
  int64_t weights() const { return int64_t{C} * kernel_y * kernel_x * lanes; }
};

struct ConvolutionKernels {
  // Add the events of an image, through the weights of a block, to `tile` [Y, X, lanes].
  void (*forward)(const Convolution&, const Event* first, const Event* last, const float* weights, float* tile);
  // Add to the gradient of these weights, from that of the image's output: the rows of `grad` are O channels apart.
  void (*backward)(const Convolution&, const Event* first, const Event* last, const float* grad, float* weights);
};

SNN_DECLARE_FOR_EACH_ISA(const ConvolutionKernels& convolution_kernels())

}  // namespace snnfast::cpu
