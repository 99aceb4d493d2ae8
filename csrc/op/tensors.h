// The tensors of a call: checks, copies of tensors that a kernel cannot read as they are, and outputs.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "backend.h"
#include "layout.h"
#include "problem.h"

namespace snnfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Calls the variant of a PyTorch operator that writes to its last argument.
template <typename... Arguments>
void call_out(const char* name, const Arguments&... arguments) {
  StableIValue stack[] = {torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "out", stack, TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// ---- dtypes

inline ScalarType opmath_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, float64, float16 or bfloat16");
  }
}

inline Number number_type_of(const Tensor& t, const char* name) {
  return t.scalar_type() == ScalarType::Long ? Number::kLong : static_cast<Number>(dtype_of(t, name));
}

// Returns the value of a tensor without dimensions on the CPU, as arithmetic in `opmath` takes it.
inline double number_in(const Tensor& t, Number type, ScalarType opmath) {
  const void* const data = t.const_data_ptr();
  switch (type) {
    case Number::kFloat: return *static_cast<const float*>(data);
    case Number::kHalf: return *static_cast<const torch::headeronly::Half*>(data);
    case Number::kBFloat16: return *static_cast<const torch::headeronly::BFloat16*>(data);
    case Number::kLong: {
      const int64_t value = *static_cast<const int64_t*>(data);  // rounded once, as in torch
      return opmath == ScalarType::Double ? static_cast<double>(value) : static_cast<float>(value);
    }
    case Number::kDouble: break;
  }
  return *static_cast<const double*>(data);
}

inline ScalarType saved_dtype(Saved saved, ScalarType opmath) {
  return saved == Saved::kSpikes ? ScalarType::Byte : opmath;
}

// ---- checked inputs and outputs of a call

// It owns the copies whose pointers a problem holds.
template <typename Backend>
class OpTensors {
 public:
  const ScalarType opmath;
  std::vector<Tensor> outputs;

  // `into`: tensors that take the results, in the order of the outputs. If it is empty, outputs are new tensors.
  OpTensors(const Tensor& like, const Layout& layout, ScalarType dtype, std::vector<Tensor> into = {})
      : opmath(opmath_of(dtype)), layout_(layout), like_(like), device_(like.device()), into_(std::move(into)) {
    outputs.reserve(8);
  }

  // Reads a tensor [rows, *] or, without rows, [*]. It may have another dtype only if `cast` is set.
  const void* read(const Tensor& t, const char* name, ScalarType dtype, int64_t rows, bool cast = false) {
    const bool as_it_is = t.scalar_type() == dtype;
    STD_TORCH_CHECK(t.device() == device_, name, ": on another device than the other tensors");
    STD_TORCH_CHECK(as_it_is || cast, name, ": wrong dtype");
    STD_TORCH_CHECK(layout_.has_shape(t, rows), name, ": wrong shape");
    if (as_it_is && layout_.fits(t, rows)) return t.const_data_ptr();  // the caller holds it
    return copy(t, shape_with(rows), strides_with(rows), dtype);
  }

  const void* read(const MaybeTensor& t, const char* name, ScalarType dtype, int64_t rows, bool cast = false) {
    return t.has_value() ? read(*t, name, dtype, rows, cast) : nullptr;
  }

  // Reads a state before the first step, [*]. Sets bit `s` of `repeats` if it is one number for all neurons, which the
  // kernels for CUDA can read.
  const void* read_state(const MaybeTensor& t, const char* name, int s, unsigned& repeats) {
    bool one = Backend::kReadsNumbers && t.has_value() && t->scalar_type() == opmath && t->device() == device_ &&
               layout_.N > 1 && layout_.has_shape(*t, kNoRows);
    for (int64_t d = 0; one && d < t->dim(); ++d) one = t->size(d) == 1 || t->stride(d) == 0;
    if (!one) return read(t, name, opmath, kNoRows, /*cast=*/true);
    repeats |= 1u << s;
    return t->const_data_ptr();
  }

  // Reads a tensor with a row for every step, or `one` row for all of them. If its rows are one row that was expanded
  // over time, as in the gradient of a sum, only that row is read, and the `stride` from one row to the next is 0.
  const void* read_steps(const MaybeTensor& t, const char* name, ScalarType dtype, bool one, int64_t& stride) {
    stride = one ? 0 : layout_.N;
    const int64_t rows = every_step_unless(one);
    if (!t.has_value() || rows == kNoRows || !layout_.repeats(*t)) return read(t, name, dtype, rows);
    STD_TORCH_CHECK(layout_.has_shape(*t, rows), name, ": wrong shape");
    stride = 0;
    return read(torch::stable::select(*t, 0, 0), name, dtype, kNoRows);  // a view: the caller holds its memory
  }

  template <typename Problem>
  const void* read_current(const Tensor& x, ScalarType dtype, Problem& p) {
    int64_t stride = 0;
    const void* const rows = read_steps(x, "x", dtype, layout_.constant(), stride);
    p.x_repeats = stride == 0;
    return rows;
  }

  // A parameter varies along dimensions of a step that are adjacent in memory, and is broadcast along all others. A
  // parameter without dimensions is a number, of any dtype.
  Parameter parameter(const Tensor& t, const char* name) {
    Parameter p;
    p.type = number_type_of(t, name);
    if (t.dim() == 0 && t.is_cpu()) {  // reading the number here saves a copy to the device
      p.value = number_in(t, p.type, opmath);
      return p;
    }
    STD_TORCH_CHECK(t.device() == device_, name, ": on another device than the other tensors");
    if (t.dim() == 0) {
      p.data = t.const_data_ptr();
      return p;
    }
    STD_TORCH_CHECK(static_cast<size_t>(t.dim()) <= layout_.step.size(), name, ": more dimensions than a time step");
    p.type = opmath == ScalarType::Double ? Number::kDouble : Number::kFloat;
    const auto sizes = t.sizes(), strides = t.strides();
    const size_t lead = layout_.step.size() - sizes.size();
    Shape own = layout_.step;
    for (size_t d = 0; d < lead; ++d) own[d] = 1;
    for (size_t d = 0; d < sizes.size(); ++d) {
      own[lead + d] = sizes[d];
      STD_TORCH_CHECK(sizes[d] == layout_.step[lead + d] || sizes[d] == 1, name, ": does not broadcast to a time step");
    }
    if (t.numel() == 0) return p;
    bool ended = false, adjacent = true, dense = t.scalar_type() == opmath;
    for (size_t i = layout_.order.size(); i-- > 0;) {  // from the innermost dimension
      const size_t d = layout_.at(i);
      if (own[d] != 1) {
        adjacent &= !ended;
        dense &= strides[d - lead] == p.size;
        p.size *= own[d];
      } else if (layout_.step[d] != 1) {
        ended |= p.size != 1;
        if (p.size == 1) p.inner *= layout_.step[d];
      }
    }
    if (!adjacent) {
      p.inner = 1;
      p.size = layout_.N;
      p.data = copy(t, layout_.step, layout_.strides, opmath);
    } else {
      p.data = dense ? t.const_data_ptr() : copy(t, own.from(lead), layout_.dense_strides(own).from(lead), opmath);
    }
    return p;
  }

  // Adds a tensor [rows, *] or [*] to `outputs`.
  void* make(ScalarType dtype, int64_t rows) {
    if (!into_.empty()) {
      STD_TORCH_CHECK(outputs.size() < into_.size(), "out: too few tensors");
      const Tensor& t = into_[outputs.size()];
      STD_TORCH_CHECK(
          t.device() == device_ && t.scalar_type() == dtype && layout_.has_shape(t, rows) && layout_.fits(t, rows),
          "out: not like an output");
      outputs.push_back(t);
      return outputs.back().mutable_data_ptr();
    }
    outputs.push_back(Backend::empty(like_, shape_with(rows), strides_with(rows), dtype));
    return outputs.back().mutable_data_ptr();
  }

  // Whether the kernels sum the gradients of a parameter over all neurons.
  static bool sums(const Tensor& parameter) {
    return Backend::kSumsParameters && parameter.numel() == 1 && parameter.scalar_type() != ScalarType::Long;
  }

  // Adds a tensor like a parameter, on the device of the call, to `outputs`.
  void* make_like(const Tensor& parameter) {
    const Shape shape(parameter.sizes());
    outputs.push_back(Backend::empty(like_, shape, contiguous_strides(shape), parameter.scalar_type()));
    return outputs.back().mutable_data_ptr();
  }

  // Allocates memory for the time of the call.
  void* scratch(ScalarType dtype, int64_t size) {
    Shape shape;
    shape.push_back(size);
    copies_.push_back(empty_strided(like_, shape, contiguous_strides(shape), dtype));
    return copies_.back().mutable_data_ptr();
  }

  // The number of rows of a tensor with a value for every step.
  int64_t every_step() const { return layout_.has_time() ? layout_.T : kNoRows; }
  // The same, but without rows if the tensor has one value for all steps.
  int64_t every_step_unless(bool one) const { return one ? kNoRows : every_step(); }

 private:
  Shape shape_with(int64_t rows) const { return rows == kNoRows ? layout_.step : layout_.step.with(rows); }
  Shape strides_with(int64_t rows) const {
    return rows == kNoRows ? layout_.strides : layout_.strides.with(layout_.N > 0 ? layout_.N : 1);
  }

  const void* copy(const Tensor& t, const Shape& shape, const Shape& strides, ScalarType dtype) {
    copies_.push_back(empty_strided(like_, shape, strides, dtype));
    torch::stable::copy_(copies_.back(), t);
    return copies_.back().const_data_ptr();
  }

  const Layout& layout_;
  const Tensor& like_;
  const torch::stable::Device device_;
  const std::vector<Tensor> into_;
  std::vector<Tensor> copies_;
};

// Returns t if it is contiguous and has the dtype, and else a copy that is.
inline Tensor in_order(const Tensor& t, ScalarType dtype) {
  if (t.is_contiguous() && t.scalar_type() == dtype) return t;
  const Shape shape(t.sizes());
  Tensor copy = empty_strided(t, shape, contiguous_strides(shape), dtype);
  torch::stable::copy_(copy, t);
  return copy;
}

}  // namespace snnfast
