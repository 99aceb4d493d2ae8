// Numbers of each channel, as the kernels read them: batch normalisation before a neuron, and its gradient.
#pragma once

#include <cstdint>

#include "../../math/scalar.h"

namespace snnfast::cpu {

// Neuron i of a step belongs to channel i / inner % C.
struct Channels {
  int64_t C, inner;  // inner is 1 where the channels lie innermost in memory
};

// Rows of numbers of the channels, some for each step. Where the channels lie innermost, the first of a row follow
// again behind its last, so that a vector may begin at any channel.
struct ChannelNumbers {
  static constexpr int64_t kMostLanes = 16;  // of a vector

  Channels channels;
  int64_t rows;         // of a step
  bool over_time;       // all steps have the same ones
  const float* values;  // [T, rows, width()], or [1, ...]

  SNN_HD int64_t width() const { return channels.inner == 1 ? channels.C + kMostLanes : channels.C; }
  SNN_HD const float* row(int64_t t, int which) const {
    return values + ((over_time ? 0 : t) * rows + which) * width();
  }
};

// How the currents of neurons follow from what is normalised, x: (x - mean) * scale + bias.
struct Normalised : ChannelNumbers {
  enum { kMean, kScale, kBias };

  // Of a backward pass, which takes so many neurons through all steps at once: [T, 2, C], or [1, ...], to which the
  // gradient of the currents is added, and its product with x - mean.
  int64_t chunk = 0;
  double* sums = nullptr;

  SNN_HD double* sums_of(int64_t t) const { return sums + (over_time ? 0 : t) * 2 * channels.C; }
};

}  // namespace snnfast::cpu
