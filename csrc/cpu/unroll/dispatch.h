// The CPU backend: takes the kernels for this processor, and divides the neurons among PyTorch's threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../parallel.h"
#include "kernels.h"

namespace snnfast::cpu {

// Whether to use non-temporal stores: if `rows` tensors [T, N] exceed the caches, and all `written` tensors are
// aligned.
bool streams(DType dtype, int64_t T, int64_t N, int rows, std::initializer_list<const void*> written);

// Makes calls that touch so many bytes use non-temporal stores, for tests; -1: those that do not fit the caches.
// Returns the number before.
int64_t set_stream_bytes(int64_t bytes);

// The units of neurons, and the least number of them that a thread takes.
struct Shares {
  int64_t units, least;
};
Shares shares(int64_t T, int64_t N, int64_t least_units);

// Threads take neurons in multiples of a unit: whole vectors of every instruction set, and whole cache lines.
inline constexpr int64_t kUnit = 64;

// A thread takes at least so many units of a forward pass. With shorter rows, threads take cache lines away from each
// other, and two are slower than one.
inline constexpr int64_t kLeastUnits = 2;

template <typename Neuron>
const Kernels<Neuron>& current_kernels() {
  SNN_RETURN_OF_CURRENT_ISA(kernels<Neuron>())
}

// Divides neurons begin to end - 1 of a ragged batch so that equal numbers of units are equal work.
class Division {
 public:
  template <typename P>
  Division(const P& p, int64_t begin, int64_t end, int64_t units)
      : begin_(begin), end_(end), first_(begin / p.sample), sample_(p.sample), units_(units) {
    // Filling a row of the padding takes about a quarter of the time of a step.
    for (int64_t b = first_; b * p.sample < end; ++b) {
      const int64_t steps = p.steps_of(b * p.sample);
      until_.push_back(until_.back() + static_cast<double>(3 * steps + p.T + 1));
    }
  }

  int64_t at(int64_t unit) const {
    if (unit == 0 || unit == units_) return unit == 0 ? begin_ : end_;
    const double wanted = until_.back() * static_cast<double>(unit) / static_cast<double>(units_);
    const auto after = std::upper_bound(until_.begin() + 1, until_.end() - 1, wanted);
    const double within = (wanted - after[-1]) / (after[0] - after[-1]) * static_cast<double>(sample_);
    const int64_t neuron = (first_ + (after - until_.begin() - 1)) * sample_ + static_cast<int64_t>(within);
    return std::clamp(neuron / kUnit * kUnit, begin_, end_);
  }

 private:
  int64_t begin_, end_, first_, sample_, units_;
  std::vector<double> until_{0};  // the work of all samples up to each one
};

// Divides neurons begin to end - 1 among the threads.
template <typename Kernel, typename P>
void share_out(Kernel kernel, const P& p, const Normalised* norm, int64_t begin, int64_t end, int64_t least_units,
               bool stream) {
  const Shares work = shares(p.T, end - begin, least_units);
  if (p.lengths != nullptr && work.units > work.least && torch::stable::get_num_threads() > 1) {
    const Division division(p, begin, end, work.units);
    return in_parallel(0, work.units, work.least, [&](int64_t first, int64_t last) {
      kernel(p, norm, division.at(first), division.at(last), stream);
    });
  }
  in_parallel(0, work.units, work.least, [&](int64_t first, int64_t last) {
    kernel(p, norm, begin + first * kUnit, begin + last * kUnit < end ? begin + last * kUnit : end, stream);
  });
}

template <typename Neuron>
void forward(const Forward<Neuron>& p, const Normalised* norm) {
  bool stream = streams(p.dtype, p.T, p.N, rows_per_step(p), {p.reduce ? nullptr : p.spk, p.deciding});
  for (const void* record : p.record) stream &= streams(p.dtype, p.T, p.N, rows_per_step(p), {record});
  share_out(current_kernels<Neuron>().forward[static_cast<int>(p.dtype)], p, norm, 0, p.N, kLeastUnits, stream);
}

template <typename Neuron>
void forward(const Forward<Neuron>& p) {
  forward(p, nullptr);
}

// Calls f with the gradients [T, last - first, columns] of the spikes that went through a Linear with many outputs, a
// few samples at a time, so that they stay in the caches until they are read. PyTorch's product makes them; for few
// outputs the kernels are faster. Defined in cpu/spikes/linear.cpp.
void each_spike_gradient(const Outputs& outputs, DType dtype, int64_t T, int64_t samples,
                         const std::function<void(int64_t first, int64_t last, const void* gradient)>& f);

template <typename Neuron>
void backward(const Backward<Neuron>& p) {
  const bool stream = streams(p.dtype, p.T, p.N, rows_per_step(p), {p.grad_x});
  const auto kernel = current_kernels<Neuron>().backward[static_cast<int>(p.dtype)];
  const int64_t columns = p.outputs.columns;
  if (p.T == 0 || p.outputs.size <= kFewOutputs) return share_out(kernel, p, nullptr, 0, p.N, 1, stream);
  each_spike_gradient(p.outputs, p.dtype, p.T, p.N / columns, [&](int64_t first, int64_t last, const void* gradient) {
    Backward<Neuron> part = p;
    part.outputs = {};
    part.grad_spk = gradient;
    part.grad_spk_first = first * columns;
    part.grad_spk_stride = (last - first) * columns;
    // A kernel streams whole registers only, also at the end of its neurons.
    const auto fits = [&](int64_t neuron) { return neuron % kUnit == 0 || neuron == p.N; };
    share_out(kernel, part, nullptr, first * columns, last * columns, 1,
              stream && fits(first * columns) && fits(last * columns));
  });
}

}  // namespace snnfast::cpu
