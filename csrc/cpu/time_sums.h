// What a backward pass sums up over time: gradients of the parameters, and of a constant current.
//
// Every kStretch steps are summed up by themselves, and then these sums in their order. So ranges of time that
// different threads do (time_ranges.h) make the bits of one pass, and the rounding errors of a long sum stay small.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels.h"

namespace snnfast::cpu {

class TimeSums {
 public:
  static constexpr int64_t kStretch = 256;  // steps; a multiple of kCheckpoint

  explicit TimeSums(const LifBackward& problem);

  const LifBackward& problem() const { return p_; }

  // Of how many steps ranges of time must be multiples, T aside.
  int64_t unit() const { return count_ == 0 ? kCheckpoint : kStretch; }

  // What the next two need; not from several threads.
  void open(bool divided);

  // All steps of some neurons.
  void run_all(const Kernels& kernels, int64_t first, int64_t last, bool stream) const;

  // All steps of a range of a pass that is divided. `carries`: [2, N] acc, for this range alone.
  void run_range(const Kernels& kernels, const TimeRange& range, int64_t first, int64_t last, bool stream,
                 std::byte* carries) const;

  // Makes the gradients when all ranges are done.
  void total(const Kernels& kernels) const;

 private:
  static constexpr int kMost = 4;

  template <typename F>
  void each_stretch(TimeRange range, std::byte* carries, F&& f) const;
  void run_stretch(const Kernels& kernels, TimeRange steps, int64_t row, int64_t first, int64_t last,
                   bool stream) const;

  // Rounds and stores: gradient i from `count` of its rows, `first_row` and those after it.
  void store(const Kernels& kernels, int i, int64_t first_row, int64_t count, int64_t first, int64_t last) const;

  // Row `row` of sum `i`, or of what comes behind all sums.
  std::byte* sum(int64_t row, int i) const { return rows_.get() + (row * count_ + i) * row_bytes_; }

  const LifBackward& p_;
  const DType acc_;
  const int64_t row_bytes_;
  int count_ = 0;
  void* LifBackward::* gradients_[kMost];  // those that are asked for
  int64_t stretches_ = 1;
  std::unique_ptr<std::byte, void (*)(void*)> rows_;
};

}  // namespace snnfast::cpu
