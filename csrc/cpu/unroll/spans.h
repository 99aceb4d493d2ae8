// Which neurons a block takes at once.
//
// Part of kernels.cpp, whose rules hold here too.
#pragma once

#include "../convert.h"
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

// Calls f(begin, end, steps) for the parts of a range of neurons that go through the same number of steps. Each in
// whole columns, if that is `allowed`: whatever is written of the neurons behind a part is written again, as those come
// later.
template <typename A, typename Neuron, typename F>
void each_length(const Problem<Neuron>& p, int64_t first, int64_t last, bool allowed, F&& f) {
  if (p.lengths == nullptr) return f(first, last, p.T);
  for (int64_t begin = first, end; begin < last; begin = end) {
    const int64_t steps = p.steps_of(begin);
    end = (begin / p.sample + 1) * p.sample;
    while (end < last && p.steps_of(end) == steps) end += p.sample;
    if (end > last) end = last;
    const int64_t columns = begin + (end - begin + kColumn<A> - 1) / kColumn<A> * kColumn<A>;
    f(begin, allowed && columns <= last ? columns : end, steps);
  }
}

// The spans of a range. Neurons at the end that are no whole column are the end of one which begins among those done
// already, and does them again to the same result; where there are not enough for that, they pass through scratch rows.
// `align`: whether spans are to begin where non-temporal stores can, which is for the first one to reach. `next`:
// another range of the same problem was done before.
template <typename S, typename A>
class Spans {
 public:
  Spans(int64_t first, int64_t last, int64_t size, bool align, bool next)
      : last_(last), size_(size), at_(first), done_(0), next_(next) {
    const int64_t head = (kAligned - first % kAligned) % kAligned;
    if (align && head > 0 && first + in_columns<A>(static_cast<int>(head)) <= last) head_ = static_cast<int>(head);
  }

  bool take(Span& span) {
    if (at_ == last_) return false;
    const int64_t left = last_ - at_, whole = left / kColumn<A> * kColumn<A>;
    int64_t end;
    if (head_ > 0) {
      span = {at_, in_columns<A>(head_), next_};
      end = at_ + head_;
      head_ = 0;
    } else {
      const int64_t n = whole == 0 ? left : whole < size_ ? whole : size_;
      const int64_t again = whole == 0 && done_ >= kColumn<A> - left ? kColumn<A> - left : 0;
      span = {at_ - again, static_cast<int>(n + again), next_};
      end = at_ + n;
    }
    done_ += end - at_;
    at_ = end;
    next_ = true;
    return true;
  }

 private:
  static constexpr int64_t kAligned = 64 / static_cast<int64_t>(sizeof(S));  // elements of a cache line

  int64_t last_, size_, at_, done_;
  int head_ = 0;
  bool next_;
};

// Whether non-temporal stores can write the neurons from `first` on.
template <typename S>
bool is_aligned(int64_t first) {
  return first * static_cast<int64_t>(sizeof(S)) % 64 == 0;
}

// With a few steps, long rows matter less than that states and parameters stay in the L1 cache; with 16-bit rows, that
// the converted ones do. `usual`: otherwise.
template <typename S, typename Neuron>
int block_size(const Problem<Neuron>& p, int usual) {
  if (p.T < kSteps<float>) return kShortBlock;
  if (sizeof(S) <= sizeof(float) && p.T * p.N >= kFar / static_cast<int64_t>(sizeof(S))) return kLongBlock;
  return sizeof(S) == 2 ? kShortBlock : usual;
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
