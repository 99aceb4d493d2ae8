// Currents that a batch normalisation before the neurons makes, a few rows at a time in the caches, and sums of their
// gradients.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include "../norm/lanes.h"
#include "stage.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// Normalises neurons first to first + n - 1 of step t as the kernels of batch normalisation do, so that no spike
// differs from what it is with these kernels before the neurons. They write their result in the dtype of x.
// `from_mean`: takes x - mean; or nullptr. `steps`: so many, whose rows lie `x_stride` and `stride` apart, have the
// same numbers.
inline void normalise(const Normalised& norm, const float* x, int64_t t, int64_t first, int n, float* to,
                      float* from_mean, int64_t steps = 1, int64_t x_stride = 0, int64_t stride = 0) {
  const float* const numbers[] = {norm.row(t, Normalised::kMean), norm.row(t, Normalised::kScale),
                                  norm.row(t, Normalised::kBias)};
  each_of_channels(norm.channels, numbers, first, n, true, [&]<typename V>(int i, const V(&of)[3]) {
    for (int64_t k = 0; k < steps; ++k) {
      const V difference = lanes_at<V>(x + k * x_stride + i) - of[0];
      put_lanes(to + k * stride + i, difference * of[1] + of[2]);
      if (from_mean != nullptr) put_lanes(from_mean + k * stride + i, difference);
    }
  });
}

template <typename S>
void normalise(const Normalised& norm, const S* x, int64_t t, int64_t first, int n, float* to, float* from_mean) {
  constexpr int kSome = 256;
  float wide[kSome];
  S rounded[kSome];
  for (int i = 0; i < n; i += kSome) {
    const int count = n - i < kSome ? n - i : kSome;
    load_row(x + i, count, wide);
    normalise(norm, wide, t, first + i, count, to + i, from_mean == nullptr ? nullptr : from_mean + i);
    store_row(rounded, count, to + i);
    load_row(rounded, count, to + i);
  }
}

// The currents of `steps` steps from t on. `x`: the row of step t at neuron `first`. `from_mean`: as many rows for
// x - mean; or nullptr.
template <typename S, typename A, int Size, int Block>
Rows<const A> open_currents(const Normalised* norm, const S* x, int64_t stride, int64_t t, int steps, int64_t first,
                            int n, A (&scratch)[Size][Block], std::type_identity_t<A>* from_mean = nullptr) {
  if constexpr (std::is_same_v<A, float>) {
    if (norm != nullptr) {
      for (int k = 0; k < steps; ++k) {
        float* const difference = from_mean == nullptr ? nullptr : from_mean + k * Block;
        normalise(*norm, x + k * stride, t + k, first, n, scratch[k], difference);
      }
      return {scratch[0], Block};
    }
  }
  return open_for_reading(x, stride, steps, n, scratch);
}

// The sum of at most kImageLanes values, by halves.
inline double total(int n, const float* values) {
  double halves[kImageLanes] = {};
  for (int i = 0; i < n; ++i) halves[i] = static_cast<double>(values[i]);
  for (int half = kImageLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) halves[i] += halves[half + i];
  }
  return halves[0];
}

// Adds two terms of rows of lanes to the sums of channels. `turn`: the lanes belong to so many channels in turns.
// `terms(i, s, t)`: those of the lanes from i on.
template <typename Terms>
void add_rows(int64_t count, int64_t lanes, int64_t turn, double* sums, int64_t C, Terms&& terms) {
  constexpr int kMost = 512;
  float a[kMost], b[kMost];
  for (int64_t at = 0; at < lanes && count > 0; at += kMost) {  // more lanes are one turn
    const int some = static_cast<int>(lanes - at < kMost ? lanes - at : kMost);
    const int channels = static_cast<int>(turn < some ? turn : some);
    sum_rows<float>(some, count, a, b,
                    [&](int64_t r, int lane, auto& s, auto& t) { terms(r * lanes + at + lane, s, t); });
    if (turn == 1) {
      sums[0] += total(some, a);
      sums[C] += total(some, b);
      continue;
    }
    for (int i = 0; i < some; i += channels) {
      for (int c = 0; c < channels; ++c) sums[at + c] += static_cast<double>(a[i + c]);
      for (int c = 0; c < channels; ++c) sums[C + at + c] += static_cast<double>(b[i + c]);
    }
  }
}

// Adds two terms of neurons first to first + n - 1 of a step to the sums of their channels. What is added in float32
// depends on nothing but these numbers.
template <typename Terms>
void add_to_sums(const Channels& channels, int64_t first, int n, double* sums, Terms&& terms) {
  const auto [C, inner] = channels;
  int64_t i = 0;
  const auto add = [&, C = C](int64_t count, int64_t lanes, int64_t turn, int64_t channel) {
    add_rows(count, lanes, turn, sums + channel, C, [&](int64_t lane, auto& s, auto& t) { terms(i + lane, s, t); });
    i += count * lanes;
  };
  if (inner == 1) {
    const int64_t before = first % C, row = C * samples_per_row(C);
    if (before > 0) add(1, C - before < n ? C - before : n, C, before);
    add((n - i) / row, row, C, 0);
    add((n - i) / C, C, C, 0);
    add(1, n - i, C, 0);
    return;
  }
  while (i < n) {
    const int64_t at = first + i, left = inner - at % inner, channel = at / inner % C;
    const int64_t end = left < n - i ? i + left : n;
    add((end - i) / kImageLanes, kImageLanes, 1, channel);
    add(1, end - i, 1, channel);
  }
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
