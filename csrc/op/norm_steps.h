// The steps of a batch normalisation as the host finds them in memory, for the ops of every device.
#pragma once

#include <initializer_list>

#include "tensors.h"

namespace snnfast {

// How x [T, B, C, *] lies in memory.
template <typename Backend>
struct NormSteps {
  Layout layout;
  int64_t B, C, S;     // samples, channels, and elements of a channel of a sample
  bool channels_last;  // a step lies in memory as [B, S, C], and not as [B, C, S]

  explicit NormSteps(const Tensor& x) : layout(x, true, x.size(0), Time::kSequence) {
    Backend::check_device(x);
    STD_TORCH_CHECK(x.dim() >= 3 && x.numel() > 0, "x: expected [T, B, C, *], not empty");
    STD_TORCH_CHECK(x.scalar_type() != ScalarType::Double, "x: expected float32, float16 or bfloat16");
    B = x.size(1), C = x.size(2), S = layout.N / (B * C);
    channels_last = lies(true);
    STD_TORCH_CHECK(channels_last || lies(false), "x: expected steps in the usual or in channels_last order");
  }

  // Returns new numbers of the channels on the device of x.
  Tensor make(const Tensor& x, std::initializer_list<int64_t> sizes, ScalarType dtype) const {
    const Shape shape(sizes);
    return Backend::empty(x, shape, contiguous_strides(shape), dtype);
  }

  // Returns the float32 numbers of the channels in a tensor of this size.
  const float* read(const Tensor& t, const char* name, const Tensor& x, int64_t size) const {
    STD_TORCH_CHECK(
        t.device() == x.device() && t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == size,
        name, ": expected contiguous float32 numbers of the channels on the device of x");
    return static_cast<const float*>(t.const_data_ptr());
  }

 private:
  // Whether the dimensions lie in their order, or with the channels innermost.
  bool lies(bool last) const {
    int64_t stride = last ? C : 1;
    for (size_t d = layout.step.size(); d-- > 0;) {
      if (last && d == 1) continue;
      if (layout.step[d] > 1 && layout.strides[d] != stride) return false;
      stride *= layout.step[d];
    }
    return !last || C == 1 || layout.strides[1] == 1;
  }
};

}  // namespace snnfast
