// The ops of batch normalisation on the CPU. snnfast/_images/batch_norm.py decides when they are called.
#include "batch_norm.h"

#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../../op/tensors.h"
#include "run.h"

namespace snnfast {
namespace {

using cpu::BatchNorm;

using cpu::batch_norm;

// Whether x [T, B, C, *] lies in memory as [T, B, *, C].
bool is_channels_last(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t stride = sizes[2];
  for (size_t d = sizes.size(); d-- > 0;) {
    if (d == 2) continue;
    if (sizes[d] > 1 && strides[d] != stride) return false;
    stride *= sizes[d];
  }
  return sizes[2] <= 1 || strides[2] == 1;
}

BatchNorm described(const Tensor& x, const MaybeTensor& weight, double eps) {
  BatchNorm p{};
  p.dtype = dtype_of(x, "x");
  STD_TORCH_CHECK(x.is_cpu(), "x: expected a tensor on the CPU");
  STD_TORCH_CHECK(x.dim() >= 3 && x.numel() > 0, "x: expected [T, B, C, *], not empty");
  p.T = x.size(0), p.B = x.size(1), p.C = x.size(2);
  p.S = x.numel() / (p.T * p.B * p.C);
  p.channels_last = is_channels_last(x);
  STD_TORCH_CHECK(p.channels_last || x.is_contiguous(), "x: expected contiguous or channels_last steps");
  p.x = x.const_data_ptr();
  p.eps = eps;
  p.weight_varies = weight.has_value() && weight->dim() == 2;
  return p;
}

// Returns a parameter [C] or [T, C] in the opmath dtype, in memory that `kept` holds.
const void* parameter(const MaybeTensor& t, const char* name, const BatchNorm& p, ScalarType opmath,
                      std::vector<Tensor>& kept) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->is_cpu(), name, ": expected a tensor on the CPU");
  STD_TORCH_CHECK((t->dim() == 1 || (t->dim() == 2 && t->size(0) == p.T)) && t->size(t->dim() - 1) == p.C, name,
                  ": expected [C] or [T, C]");
  kept.push_back(in_order(*t, opmath));
  return kept.back().const_data_ptr();
}

Tensor statistics(const Tensor& x, ScalarType dtype) {
  const std::vector<int64_t> shape{x.size(0), x.size(2)};
  return empty_strided(x, Shape(shape), contiguous_strides(Shape(shape)), dtype);
}

// Returns the output like x, and the mean and the variance [T, C].
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                                           double eps) {
  cpu::BatchNormForward p{described(x, weight, eps), nullptr, false, nullptr, nullptr, nullptr, nullptr};
  const ScalarType opmath = opmath_of(x.scalar_type());
  std::vector<Tensor> kept;
  p.weight = parameter(weight, "weight", p, opmath, kept);
  p.bias = parameter(bias, "bias", p, opmath, kept);
  p.bias_varies = bias.has_value() && bias->dim() == 2;
  const Tensor y = CpuBackend::empty(x, Shape(x.sizes()), Shape(x.strides()), x.scalar_type());
  const Tensor mean = statistics(x, opmath), variance = statistics(x, opmath);
  p.y = y.mutable_data_ptr();
  p.mean = mean.mutable_data_ptr();
  p.variance = variance.mutable_data_ptr();
  cpu::run(batch_norm().forward[static_cast<int>(p.dtype)], p);
  return {y, mean, variance};
}

// Returns the gradient of x, and those of the weight and of the bias at each step [T, C] in float64.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const MaybeTensor& weight,
                                            const Tensor& mean, const Tensor& variance, double eps) {
  cpu::BatchNormBackward p{described(x, weight, eps), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  const ScalarType opmath = opmath_of(x.scalar_type());
  std::vector<Tensor> kept;
  p.weight = parameter(weight, "weight", p, opmath, kept);
  bool alike = grad.is_cpu() && grad.scalar_type() == x.scalar_type() && grad.dim() == x.dim();
  for (int64_t d = 0; alike && d < x.dim(); ++d) {
    alike = grad.size(d) == x.size(d) && (x.size(d) <= 1 || grad.stride(d) == x.stride(d));
  }
  STD_TORCH_CHECK(alike, "grad: expected the shape, strides and dtype of x");
  p.grad = grad.const_data_ptr();
  for (const auto& [t, name] : {std::pair{&mean, "mean"}, {&variance, "variance"}}) {
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == p.T, name, ": expected [T, C]");
    (t == &mean ? p.mean : p.variance) = parameter(*t, name, p, opmath, kept);
  }
  const Tensor grad_x = CpuBackend::empty(x, Shape(x.sizes()), Shape(x.strides()), x.scalar_type());
  const Tensor of_weight = statistics(x, ScalarType::Double), of_bias = statistics(x, ScalarType::Double);
  p.grad_x = grad_x.mutable_data_ptr();
  p.grad_weight = static_cast<double*>(of_weight.mutable_data_ptr());
  p.grad_bias = static_cast<double*>(of_bias.mutable_data_ptr());
  cpu::run(batch_norm().backward[static_cast<int>(p.dtype)], p);
  return {grad_x, of_weight, of_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("batch_norm_forward(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor variance, float eps) -> (Tensor, "
      "Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("batch_norm_forward", SNN_BOX(forward));
  m.impl("batch_norm_backward", SNN_BOX(backward));
}

}  // namespace snnfast
