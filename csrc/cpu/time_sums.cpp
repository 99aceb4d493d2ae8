#include "time_sums.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "pool.h"

namespace snnfast::cpu {
namespace {

using Rows = std::unique_ptr<std::byte, void (*)(void*)>;

Rows rows_of(int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  if (size >= pool::kLeast) return {static_cast<std::byte*>(pool::take(size)), pool::give_back};
  Rows rows(static_cast<std::byte*>(std::malloc(size)), std::free);
  if (rows == nullptr) throw std::bad_alloc();
  return rows;
}

}  // namespace

TimeSums::TimeSums(const LifBackward& problem)
    : p_(problem),
      acc_(problem.dtype == DType::kDouble ? DType::kDouble : DType::kFloat),
      row_bytes_(problem.N * acc_size(problem.dtype)),
      rows_(nullptr, std::free) {
  for (void* LifBackward::* gradient :
       {&LifBackward::grad_beta, &LifBackward::grad_threshold, &LifBackward::grad_graded, &LifBackward::grad_x}) {
    const bool summed = gradient != &LifBackward::grad_x || p_.x_constant;
    if (summed && p_.*gradient != nullptr) gradients_[count_++] = gradient;
  }
  if (count_ > 0) stretches_ = std::max((p_.T + kStretch - 1) / kStretch, int64_t{1});
}

void TimeSums::open(bool divided) {
  if (stretches_ == 1) return;
  // Undivided: what has been added up so far, the stretch that is on, and two carries.
  const int64_t rows = divided ? stretches_ * count_ : 2 * count_ + 2;
  rows_ = rows_of(rows * row_bytes_);
}

// Calls f(stretch, steps) with the steps of each, the last ones first.
template <typename F>
void TimeSums::each_stretch(TimeRange range, std::byte* carries, F&& f) const {
  TimeRange steps = range;
  while (steps.to > range.from) {
    const int64_t stretch = (steps.to - 1) / kStretch;
    steps.from = std::max(range.from, stretch * kStretch);
    // Two by turns: the kernel may read a neuron's again after it has written the new one.
    steps.carry_out = steps.from == range.from ? range.carry_out : carries + stretch % 2 * row_bytes_;
    f(stretch, steps);
    steps.to = steps.from;
    steps.carry = steps.carry_out;
  }
}

void TimeSums::run_stretch(const Kernels& kernels, TimeRange steps, int64_t row, int64_t first, int64_t last,
                           bool stream) const {
  LifBackward part = p_;
  for (int i = 0; i < count_; ++i) {
    if (gradients_[i] == &LifBackward::grad_x) {
      steps.grad_x_sum = sum(row, i);
    } else {
      part.*gradients_[i] = sum(row, i);
    }
  }
  kernels.backward(part, steps, first, last, stream);
}

void TimeSums::run_all(const Kernels& kernels, int64_t first, int64_t last, bool stream) const {
  const TimeRange whole{0, p_.T, nullptr, p_.grad_mem0};
  if (stretches_ == 1) return kernels.backward(p_, whole, first, last, stream);
  each_stretch(whole, sum(2, 0), [&](int64_t stretch, const TimeRange& steps) {
    const bool later = stretch + 1 < stretches_;
    run_stretch(kernels, steps, later ? 0 : 1, first, last, stream);
    for (int i = 0; i < count_ && later; ++i) kernels.add_up(acc_, sum(0, i), 2, p_.N * count_, first, last, sum(1, i));
  });
  for (int i = 0; i < count_; ++i) store(kernels, i, 1, 1, first, last);
}

void TimeSums::run_range(const Kernels& kernels, const TimeRange& range, int64_t first, int64_t last, bool stream,
                         std::byte* carries) const {
  if (stretches_ == 1) return kernels.backward(p_, range, first, last, stream);
  each_stretch(range, carries, [&](int64_t stretch, const TimeRange& steps) {
    run_stretch(kernels, steps, stretch, first, last, stream);
  });
}

void TimeSums::total(const Kernels& kernels) const {
  for (int i = 0; i < count_ && stretches_ > 1; ++i) store(kernels, i, 0, stretches_, 0, p_.N);
}

void TimeSums::store(const Kernels& kernels, int i, int64_t first_row, int64_t count, int64_t first,
                     int64_t last) const {
  const DType dtype = gradients_[i] == &LifBackward::grad_x ? p_.dtype : acc_;
  kernels.add_up(dtype, sum(first_row, i), count, p_.N * count_, first, last, p_.*gradients_[i]);
}

}  // namespace snnfast::cpu
