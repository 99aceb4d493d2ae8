// Which neurons a block takes at once.
//
// Part of kernels.cpp, whose rules hold here too.
#pragma once

#include "convert.h"
#include "kernels.h"
#include "loops.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename A>
void zero(int n, A* row) {
  for (int i = 0; i < n; ++i) row[i] = A(0);
}

// Neurons that a block takes at once, and whether it has done some of the same problem before.
struct Span {
  int64_t first;
  int n;
  bool next;
};

// The spans of a range. Neurons at the end that are no whole column are the end of one which begins among those done
// already, and does them again to the same result; where there are not enough for that, they pass through scratch rows.
template <typename A>
class Spans {
 public:
  Spans(int64_t first, int64_t last, int64_t size)
      : first_(first), last_(last), size_(size), at_(first), whole_(first + (last - first) / kColumn<A> * kColumn<A>) {}

  bool take(Span& span) {
    if (at_ == last_) return false;
    const bool next = at_ > first_;
    if (at_ < whole_) {
      span = {at_, static_cast<int>(whole_ - at_ < size_ ? whole_ - at_ : size_), next};
    } else {
      const int64_t rest = next ? last_ - kColumn<A> : at_;
      span = {rest, static_cast<int>(last_ - rest), next};
    }
    at_ = span.first + span.n;
    return true;
  }

 private:
  int64_t first_, last_, size_, at_, whole_;
};

// With a few steps, long rows matter less than that states and parameters stay in the L1 cache; with 16-bit rows, that
// the converted ones do. `usual`: otherwise.
template <typename S, typename Neuron>
int block_size(const Problem<Neuron>& p, int usual) {
  if (p.T < kSteps) return kShortBlock;
  if (sizeof(S) <= sizeof(float) && p.T * p.N >= kFar / static_cast<int64_t>(sizeof(S))) return kLongBlock;
  return sizeof(S) == 2 ? kShortBlock : usual;
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
