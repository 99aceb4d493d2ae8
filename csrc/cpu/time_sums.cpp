#include "time_sums.h"

#include <algorithm>

namespace snnfast::cpu {
namespace {

// parts: `stretches` rows, `stride` values apart.
template <typename A>
void add_up(const A* parts, int64_t stretches, int64_t stride, int64_t first, int64_t last, A* total) {
  std::copy(parts + (stretches - 1) * stride + first, parts + (stretches - 1) * stride + last, total + first);
  for (int64_t s = stretches - 2; s >= 0; --s) {
    for (int64_t i = first; i < last; ++i) total[i] += parts[s * stride + i];
  }
}

}  // namespace

TimeSums::TimeSums(const LifBackward& problem) : p_(problem), row_bytes_(problem.N * acc_size(problem.dtype)) {
  for (void* LifBackward::* sum : {&LifBackward::grad_beta, &LifBackward::grad_threshold, &LifBackward::grad_graded}) {
    if (p_.*sum != nullptr) sums_[count_++] = sum;
  }
  if (p_.x_constant && p_.grad_x != nullptr) sums_[count_++] = &LifBackward::grad_x;
  rounded_ = p_.x_constant && p_.grad_x != nullptr && element_size(p_.dtype) != acc_size(p_.dtype);
  if (count_ == 0 || rounded_ || p_.T <= kStretch) return;
  stretches_ = (p_.T + kStretch - 1) / kStretch;
  rows_.reset(new std::byte[static_cast<size_t>((stretches_ * count_ + 2) * row_bytes_)]);
}

int64_t TimeSums::unit() const { return count_ == 0 ? kCheckpoint : rounded_ ? 0 : kStretch; }

void TimeSums::run(BackwardKernel kernel, const TimeRange& range, int64_t first, int64_t last, bool stream,
                   std::byte* carries) const {
  if (stretches_ == 1) return kernel(p_, range, first, last, stream);
  if (carries == nullptr) carries = row(stretches_ * count_);
  LifBackward part = p_;
  TimeRange now = range;
  while (now.to > range.from) {
    const int64_t stretch = (now.to - 1) / kStretch;
    now.from = std::max(range.from, stretch * kStretch);
    // Two by turns: the kernel may read a neuron's again after it has written the new one.
    now.carry_out = now.from == range.from ? range.carry_out : carries + stretch % 2 * row_bytes_;
    for (int i = 0; i < count_; ++i) part.*sums_[i] = row(stretch * count_ + i);
    kernel(part, now, first, last, stream);
    now.to = now.from;
    now.carry = now.carry_out;
  }
}

void TimeSums::total(int64_t first, int64_t last) const {
  for (int i = 0; i < count_ && stretches_ > 1; ++i) {
    const int64_t stride = p_.N * count_;
    if (p_.dtype == DType::kDouble) {
      add_up(reinterpret_cast<const double*>(row(i)), stretches_, stride, first, last,
             static_cast<double*>(p_.*sums_[i]));
    } else {
      add_up(reinterpret_cast<const float*>(row(i)), stretches_, stride, first, last,
             static_cast<float*>(p_.*sums_[i]));
    }
  }
}

}  // namespace snnfast::cpu
