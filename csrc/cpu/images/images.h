// Images [N, C, H, W] in channels_last order, which the ops of convolutions and of pooling take and return.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../../op/backend.h"

namespace snnfast {

inline void check_image(const torch::stable::Tensor& t, const char* name,
                        torch::headeronly::ScalarType dtype = torch::headeronly::ScalarType::Float) {
  const char* const expected = dtype == torch::headeronly::ScalarType::Byte ? "uint8" : "float32";
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == dtype, name, ": expected ", expected, " on the CPU");
  STD_TORCH_CHECK(t.dim() == 4, name, ": expected [N, C, H, W]");
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t stride = 1;
  for (const size_t d : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(t.numel() == 0 || sizes[d] <= 1 || strides[d] == stride, name, ": expected channels_last");
    STD_TORCH_CHECK(d == 0 || sizes[d] <= std::numeric_limits<int32_t>::max(), name, ": too large");
    stride *= std::max<int64_t>(sizes[d], 1);
  }
}

// Returns an uninitialised image on the device of `like`.
inline torch::stable::Tensor new_image(const torch::stable::Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W,
                                       torch::headeronly::ScalarType dtype = torch::headeronly::ScalarType::Float) {
  return CpuBackend::empty(like, Shape(std::vector<int64_t>{N, C, H, W}),
                           Shape(std::vector<int64_t>{H * W * C, 1, W * C, C}), dtype);
}

}  // namespace snnfast
