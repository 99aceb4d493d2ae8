// Numbers of the channels of a batch normalisation whose result is never in memory, and the gradient through it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../memory/scratch.h"
#include "run.h"

namespace snnfast::cpu {

// The numbers of the channels as the kernels read them.
class Table {
 public:
  ChannelNumbers numbers;

  Table(const Channels& channels, int64_t rows, int64_t steps)
      : numbers{channels, rows, steps == 1, nullptr}, memory_(steps * rows * numbers.width()) {
    numbers.values = memory_.data();
  }

  // Sets one of the rows of a step to value(c).
  template <typename F>
  void set(int64_t t, int64_t row, F&& value) {
    float* const to = memory_.data() + (t * numbers.rows + row) * numbers.width();
    for (int64_t c = 0; c < numbers.channels.C; ++c) to[c] = static_cast<float>(value(c));
    for (int64_t c = numbers.channels.C; c < numbers.width(); ++c) to[c] = to[c - numbers.channels.C];
  }

 private:
  pool::Scratch<float> memory_;
};

// What is normalised where the kernels read it, by the numbers [steps, C, kNormNumbers] of the channels.
class NormedInput {
 public:
  const int64_t steps;  // of the numbers: those of the call, or one
  const Channels channels;
  const float* const numbers;

 private:
  Table table_;

 public:
  Normalised norm;

  NormedInput(const Channels& of, int64_t rows, const float* values)
      : steps(rows), channels(of), numbers(values), table_(of, 3, rows), norm{table_.numbers} {
    for (int64_t t = 0; t < steps; ++t) {
      table_.set(t, Normalised::kScale, [&](int64_t c) { return at(t, c)[0]; });
      table_.set(t, Normalised::kBias, [&](int64_t c) { return at(t, c)[1]; });
      table_.set(t, Normalised::kMean, [&](int64_t c) { return at(t, c)[2]; });
    }
  }

  // How many numbers a part of a backward pass adds up.
  int64_t sums() const { return steps * 2 * channels.C; }

  // Adds up the sums of the parts, to those of the gradients of the bias and of the weight, [2, steps, C]. Then makes
  // the gradient of what is normalised from that of the currents, if there is one. Each of the samples [T, N] lies by
  // itself in memory.
  void go_through(const double* partial, int64_t parts, double* result, NormedGradients gradients,
                  int64_t samples) const {
    const int64_t C = channels.C, T = gradients.T, N = gradients.N;
    const double share = static_cast<double>(C * steps) / static_cast<double>(samples * T * N);
    Table table(channels, 4, steps);
    for (int64_t t = 0; t < steps; ++t) {
      double* const of_bias = result + t * C;
      double* const of_weight = result + (steps + t) * C;
      for (int64_t c = 0; c < C; ++c) {
        of_bias[c] = of_weight[c] = 0;
        for (int64_t part = 0; part < parts; ++part) {
          const double* const own = partial + part * sums() + t * 2 * C;
          of_bias[c] += own[c];
          of_weight[c] += own[C + c];
        }
        of_weight[c] *= static_cast<double>(at(t, c)[3]);
      }
      table.set(t, NormedGradients::kScale, [&](int64_t c) { return at(t, c)[0]; });
      table.set(t, NormedGradients::kMean, [&](int64_t c) { return at(t, c)[2]; });
      table.set(t, NormedGradients::kConstant, [&](int64_t c) { return of_bias[c] * share; });
      table.set(t, NormedGradients::kSlope, [&](int64_t c) { return of_weight[c] * at(t, c)[3] * share; });
    }
    if (gradients.grad == nullptr) return;
    constexpr int64_t kPart = 1 << 14;  // elements of a step that a thread takes at least
    gradients.norm = table.numbers;
    const auto write = batch_norm().write_step[static_cast<int>(gradients.dtype)];
    const int64_t pieces = (N + kPart - 1) / kPart;
    in_parallel(0, samples * T * pieces, kNormGrain / std::min(kPart, N) + 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t from = i % pieces * kPart, row = i / pieces;
        write(gradients, row % T, row, from, std::min(from + kPart, N));
      }
    });
  }

 private:
  const float* at(int64_t t, int64_t c) const { return numbers + (t * channels.C + c) * kNormNumbers; }
};

}  // namespace snnfast::cpu
