// Batch normalisation of T steps, each by the mean and variance of its own batch, as a loop over time has them.
#pragma once

#include <cstdint>

#include "../../op/norm.h"
#include "../isa.h"
#include "channels.h"

namespace snnfast::cpu {

// Steps [T, B, C, S], or [T, B, S, C] if `channels_last`. Nothing of one channel of a step depends on another, so a
// unit of work is some channels of one step. A unit that is the whole call is divided into parts, each some samples.
struct BatchNorm {
  DType dtype;  // of x, y and their gradients. All other arrays are opmath or double.
  int64_t T, B, C, S;
  bool channels_last;
  const void* x;       // [T, B, C, S]
  const void* weight;  // [C], or [T, C]; nullptr: ones
  bool weight_varies;  // it is [T, C]
  double eps;
  double* sums;  // [parts, 2, C], what the parts of a call add up

  int64_t samples() const { return B * S; }  // of a channel of a step
};

struct BatchNormForward : BatchNorm {
  const void* bias;  // as the weight; nullptr: zeros
  bool bias_varies;
  void* y;         // [T, B, C, S]; nullptr: only the statistics are made
  void* mean;      // [T, C] opmath; or nullptr
  void* variance;  // [T, C] opmath; the sum of squares is divided by the number of samples
  void* numbers;   // [T, C, kNormNumbers] opmath, for neurons behind the normalisation; or nullptr
};

struct BatchNormBackward : BatchNorm {
  const void* grad;      // [T, B, C, S]
  const void* mean;      // [T, C] opmath, as forward returned them
  const void* variance;  // [T, C] opmath
  void* grad_x;          // [T, B, C, S]
  double* grad_weight;   // [T, C]
  double* grad_bias;     // [T, C]
};

// The gradient of what is normalised from that of the currents, rows of N both, and in the same memory:
//   (grad - constant - (x - mean) * slope) * scale
struct NormedGradients {
  enum { kMean, kScale, kConstant, kSlope };

  DType dtype;  // float32, float16 or bfloat16
  int64_t T, N;
  ChannelNumbers norm;
  const void* x;
  void* grad;
};

// For units, or parts, first to last - 1.
template <typename P>
struct BatchNormPass {
  void (*units)(const P&, int64_t first, int64_t last);
  void (*add_parts)(const P&, int64_t first, int64_t last);    // all of them first
  void (*write_parts)(const P&, int64_t first, int64_t last);  // and then these
};

struct BatchNormKernels {
  int64_t (*units)(const BatchNorm&);
  int64_t (*parts)(const BatchNorm&);          // of a call with one unit; 1: it is not divided
  BatchNormPass<BatchNormForward> forward[4];  // by the dtype
  BatchNormPass<BatchNormBackward> backward[4];
  // Of some neurons of step t, in a row.
  void (*write_step[4])(const NormedGradients&, int64_t t, int64_t row, int64_t first, int64_t last);
};

SNN_DECLARE_FOR_EACH_ISA(const BatchNormKernels& batch_norm_kernels())

}  // namespace snnfast::cpu
