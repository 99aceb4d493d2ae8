// Shapes of a call, and the order in which one time step lies in memory.
//
// The neurons of a layer do not depend on one another, so a kernel may take them in any order. It takes them in the
// order of the current, whose dimensions may have another order in memory, as in the channels_last output of a
// convolution. Outputs get the strides of the current, and tensors in another order are copied. So is a current that
// has gaps, or whose outermost dimension is not time. Only one step is read of a current that was expanded over time.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "problem.h"

namespace snnfast {

// The sizes or strides of a tensor. They are not on the heap: allocations for each tensor would take as long as a small
// kernel.
class Shape {
 public:
  Shape() = default;
  template <typename Range>
  explicit Shape(const Range& range) {
    for (const int64_t value : range) push_back(value);
  }

  void push_back(int64_t value) {
    STD_TORCH_CHECK(size_ < kMostDimensions, "expected at most 64 dimensions");
    at_[size_++] = value;
  }
  // The same shape with one more dimension in front, or without the first ones.
  Shape with(int64_t front) const {
    Shape shape;
    shape.push_back(front);
    for (const int64_t value : *this) shape.push_back(value);
    return shape;
  }
  Shape from(size_t first) const {
    Shape shape;
    for (size_t d = first; d < size_; ++d) shape.push_back(at_[d]);
    return shape;
  }

  std::string text() const {
    std::string list;
    for (const int64_t value : *this) list += (list.empty() ? "" : ", ") + std::to_string(value);
    return "[" + list + "]";
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const int64_t* data() const { return at_; }
  int64_t& operator[](size_t d) { return at_[d]; }
  int64_t operator[](size_t d) const { return at_[d]; }
  const int64_t* begin() const { return at_; }
  const int64_t* end() const { return at_ + size_; }

 private:
  static constexpr size_t kMostDimensions = 64;  // PyTorch's own limit
  int64_t at_[kMostDimensions];
  size_t size_ = 0;
};

// No size in bytes may overflow.
constexpr int64_t kMostElements = std::numeric_limits<int64_t>::max() / 16;

inline int64_t elements(const Shape& shape) {
  int64_t n = 1, span = 1;  // strides are multiples of the span, which ignores dimensions of size 0
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(!__builtin_mul_overflow(span, size > 1 ? size : 1, &span) && span <= kMostElements,
                    "more elements than memory can hold");
    n *= size;
  }
  return n;
}

inline Shape contiguous_strides(const Shape& sizes) {
  Shape strides = sizes;
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return strides;
}

// Takes the place of a number of rows where a tensor [*] has no dimension for them.
inline constexpr int64_t kNoRows = -1;

// T time steps [*]. A call of one step has no dimension for time.
struct Layout {
  int64_t T, N;
  Time time;
  Shape step, strides;  // of a step [*]
  Shape order;          // the dimensions of a step, from the outermost in memory to the innermost

  // Takes the order of a tensor [rows, *] or, without rows, [*].
  Layout(const torch::stable::Tensor& t, bool has_rows, int64_t steps, Time kind) : T(steps), time(kind) {
    const auto sizes = t.sizes();
    STD_TORCH_CHECK(!has_rows || !sizes.empty(), "expected [T, *]");
    const size_t lead = has_rows ? 1 : 0;
    for (size_t d = lead; d < sizes.size(); ++d) {
      step.push_back(sizes[d]);
      order.push_back(static_cast<int64_t>(d - lead));
    }
    N = elements(step);
    elements(step.with(T));
    strides = dense_strides(step);
    if (t.is_contiguous()) return;
    const Shape in_order = order;
    const auto given = t.strides();
    for (size_t d = 1; d < order.size(); ++d) {  // a stable sort of very few
      for (size_t i = d; i > 0 && given[lead + at(i - 1)] < given[lead + at(i)]; --i) std::swap(order[i - 1], order[i]);
    }
    strides = dense_strides(step);
    if (has_rows && repeats(t) ? fits_step(t, 1) : fits(t, has_rows ? t.size(0) : kNoRows)) return;
    order = in_order;
    strides = dense_strides(step);
  }

  // Whether the order in memory is that of the dimensions.
  bool in_order() const {
    for (size_t i = 0; i < order.size(); ++i) {
      if (at(i) != i) return false;
    }
    return true;
  }

  // Whether samples, along the first dimension of a step, follow one another in memory.
  bool by_sample() const { return !step.empty() && (step[0] <= 1 || N == 0 || strides[0] * step[0] == N); }

  bool has_time() const { return time != Time::kStep; }
  bool constant() const { return time == Time::kConstant; }

  // The dimension at a place in memory.
  size_t at(size_t place) const { return static_cast<size_t>(order[place]); }

  // Whether t is [rows, *].
  bool has_shape(const torch::stable::Tensor& t, int64_t rows) const {
    const auto sizes = t.sizes();
    const size_t lead = rows == kNoRows ? 0 : 1;
    if (sizes.size() != lead + step.size() || (lead > 0 && sizes[0] != rows)) return false;
    for (size_t d = 0; d < step.size(); ++d) {
      if (sizes[lead + d] != step[d]) return false;
    }
    return true;
  }

  // Whether a kernel can read the memory of t [rows, *].
  bool fits(const torch::stable::Tensor& t, int64_t rows) const {
    if (N > 0 && rows > 1 && t.stride(0) != N) return false;
    return fits_step(t, rows == kNoRows ? 0 : 1);
  }

  // Whether all rows of t are the same memory.
  static bool repeats(const torch::stable::Tensor& t) { return t.dim() > 0 && t.size(0) > 1 && t.stride(0) == 0; }

  // Whether a kernel can read the memory of each step of t, behind `lead` dimensions.
  bool fits_step(const torch::stable::Tensor& t, size_t lead) const {
    const auto given = t.strides();
    for (size_t d = 0; N > 0 && d < step.size(); ++d) {
      if (step[d] > 1 && given[lead + d] != strides[d]) return false;
    }
    return true;
  }

  // The strides of a dense tensor of these sizes whose dimensions have the order of a step in memory.
  Shape dense_strides(const Shape& sizes) const {
    Shape made = sizes;
    int64_t stride = 1;
    for (size_t i = order.size(); i-- > 0;) {
      made[at(i)] = stride;
      stride *= sizes[at(i)] > 1 ? sizes[at(i)] : 1;
    }
    return made;
  }
};

}  // namespace snnfast
