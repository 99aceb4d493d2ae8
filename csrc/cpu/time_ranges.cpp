#include "time_ranges.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/ops.h>

namespace snnfast::cpu {
namespace {

// Bytes of a row, for each thread, from which sharing out the neurons serves the memory well enough; where no row is
// written at each step, a few cache lines do.
constexpr int64_t kShortRow = 1024, kShortRowRead = 256;

// The largest part of the steps that a thread may have to do, warm-up included, for the division to pay.
constexpr double kLargestPart = 0.75;

// Two passes whose gradients differ by an ulp meet with a probability of about 1 - beta at each step. So after
// n / (1 - beta) steps e^-n of the neurons have not, and with log(N) more this is the chance of one among N.
constexpr double kPatience = 3;

// Where gradients are zero over long stretches of time they only decay, and passes do not meet. After a call in which
// some neuron had to be repeated, so many calls are not divided; twice as many after the next such call.
constexpr int kLongestPause = 64;

TimeRanges g_forced{0, 0};
std::atomic<int> g_pause{0}, g_next_pause{1};
std::atomic<int64_t> g_ranges{0}, g_repeated{0};

int64_t round_up(int64_t steps, int64_t unit) { return (steps + unit - 1) / unit * unit; }

// The last range has no warm-up, and so more steps of its own.
int64_t length_of(const TimeRanges& ranges, int64_t T, int64_t unit) {
  return std::max(round_up((T - ranges.warm_up) / ranges.count, unit), unit);
}

template <typename A>
double largest(const Parameter& parameter) {
  if (parameter.data == nullptr) return parameter.value;
  const A* const data = static_cast<const A*>(parameter.data);
  return *std::max_element(data, data + parameter.size);
}

// Steps after which a gradient of zero has become what it should be, if the neurons forget; or -1.
int64_t warm_up_steps(const LifBackward& p) {
  const bool wide = p.dtype == DType::kDouble;
  const double beta = wide ? largest<double>(p.beta) : largest<float>(p.beta);
  if (!(beta < 1)) return -1;
  if (!(beta > 0)) return kCheckpoint;
  const double digits = wide ? 53 : 24, until_an_ulp = digits * std::log(2.0) / -std::log(beta);
  const double steps = until_an_ulp + (std::log(static_cast<double>(p.N)) + kPatience) / (1 - beta);
  return steps < 1e9 ? round_up(static_cast<int64_t>(steps), kCheckpoint) : -1;
}

struct Range {
  TimeRange steps;
  std::byte* guess;    // [N]: what the warm-up has arrived at; nullptr for the last range, which needs none
  std::byte* carries;  // [2, N]: for the sums
};

std::vector<Range> divide(const TimeSums& sums, const TimeRanges& ranges, std::vector<std::byte>& carries) {
  const LifBackward& p = sums.problem();
  const size_t row = static_cast<size_t>(p.N * acc_size(p.dtype));
  const int64_t length = length_of(ranges, p.T, sums.unit());
  std::vector<Range> made;
  for (int64_t from = 0; from < p.T; from = made.back().steps.to) {
    const bool last = static_cast<int64_t>(made.size()) + 1 == ranges.count || from + length >= p.T;
    made.push_back({{from, last ? p.T : from + length, nullptr, nullptr}, nullptr, nullptr});
  }
  carries.resize(4 * row * made.size());
  for (size_t i = 0; i < made.size(); ++i) {
    made[i].steps.carry_out = i == 0 ? p.grad_mem0 : carries.data() + row * i;
    made[i].carries = carries.data() + row * 2 * (made.size() + i);
    if (i + 1 == made.size()) continue;  // begins with grad_mem_last
    made[i].guess = carries.data() + row * (made.size() + i);
    made[i].steps.carry = made[i].guess;
  }
  return made;
}

}  // namespace

TimeRanges choose_time_ranges(const TimeSums& sums, int64_t threads) {
  constexpr TimeRanges kWhole{1, 0};
  const LifBackward& p = sums.problem();
  if (p.N == 0 || p.T <= sums.unit()) return kWhole;
  if (g_forced.count > 0) return g_forced;
  const int64_t short_row = p.grad_x != nullptr && !p.x_constant ? kShortRow : kShortRowRead;
  if (threads < 2 || p.N * element_size(p.dtype) > threads * short_row) return kWhole;
  const int64_t warm_up = warm_up_steps(p);
  if (warm_up < 0 || warm_up >= p.T) return kWhole;
  const TimeRanges ranges{std::min(threads, p.T / warm_up), warm_up};
  const int64_t most = length_of(ranges, p.T, sums.unit()) + warm_up;
  if (static_cast<double>(most) > kLargestPart * static_cast<double>(p.T)) return kWhole;
  if (g_pause > 0) {
    --g_pause;
    return kWhole;
  }
  return ranges;
}

void backward_in_time_ranges(const TimeSums& sums, const TimeRanges& ranges, const Kernels& kernels, int64_t unit,
                             bool stream) {
  const LifBackward& p = sums.problem();
  std::vector<std::byte> carries;
  const std::vector<Range> all = divide(sums, ranges, carries);
  const auto count = static_cast<int64_t>(all.size());
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Range& range = all[static_cast<size_t>(i)];
      if (range.guess != nullptr) {
        LifBackward before = p;
        before.grad_x = before.grad_beta = before.grad_threshold = before.grad_graded = nullptr;
        const int64_t from = range.steps.to, to = std::min(from + ranges.warm_up, p.T);
        if (to < p.T) before.grad_mem_last = nullptr;
        kernels.backward(before, {from, to, nullptr, range.guess}, 0, p.N, false);
      }
      sums.run_range(kernels, range.steps, 0, p.N, stream, range.carries);
    }
  });
  const int64_t size = acc_size(p.dtype);
  int64_t repeated = 0;
  for (int64_t i = count - 2; i >= 0; --i) {
    const Range& range = all[static_cast<size_t>(i)];
    const auto* const right = static_cast<const std::byte*>(all[static_cast<size_t>(i) + 1].steps.carry_out);
    const auto differs = [&](int64_t first) {
      const int64_t n = std::min(unit, p.N - first);
      return std::memcmp(right + first * size, range.guess + first * size, static_cast<size_t>(n * size)) != 0;
    };
    for (int64_t first = 0, last; first < p.N; first = last) {
      for (last = first; last < p.N && differs(last);) last += unit;
      if (last > first) {
        last = std::min(last, p.N);
        const TimeRange again{range.steps.from, range.steps.to, right, range.steps.carry_out};
        sums.run_range(kernels, again, first, last, stream, range.carries);
        repeated += last - first;
      } else {
        last += unit;
      }
    }
  }
  sums.total(kernels);
  const int pause = repeated == 0 ? 0 : g_next_pause.load();
  g_pause = pause;
  g_next_pause = repeated == 0 ? 1 : std::min(2 * pause, kLongestPause);
  g_ranges += count;
  g_repeated += repeated;
}

void force_time_ranges(const TimeRanges& ranges) { g_forced = ranges; }

TimeRangeCounts time_range_counts() { return {g_ranges, g_repeated}; }

}  // namespace snnfast::cpu
