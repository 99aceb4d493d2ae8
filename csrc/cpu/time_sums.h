// What a backward pass sums up over time: gradients of the parameters, and of a constant current.
//
// Every kStretch steps are summed up by themselves, and then these sums in their order. So ranges of time that
// different threads do (time_ranges.h) make the bits of one pass, and the rounding errors of a long sum stay small.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels.h"

namespace snnfast::cpu {

using BackwardKernel = decltype(Kernels::backward);

class TimeSums {
 public:
  static constexpr int64_t kStretch = 256;  // steps; a multiple of kCheckpoint

  explicit TimeSums(const LifBackward& problem);

  // Of how many steps ranges of time must be multiples, T aside; 0: this pass can't be divided.
  int64_t unit() const;

  // Calls the kernel on all steps of a range. `carries`: [2, N] acc, for this range alone; nullptr: some that all
  // others share.
  void run(BackwardKernel kernel, const TimeRange& range, int64_t first, int64_t last, bool stream,
           std::byte* carries = nullptr) const;

  // Makes the gradients of neurons first to last - 1 when all their steps are done.
  void total(int64_t first, int64_t last) const;

  const LifBackward& problem() const { return p_; }

 private:
  static constexpr int kMost = 4;

  std::byte* row(int64_t index) const { return rows_.get() + index * row_bytes_; }

  const LifBackward& p_;
  int count_ = 0;
  void* LifBackward::* sums_[kMost];  // those that are asked for
  bool rounded_;                      // one of them is kept in 16 bits, and must be complete before it is rounded
  int64_t stretches_ = 1, row_bytes_;
  std::unique_ptr<std::byte[]>
      rows_;  // of each stretch one for each sum, if there are several stretches; and two carries
};

}  // namespace snnfast::cpu
