// Shapes, dtypes and checked inputs of the ops in lif.cpp, which alone includes this.
#pragma once

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "lif.h"

namespace snnfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

// So that no size in bytes overflows.
constexpr int64_t kMostElements = std::numeric_limits<int64_t>::max() / 16;

// ---- shapes and dtypes

Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

Shape with_time(int64_t T, const Shape& step) {
  Shape shape{T};
  shape.insert(shape.end(), step.begin(), step.end());
  return shape;
}

int64_t count(const Shape& shape) {
  int64_t n = 1, span = 1;  // span: what strides are made of, which 0 elements in one dimension leave as they are
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(!__builtin_mul_overflow(span, size > 1 ? size : 1, &span) && span <= kMostElements,
                    "more elements than memory can hold");
    n *= size;
  }
  return n;
}

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, float64, float16 or bfloat16");
  }
}

Number number_type_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Number::kFloat;
    case ScalarType::Double: return Number::kDouble;
    case ScalarType::Half: return Number::kHalf;
    case ScalarType::BFloat16: return Number::kBFloat16;
    case ScalarType::Long: return Number::kLong;
    default: STD_TORCH_CHECK(false, name, ": wrong dtype");
  }
}

// A tensor of no dimensions on the CPU, as arithmetic in `acc` takes it.
double number_in(const Tensor& t, Number type, ScalarType acc) {
  const void* const data = t.const_data_ptr();
  switch (type) {
    case Number::kFloat: return *static_cast<const float*>(data);
    case Number::kHalf: return *static_cast<const torch::headeronly::Half*>(data);
    case Number::kBFloat16: return *static_cast<const torch::headeronly::BFloat16*>(data);
    case Number::kLong: {
      const int64_t value = *static_cast<const int64_t*>(data);  // rounded once, as torch does it
      return acc == ScalarType::Double ? static_cast<double>(value) : static_cast<float>(value);
    }
    case Number::kDouble: break;
  }
  return *static_cast<const double*>(data);
}

ScalarType acc_of(ScalarType dtype) { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

// The shapes of a call. The ops of one step have no time dimension: `sequence` is then `step`, and T is 1.
struct Sizes {
  int64_t T;
  Shape step;      // [*]
  Shape sequence;  // [T, *]
  bool x_constant;

  const Shape& x() const { return x_constant ? step : sequence; }
  const Shape& spk(bool count) const { return count ? step : sequence; }
};

Sizes sizes_of_step(const Tensor& t) { return {1, shape_of(t), shape_of(t), false}; }

// Of an unroll with t as [T, *], or as [*] with `num_steps`.
Sizes sizes_of_unroll(const Tensor& t, bool has_time, std::optional<int64_t> num_steps, const char* name) {
  const Shape shape = shape_of(t);
  STD_TORCH_CHECK(!has_time || !shape.empty(), name, ": expected [T, *]");
  const int64_t T = has_time ? shape[0] : *num_steps;
  STD_TORCH_CHECK(T >= 0, "num_steps: expected 0 or more");
  STD_TORCH_CHECK(!num_steps.has_value() || T == *num_steps, "num_steps: not the number of steps of ", name);
  Shape step = has_time ? Shape(shape.begin() + 1, shape.end()) : shape;
  Shape sequence = with_time(T, step);
  return {T, std::move(step), std::move(sequence), num_steps.has_value()};
}

// ---- checked inputs

// Owns the contiguous copies whose pointers a problem holds.
class Inputs {
 public:
  explicit Inputs(const Tensor& like) : like_(like), acc_(acc_of(like.scalar_type())) {}

  const void* keep(const Tensor& t, const char* name, ScalarType dtype, const Shape& shape) {
    STD_TORCH_CHECK(t.device() == like_.device(), name, ": on another device than the other tensors");
    STD_TORCH_CHECK(t.scalar_type() == dtype, name, ": wrong dtype");
    STD_TORCH_CHECK(shape_of(t) == shape, name, ": wrong shape");
    if (t.is_contiguous()) return t.const_data_ptr();  // the caller holds it
    kept_.push_back(torch::stable::contiguous(t));
    return kept_.back().const_data_ptr();
  }

  const void* keep(const MaybeTensor& t, const char* name, ScalarType dtype, const Shape& shape) {
    return t.has_value() ? keep(*t, name, dtype, shape) : nullptr;
  }

  // A parameter varies along one run of adjacent dimensions of a step; it is broadcast along all others. One of no
  // dimensions is a number, whatever its dtype.
  Parameter parameter(const Tensor& t, const char* name, const Shape& step) {
    STD_TORCH_CHECK(t.dim() == 0 || t.scalar_type() == acc_, name, ": wrong dtype");
    Parameter p;
    p.type = number_type_of(t, name);
    if (t.dim() == 0) {
      if (t.is_cpu()) {  // read here: no copy to the device, no access from it
        p.value = number_in(t, p.type, acc_);
      } else {
        p.data = keep(t, name, t.scalar_type(), {});
      }
      return p;
    }
    const Shape own = shape_of(t);
    STD_TORCH_CHECK(own.size() <= step.size(), name, ": more dimensions than a time step");
    const size_t offset = step.size() - own.size();
    bool started = false, ended = false;
    for (size_t d = 0; d < own.size(); ++d) {
      const int64_t size = step[d + offset];
      STD_TORCH_CHECK(own[d] == size || own[d] == 1, name, ": does not broadcast to a time step");
      if (own[d] != 1) {
        STD_TORCH_CHECK(!ended, name, ": must vary along adjacent dimensions only; expand it");
        started = true;
        p.size *= size;
      } else if (size != 1) {
        ended = started;
        p.inner = started ? p.inner * size : 1;
      }
    }
    if (t.numel() > 0) p.data = keep(t, name, acc_, own);
    return p;
  }

  ScalarType acc() const { return acc_; }

 private:
  const Tensor& like_;
  ScalarType acc_;
  std::vector<Tensor> kept_;
};

}  // namespace
}  // namespace snnfast
