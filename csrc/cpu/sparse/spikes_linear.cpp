// The ops of a Linear behind a layer of neurons, whose input are spikes as bits. CPU only: elsewhere snnfast/ composes
// them of spikes as numbers and PyTorch's product.
#include <torch/csrc/stable/library.h>

#include "../../op/call.h"

#include "products.h"

namespace snnfast {
namespace {

// Checked sizes and the height of the spikes; owns the copy of it that is read.
class Product {
 public:
  cpu::Linear linear;

  Product(const Tensor& bits, const Tensor& graded, const Tensor& like, int64_t T, int64_t O) {
    STD_TORCH_CHECK(bits.is_cpu() && graded.is_cpu() && like.is_cpu(), "expected tensors on the CPU");
    STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.dim() == 3 && bits.is_contiguous(),
                    "bits: expected contiguous bytes [(steps + 7) // 8, R, N]");
    STD_TORCH_CHECK(T >= 0 && bits.size(0) == (T + 7) / 8, "bits: expected [(steps + 7) // 8, R, N]");
    linear.dtype = dtype_of(like, "weight");
    linear.spikes = {static_cast<const uint8_t*>(bits.const_data_ptr()), T, bits.size(1), bits.size(2)};
    linear.O = O;
    // Of a height that a spike in this dtype can have.
    const ScalarType dtype = like.scalar_type(), acc = acc_of(dtype);
    linear.height = {nullptr, 0};
    if (graded.dim() == 0) {
      const double value = number_in(graded, number_type_of(graded, "graded"), acc);
      const auto narrow = static_cast<float>(value);
      linear.height.value = value;
      if (dtype == ScalarType::Half) linear.height.value = static_cast<float>(torch::headeronly::Half(narrow));
      if (dtype == ScalarType::BFloat16) linear.height.value = static_cast<float>(torch::headeronly::BFloat16(narrow));
      return;
    }
    STD_TORCH_CHECK(graded.dim() == 1 && graded.size(0) == linear.spikes.N, "graded: expected a number or [N]");
    copy_ = in_order(in_order(graded, dtype), acc);
    linear.height.data = copy_->const_data_ptr();
  }

  bool empty() const { return linear.spikes.T * linear.spikes.R * linear.spikes.N == 0 || linear.O == 0; }

 private:
  MaybeTensor copy_;
};

void* make(Tensor& t, const Tensor& like, const Shape& shape) {
  elements(shape);
  t = CpuBackend::empty(like, shape, contiguous_strides(shape), like.scalar_type());
  return t.mutable_data_ptr();
}

// y [T, R, O]
Tensor forward(const Tensor& bits, const Tensor& weight, const MaybeTensor& bias, const Tensor& graded, int64_t steps) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: expected [O, N]");
  const Product product(bits, graded, weight, steps, weight.size(0));
  const cpu::Linear& p = product.linear;
  STD_TORCH_CHECK(weight.size(1) == p.spikes.N, "weight: expected [O, N]");
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->is_cpu() && bias->scalar_type() == weight.scalar_type() && bias->dim() == 1 && bias->size(0) == p.O,
        "bias: expected [O] in the dtype of weight");
  }
  const Tensor w = in_order(weight, weight.scalar_type());
  MaybeTensor b;
  if (bias.has_value()) b = in_order(*bias, weight.scalar_type());
  Tensor y;
  void* const out = make(y, weight, Shape(std::array<int64_t, 3>{steps, p.spikes.R, p.O}));
  if (!product.empty()) {
    cpu::spikes_linear(p, w.const_data_ptr(), b.has_value() ? b->const_data_ptr() : nullptr, out);
  } else if (p.spikes.N == 0) {
    STD_TORCH_CHECK(steps * p.spikes.R * p.O == 0, "weight: expected [O, N] with N of 1 or more");
  }
  return y;
}

// gradient [O, N] of the weight
Tensor weight_gradient(const Tensor& bits, const Tensor& grad, const Tensor& graded) {
  STD_TORCH_CHECK(grad.dim() == 3, "grad: expected [T, R, O]");
  const Product product(bits, graded, grad, grad.size(0), grad.size(2));
  const cpu::Linear& p = product.linear;
  STD_TORCH_CHECK(grad.size(1) == p.spikes.R, "grad: expected [T, R, O]");
  const Tensor g = in_order(grad, grad.scalar_type());
  Tensor gradient;
  void* const out = make(gradient, grad, Shape(std::array<int64_t, 2>{p.O, p.spikes.N}));
  if (!product.empty()) {
    cpu::spikes_linear_weight(p, g.const_data_ptr(), out);
  } else {
    torch::stable::zero_(gradient);
  }
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("spikes_linear(Tensor bits, Tensor weight, Tensor? bias, Tensor graded, SymInt steps) -> Tensor");
  m.def("spikes_linear_weight(Tensor bits, Tensor grad, Tensor graded) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("spikes_linear", TORCH_BOX(&forward));
  m.impl("spikes_linear_weight", TORCH_BOX(&weight_gradient));
}

}  // namespace snnfast
