// Batch normalisation in training and the neuron behind it, as the host hands both to the kernels of CUDA. A channel of
// a step is normalised by y = scale * x + shift, a product and a sum that are rounded one after the other. The scale
// and the shift follow from the mean and the variance of the channel in that step, or over time.
#pragma once

#include <algorithm>
#include <bit>
#include <initializer_list>

#include "problem.h"

namespace snnfast {

// The numbers of a channel of a step: scale, shift, mean, and 1 / sqrt(variance + eps). On the CPU, the shift is the
// bias: it is added to scale * (x - mean), and not to scale * x.
inline constexpr int kNormNumbers = 4;
inline constexpr int kMostNormSteps = 16;  // of each, the kernels keep numbers in shared memory
inline constexpr int kLogNormThreads = 6;  // of a block

// Divides numbers below 2^31 by one that the host knows: a product and a shift, where a division takes 20 instructions.
// The factor is 2^shift / by, rounded up, so that a quotient is less than 1 / by too large.
struct Divisor {
  unsigned by, factor;
  int shift;

  static Divisor of(unsigned by) {
    const int shift = 31 + std::bit_width(by - 1);
    return {by, static_cast<unsigned>((uint64_t{1} << shift) / by) + 1, shift};
  }
  SNN_HD unsigned quotient(unsigned number) const { return static_cast<unsigned>(uint64_t{number} * factor >> shift); }
};

struct Norm {
  int64_t B, C, S;     // samples, channels, and elements of a channel of a sample
  bool channels_last;  // a step lies in memory as [B, S, C], and not as [B, C, S]
  bool over_time;      // all steps together have the statistics, in place of each its own

  // How threads share out the neurons. A step is a table whose columns are the channels, and the threads of a block
  // take a tile of some rows and columns. In the usual order of images it has one column, whose rows lie side by side
  // in each image. In channels_last order adjacent threads have adjacent columns, and a thread of 4 neurons has 4
  // channels, which are one column then. A block that sums takes several tiles. All sums depend on this, and so on
  // nothing but the shape and the memory layout.
  bool vectors;  // a thread has 4 neurons
  unsigned columns, rows;
  int shift;              // a tile has 1 << shift columns
  Divisor groups;         // of columns, each a tile's
  unsigned tiles;         // of a group
  unsigned each;          // tiles of a block that sums
  unsigned blocks;        // of a group, which sum
  Divisor per;            // rows that lie side by side
  unsigned outer, inner;  // elements from so many rows to the next, and from a column to the next
  void* partial_sums;     // double, as many as plan() returns, whatever is in them; nullptr: nothing is summed

  SNN_HD int64_t rows_of(int64_t T) const { return over_time ? 1 : T; }  // of the numbers

  // Whether a thread could have 4 neurons: they lie in one channel, or in one pixel.
  bool fits_vectors() const { return (channels_last ? C : S) % 4 == 0; }

  // Shares out the neurons, and returns how many doubles the sums of a call take. `full`: so many blocks fill a card.
  int64_t plan(int64_t T, bool with_vectors, int64_t full) {
    vectors = with_vectors;
    const int64_t V = vectors ? 4 : 1, samples = B * S;
    columns = static_cast<unsigned>(channels_last ? C / V : C);
    rows = static_cast<unsigned>(channels_last ? samples : samples / V);
    per = Divisor::of(static_cast<unsigned>(channels_last ? 1 : S / V));
    outer = static_cast<unsigned>(channels_last ? C : C * S);
    inner = static_cast<unsigned>(channels_last ? V : S);
    // Adjacent columns are 128 bytes of float32, which is a line of the caches.
    shift = channels_last ? std::bit_width(std::min(columns, vectors ? 8u : 32u) - 1) : 0;
    groups = Divisor::of(((columns - 1) >> shift) + 1);
    tiles = ((rows - 1) >> (kLogNormThreads - shift)) + 1;
    each = static_cast<unsigned>(std::clamp<int64_t>(int64_t{tiles} * groups.by / full, 1, 8));
    blocks = (tiles - 1) / each + 1;
    return groups.by * (1 + blocks * ((2 * T + 1) * (channels_last ? V : 1) << shift));
  }
};

// Whether there are kernels for a neuron with a reset.
template <typename Neuron>
constexpr bool norm_resets(Reset reset) {
  return reset == Reset::kSubtract || (reset == Reset::kZero && ResetsAtOnce<Neuron>);
}

// The running averages of a batch normalisation, which its statistics update; null pointers where there are none.
struct RunningAverages {
  float* mean;       // [C]
  float* variance;   // [C]
  int64_t* tracked;  // how many steps there were: these are added
  double momentum;

  // Enters the rows of a channel one after the other, as that many calls of PyTorch, but rounds once. of(row): its
  // mean, and its variance with a divisor that is smaller by one than the number of samples.
  template <typename F>
  SNN_HD void enter(int64_t channel, int rows, F&& of) const {
    if (channel == 0 && tracked != nullptr) *tracked += rows;
    if (mean == nullptr) return;
    double of_mean = mean[channel], of_variance = variance[channel];
    for (int row = 0; row < rows; ++row) {
      const auto now = of(row);
      of_mean += momentum * (now.first - of_mean);
      of_variance += momentum * (now.second - of_variance);
    }
    mean[channel] = static_cast<float>(of_mean);
    variance[channel] = static_cast<float>(of_variance);
  }
};

struct Statistics {
  DType dtype;
  int64_t T, N;         // steps, and elements of each
  const void* x;        // [T, N]
  const float* weight;  // [C]; nullptr: ones
  const float* bias;    // [C]; nullptr: zeros
  double eps;
  Norm norm;
  float* numbers;   // [T, C, kNormNumbers], or [1, ...] over time
  float* variance;  // [T, C], or [1, C] over time; the sum of squares is divided by the number of samples
  RunningAverages running;
};

template <typename Neuron>
struct ForwardNorm : Forward<Neuron> {
  const float* channels;  // their numbers, as the statistics have them
  Norm norm;
};

template <typename Neuron>
struct BackwardNorm : Backward<Neuron> {
  const float* channels;  // their numbers, as the statistics have them
  Norm norm;
  float* sums;       // [2, C]: the gradients of the bias and of the weight
  double* of_first;  // [C]: the share of each channel in the gradient of the first parameter; or nullptr
  float* through;    // [T, C, 2], or [1, C, 2] over time: the gradient of x that passes through the statistics
};

namespace cuda {
// Whether threads had better take 4 neurons each: there are many, and these rows are aligned.
bool norm_wants_vectors(int64_t neurons, std::initializer_list<const void*> rows);
// How many blocks fill a large card.
int64_t norm_blocks();
int norm_statistics(const Statistics& problem, void* stream);
template <typename Neuron>
int norm_forward(ForwardNorm<Neuron> problem, void* stream);
template <typename Neuron>
int norm_backward(BackwardNorm<Neuron> problem, void* stream);
}  // namespace cuda

}  // namespace snnfast
