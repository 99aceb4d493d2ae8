// Pooling of channels_last images over windows that do not overlap. For backward, max pooling saves the place of each
// maximum in its window, which is one byte. PyTorch saves eight. Images of one channel are planes of contiguous ones.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace snnfast::cpu {

// Windows have at most 256 places, counted row by row.
struct Pooling {
  int C, H, W;  // of the input
  int Y, X;     // of the output
  int kernel_y, kernel_x, stride_y, stride_x;

  int64_t inputs() const { return int64_t{C} * H * W; }
  int64_t outputs() const { return int64_t{C} * Y * X; }
  bool covers_image() const {
    return kernel_y == stride_y && kernel_x == stride_x && Y * kernel_y == H && X * kernel_x == W;
  }
};

struct PoolingKernels {
  void (*forward)(const Pooling&,
                  const float* image,  // [H, W, C]
                  float* largest,      // [Y, X, C]
                  uint8_t* places);    // [Y, X, C]
  void (*backward)(const Pooling&,
                   const float* grad,      // [Y, X, C]
                   const uint8_t* places,  // [Y, X, C]
                   float* of_image);       // [H, W, C]
  void (*average)(const Pooling&, const float* image, float* means);
  void (*average_backward)(const Pooling&, const float* grad, float* of_image);
};

SNN_DECLARE_FOR_EACH_ISA(const PoolingKernels& pooling_kernels())

// Those of this processor.
const PoolingKernels& pooling();

// Describes the pooling of an image to the kernels. Throws where they do not have it.
Pooling describe_pooling(int64_t C, int64_t H, int64_t W, const int64_t (&kernel)[2], const int64_t (&stride)[2]);

}  // namespace snnfast::cpu
