// The ops of pooling on the CPU. snnfast/_images/pool2d.py decides when they are called.
#include "pooling.h"

#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../../op/backend.h"
#include "../parallel.h"
#include "images.h"

namespace snnfast {
namespace cpu {

const PoolingKernels& pooling(){SNN_RETURN_OF_CURRENT_ISA(pooling_kernels())}

Pooling describe_pooling(int64_t C, int64_t H, int64_t W, const int64_t (&kernel)[2], const int64_t (&stride)[2]) {
  static constexpr int64_t kMostPlaces = 256, kMostSide = std::numeric_limits<int>::max();
  const int64_t size[2] = {H, W};
  int outputs[2];
  for (int d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(size[d] <= kMostSide, "image: too large");
    STD_TORCH_CHECK(kernel[d] >= 1 && kernel[d] <= size[d], "kernel: expected 1 to the size of the image");
    STD_TORCH_CHECK(stride[d] >= kernel[d], "stride: expected that of the kernel or more");
    outputs[d] = static_cast<int>((size[d] - kernel[d]) / stride[d] + 1);
  }
  STD_TORCH_CHECK(kernel[0] <= kMostPlaces / kernel[1], "kernel: expected at most 256 places");
  auto small = [](int64_t value) { return static_cast<int>(std::min(value, kMostSide)); };
  return {small(C),         small(H),         small(W),         outputs[0],      outputs[1],
          small(kernel[0]), small(kernel[1]), small(stride[0]), small(stride[1])};
}

}  // namespace cpu

namespace {

using cpu::describe_pooling;
using cpu::Pooling;
using cpu::pooling;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 14;  // elements of the input that are worth a thread

template <typename Visit>
void each_image(const Pooling& p, int64_t N, Visit&& visit) {
  cpu::in_parallel(0, N, kGrain / std::max<int64_t>(p.inputs(), 1) + 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) visit(n);
  });
}

// Returns the maximum of each window and its place in the window.
std::tuple<Tensor, Tensor> max_pooling(const Tensor& x, int64_t kernel_y, int64_t kernel_x, int64_t stride_y,
                                       int64_t stride_x) {
  check_image(x, "x");
  const Pooling p = describe_pooling(x.size(1), x.size(2), x.size(3), {kernel_y, kernel_x}, {stride_y, stride_x});
  const Tensor y = new_image(x, x.size(0), p.C, p.Y, p.X);
  const Tensor places = new_image(x, x.size(0), p.C, p.Y, p.X, ScalarType::Byte);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const largest = static_cast<float*>(y.mutable_data_ptr());
  uint8_t* const at = static_cast<uint8_t*>(places.mutable_data_ptr());
  each_image(p, x.size(0), [&](int64_t n) {
    pooling().forward(p, images + n * p.inputs(), largest + n * p.outputs(), at + n * p.outputs());
  });
  return {y, places};
}

// Returns the gradient of an image of height H and width W, from that of its maxima.
Tensor max_pooling_backward(const Tensor& grad, const Tensor& places, int64_t H, int64_t W, int64_t kernel_y,
                            int64_t kernel_x, int64_t stride_y, int64_t stride_x) {
  check_image(grad, "grad");
  check_image(places, "places", ScalarType::Byte);
  const Pooling p = describe_pooling(grad.size(1), H, W, {kernel_y, kernel_x}, {stride_y, stride_x});
  const int64_t sizes[4] = {grad.size(0), p.C, p.Y, p.X};
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(grad.size(d) == sizes[d] && places.size(d) == sizes[d], "grad, places: wrong shape");
  }
  const Tensor of_x = new_image(grad, grad.size(0), p.C, p.H, p.W);
  const float* const given = static_cast<const float*>(grad.const_data_ptr());
  const uint8_t* const at = static_cast<const uint8_t*>(places.const_data_ptr());
  float* const made = static_cast<float*>(of_x.mutable_data_ptr());
  each_image(p, grad.size(0), [&](int64_t n) {
    pooling().backward(p, given + n * p.outputs(), at + n * p.outputs(), made + n * p.inputs());
  });
  return of_x;
}

// Returns the mean of each window.
Tensor average_pooling(const Tensor& x, int64_t kernel_y, int64_t kernel_x, int64_t stride_y, int64_t stride_x) {
  check_image(x, "x");
  const Pooling p = describe_pooling(x.size(1), x.size(2), x.size(3), {kernel_y, kernel_x}, {stride_y, stride_x});
  const Tensor y = new_image(x, x.size(0), p.C, p.Y, p.X);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const means = static_cast<float*>(y.mutable_data_ptr());
  each_image(p, x.size(0), [&](int64_t n) { pooling().average(p, images + n * p.inputs(), means + n * p.outputs()); });
  return y;
}

// Returns the gradient of an image of height H and width W, from that of its means.
Tensor average_pooling_backward(const Tensor& grad, int64_t H, int64_t W, int64_t kernel_y, int64_t kernel_x,
                                int64_t stride_y, int64_t stride_x) {
  check_image(grad, "grad");
  const Pooling p = describe_pooling(grad.size(1), H, W, {kernel_y, kernel_x}, {stride_y, stride_x});
  STD_TORCH_CHECK(grad.size(2) == p.Y && grad.size(3) == p.X, "grad: wrong shape");
  const Tensor of_x = new_image(grad, grad.size(0), p.C, p.H, p.W);
  const float* const given = static_cast<const float*>(grad.const_data_ptr());
  float* const made = static_cast<float*>(of_x.mutable_data_ptr());
  each_image(p, grad.size(0),
             [&](int64_t n) { pooling().average_backward(p, given + n * p.outputs(), made + n * p.inputs()); });
  return of_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("average_pooling(Tensor x, int kernel_y, int kernel_x, int stride_y, int stride_x) -> Tensor");
  m.def(
      "average_pooling_backward(Tensor grad, int height, int width, int kernel_y, int kernel_x, int stride_y, int "
      "stride_x) -> Tensor");
  m.def("max_pooling(Tensor x, int kernel_y, int kernel_x, int stride_y, int stride_x) -> (Tensor, Tensor)");
  m.def(
      "max_pooling_backward(Tensor grad, Tensor places, int height, int width, int kernel_y, int kernel_x, int "
      "stride_y,"
      " int stride_x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("average_pooling", SNN_BOX(average_pooling));
  m.impl("average_pooling_backward", SNN_BOX(average_pooling_backward));
  m.impl("max_pooling", SNN_BOX(max_pooling));
  m.impl("max_pooling_backward", SNN_BOX(max_pooling_backward));
}

}  // namespace snnfast
