// A backward pass divided in time among the threads, for few neurons and many steps.
//
// Threads that share the neurons of a short row work in the same pages and take each other's cache lines away, or there
// are more threads than vectors of neurons. So each takes a range of time. The gradient that enters a range at its end
// is known only when the later ranges are done. But a leaky membrane forgets: a pass that begins with zero, a warm-up
// of some steps further on, arrives at that gradient to the last bit. Whether it has is looked up when all are done,
// and neurons of which that is not so have their range done once more. So no bit depends on the number of ranges.
#pragma once

#include <cstdint>

#include "time_sums.h"

namespace snnfast::cpu {

struct TimeRanges {
  int64_t count;    // 1: not divided
  int64_t warm_up;  // steps
};

// What is likely to be fastest for this problem with so many threads.
TimeRanges choose_time_ranges(const TimeSums& sums, int64_t threads);

// `unit`: neurons that are done once more together.
void backward_in_time_ranges(const TimeSums& sums, const TimeRanges& ranges, const Kernels& kernels, int64_t unit,
                             bool stream);

// For tests: choose these, whatever the problem, where dividing it is possible at all; {0, 0} chooses as usual.
void force_time_ranges(const TimeRanges& ranges);

struct TimeRangeCounts {
  int64_t ranges, repeated_neurons;
};
TimeRangeCounts time_range_counts();  // since the process began

}  // namespace snnfast::cpu
