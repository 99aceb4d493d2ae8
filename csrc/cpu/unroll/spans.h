// Divides neurons into the spans that a block takes at once.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include <memory>

#include "../convert.h"
#include "kernels.h"
#include "loops.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename A>
void zero(int n, A* row) {
  for (int i = 0; i < n; ++i) row[i] = A(0);
}

// The neurons that a block takes at once.
struct Span {
  int64_t first;
  int n;
  bool next;  // the block has done other neurons of the same problem before
};

// Calls f(begin, end, steps) for each part of a range of neurons that goes through the same number of steps. If it is
// `allowed`, a part is extended to whole columns: the neurons behind it come later, and are then written again.
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

// The spans of a range. If the last neurons do not fill a column, their column overlaps the one before, and computes
// its neurons again with the same result. If all neurons together do not fill one, they pass through scratch rows.
// `align`: the first span ends where non-temporal stores can begin. `next`: another range of the same problem was done
// before.
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

// Whether non-temporal stores can begin at neuron `first`.
template <typename S>
bool is_aligned(int64_t first) {
  return first * static_cast<int64_t>(sizeof(S)) % 64 == 0;
}

// With a few steps, states and parameters must stay in the L1 cache, and with 16-bit rows the converted rows must; both
// matter more than long rows. `usual`: the size otherwise.
template <typename S, typename Neuron>
int block_size(const Problem<Neuron>& p, int usual) {
  if (p.T < kSteps<float>) return kShortBlock;
  if (sizeof(S) <= sizeof(float) && p.T * p.N >= kFar / static_cast<int64_t>(sizeof(S))) return kLongBlock;
  return sizeof(S) == 2 ? kShortBlock : usual;
}

// A block is kept from call to call, as fresh memory costs page faults. It is too large for a thread's stack.
template <typename Block>
Block& block_of_thread() {
  thread_local const std::unique_ptr<Block> block(new Block);
  return *block;
}

// Takes neurons first to last - 1 through all time steps, block after block. The loops write rows of several steps and
// tensors in turns, so only whole lines by non-temporal stores.
template <typename Block, typename S, typename Problem>
void run_blocks(const Problem& p, const Normalised* norm, int64_t first, int64_t last, bool exceeds_caches,
                int usual_size) {
  const bool stream = exceeds_caches && kWholeLines;
  Block& block = block_of_thread<Block>();
  block.open(p, norm, exceeds_caches);
  each_length<Opmath<S>>(p, first, last, !stream, [&](int64_t begin, int64_t end, int64_t steps) {
    block.set_steps(p, steps);
    const int size = norm != nullptr ? kNormedBlock : block_size<S>(p, usual_size);
    Spans<S, Opmath<S>> spans(begin, end, size, stream, begin > first);
    for (Span span; spans.take(span);) block.run(span);
  });
  if (stream) stream_fence();
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
