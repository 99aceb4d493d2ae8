// The ops: schemas, checks, outputs, and the hand-over to a backend. The same for every device.
//
// Messages for users come from snnfast/_arguments.py; the checks here keep a kernel from touching memory that is not
// its own, whatever tensors reach the op.
#include "lif.h"

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "backend.h"

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
  int64_t n = 1;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(!__builtin_mul_overflow(n, size, &n) && n <= kMostElements, "more elements than memory can hold");
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

ScalarType acc_of(ScalarType dtype) { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

Shape leading_dim_removed(const Shape& shape) { return Shape(shape.begin() + 1, shape.end()); }

// ---- checked inputs

// Owns the contiguous tensors whose pointers a problem holds.
class Inputs {
 public:
  explicit Inputs(const Tensor& like) : like_(like), acc_(acc_of(like.scalar_type())) {}

  const void* keep(const Tensor& t, const char* name, ScalarType dtype, const Shape& shape) {
    STD_TORCH_CHECK(t.device() == like_.device(), name, ": on another device than the other tensors");
    STD_TORCH_CHECK(t.scalar_type() == dtype, name, ": wrong dtype");
    STD_TORCH_CHECK(shape_of(t) == shape, name, ": wrong shape");
    kept_.push_back(torch::stable::contiguous(t));
    return kept_.back().const_data_ptr();
  }

  const void* keep(const MaybeTensor& t, const char* name, ScalarType dtype, const Shape& shape) {
    return t.has_value() ? keep(*t, name, dtype, shape) : nullptr;
  }

  // A parameter varies along one run of adjacent dimensions of a step; it is broadcast along all others.
  Parameter parameter(const Tensor& t, const char* name, const Shape& step) {
    STD_TORCH_CHECK(t.scalar_type() == acc_, name, ": wrong dtype");
    Parameter p;
    if (t.dim() == 0 && t.is_cpu()) {  // read here: no copy to the device, no access from it
      p.value = acc_ == ScalarType::Double ? *static_cast<const double*>(t.const_data_ptr())
                                           : *static_cast<const float*>(t.const_data_ptr());
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

void check_options(int64_t T, int64_t reset) {
  STD_TORCH_CHECK(T >= 0, "num_steps: expected 0 or more");
  STD_TORCH_CHECK(reset >= 0 && reset <= static_cast<int64_t>(Reset::kNone), "reset: expected 0, 1 or 2");
}

// ---- the ops

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> lif_forward(const Tensor& x,          // [T, *], or [*] with num_steps
                                               const MaybeTensor& mem0,  // [*] acc
                                               const Tensor& beta,       // broadcastable to [*], acc
                                               const Tensor& threshold, const Tensor& graded,
                                               std::optional<int64_t> num_steps, int64_t reset, bool reset_delay,
                                               bool record_mem, bool checkpoint) {
  Backend::check_device(x);
  STD_TORCH_CHECK(num_steps.has_value() || x.dim() > 0, "x: expected [T, *]");
  const Shape x_shape = shape_of(x);
  const Shape step = num_steps.has_value() ? x_shape : leading_dim_removed(x_shape);
  LifForward p{};
  p.T = num_steps.has_value() ? *num_steps : x_shape[0];
  check_options(p.T, reset);
  p.N = count(step);
  p.dtype = dtype_of(x, "x");
  p.reset = static_cast<Reset>(reset);
  p.reset_delay = reset_delay;
  p.x_constant = num_steps.has_value();

  Inputs inputs(x);
  p.x = inputs.keep(x, "x", x.scalar_type(), x_shape);
  p.mem0 = inputs.keep(mem0, "mem0", inputs.acc(), step);
  p.beta = inputs.parameter(beta, "beta", step);
  p.threshold = inputs.parameter(threshold, "threshold", step);
  p.graded = inputs.parameter(graded, "graded", step);

  const Shape sequence = with_time(p.T, step);
  count(sequence);
  const int64_t rows = checkpoint ? checkpoint_rows(p.T) : 0;
  Tensor spk = Backend::empty(x, sequence, x.scalar_type());
  Tensor mem = Backend::empty(x, record_mem ? sequence : step, x.scalar_type());
  Tensor checkpoints = Backend::empty(x, with_time(rows, step), inputs.acc());
  p.spk = spk.mutable_data_ptr();
  (record_mem ? p.mem_rec : p.mem_last) = mem.mutable_data_ptr();
  if (rows > 0) p.checkpoints = checkpoints.mutable_data_ptr();
  if (p.N > 0) Backend::run(p, x);
  return {spk, mem, checkpoints};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lif_backward(
    const MaybeTensor& grad_spk,     // [T, *]
    const MaybeTensor& grad_mem,     // [T, *], or [*] for the last membrane only
    const MaybeTensor& x,            // as in forward, with checkpoints; or
    const MaybeTensor& mem_rec,      // [T, *], where the reset is delayed and the dtype is that of the arithmetic
    const MaybeTensor& checkpoints,  // [rows, *] acc
    const MaybeTensor& mem0, const Tensor& beta, const Tensor& threshold, const Tensor& graded,
    std::optional<int64_t> num_steps, int64_t reset, bool reset_delay, int64_t surrogate, double p0, double p1,
    const std::vector<bool>& needs) {
  STD_TORCH_CHECK(x.has_value() != mem_rec.has_value(), "exactly one of x and mem_rec must be given");
  const Tensor& like = x.has_value() ? *x : *mem_rec;
  Backend::check_device(like);
  const ScalarType dtype = like.scalar_type();
  LifBackward p{};
  p.dtype = dtype_of(like, x.has_value() ? "x" : "mem_rec");
  p.x_constant = num_steps.has_value();
  const bool has_time = !(x.has_value() && p.x_constant);
  STD_TORCH_CHECK(!has_time || like.dim() > 0, "x, mem_rec: expected [T, *]");
  const Shape shape = shape_of(like);
  const Shape step = has_time ? leading_dim_removed(shape) : shape;
  p.T = has_time ? shape[0] : *num_steps;
  check_options(p.T, reset);
  STD_TORCH_CHECK(!p.x_constant || p.T == *num_steps, "num_steps: not the number of steps of mem_rec");
  STD_TORCH_CHECK(surrogate >= 0 && surrogate < kSurrogateKinds, "surrogate: unknown kind");
  STD_TORCH_CHECK(needs.size() == 5, "needs: expected five flags");
  p.N = count(step);
  p.reset = static_cast<Reset>(reset);
  p.reset_delay = reset_delay;
  p.surrogate = static_cast<SurrogateKind>(surrogate);
  if (!grad_spk.has_value() && (reset_delay || p.reset == Reset::kNone)) {
    // No gradient passes through a spike, so its derivative must not matter, not even where it is NaN.
    p.surrogate = SurrogateKind::kStraightThrough;
  }
  p.coefficients = visit_surrogate(p.surrogate, [&](auto kind) { return decltype(kind)::coefficients(p0, p1); });

  Inputs inputs(like);
  const ScalarType acc = inputs.acc();
  const Shape sequence = with_time(p.T, step);
  count(sequence);
  if (mem_rec.has_value()) {
    STD_TORCH_CHECK(reset_delay && dtype == acc, "mem_rec: only a delayed reset in float32 or float64 can use it");
    p.mem_rec = inputs.keep(*mem_rec, "mem_rec", dtype, sequence);
  } else {
    STD_TORCH_CHECK(checkpoints.has_value(), "checkpoints: must be given with x");
    p.x = inputs.keep(*x, "x", dtype, shape);
    p.checkpoints = inputs.keep(*checkpoints, "checkpoints", acc, with_time(checkpoint_rows(p.T), step));
  }
  p.mem0 = inputs.keep(mem0, "mem0", acc, step);
  p.beta = inputs.parameter(beta, "beta", step);
  p.threshold = inputs.parameter(threshold, "threshold", step);
  p.graded = inputs.parameter(graded, "graded", step);
  p.grad_spk = inputs.keep(grad_spk, "grad_spk", dtype, sequence);
  if (grad_mem.has_value()) {
    const bool recorded = shape_of(*grad_mem) == sequence;
    (recorded ? p.grad_mem_rec : p.grad_mem_last) =
        inputs.keep(*grad_mem, "grad_mem", dtype, recorded ? sequence : step);
  }

  const Shape grad_x_shape = p.x_constant ? step : sequence;
  const auto output = [&](size_t i, const Shape& size, ScalarType type) {
    return Backend::empty(like, needs[i] ? size : Shape{0}, type);
  };
  Tensor grad_x = output(0, grad_x_shape, dtype);
  Tensor grad_mem0 = output(1, step, acc);
  Tensor grad_beta = output(2, step, acc);
  Tensor grad_threshold = output(3, step, acc);
  Tensor grad_graded = output(4, step, acc);
  const auto pointer = [&](size_t i, const Tensor& t) { return needs[i] ? t.mutable_data_ptr() : nullptr; };
  p.grad_x = pointer(0, grad_x);
  p.grad_mem0 = pointer(1, grad_mem0);
  p.grad_beta = pointer(2, grad_beta);
  p.grad_threshold = pointer(3, grad_threshold);
  p.grad_graded = pointer(4, grad_graded);
  if (p.N > 0) Backend::run(p, like);
  return {grad_x, grad_mem0, grad_beta, grad_threshold, grad_graded};
}

}  // namespace

STABLE_TORCH_LIBRARY(SNN_NAMESPACE, m) {
  m.def(
      "lif_forward(Tensor x, Tensor? mem0, Tensor beta, Tensor threshold, Tensor graded, int? num_steps, int reset, "
      "bool reset_delay, bool record_mem, bool checkpoint) -> (Tensor spk, Tensor mem, Tensor checkpoints)");
  m.def(
      "lif_backward(Tensor? grad_spk, Tensor? grad_mem, Tensor? x, Tensor? mem_rec, Tensor? checkpoints, Tensor? mem0, "
      "Tensor beta, Tensor threshold, Tensor graded, int? num_steps, int reset, bool reset_delay, int surrogate, "
      "float p0, float p1, bool[] needs) -> (Tensor x, Tensor mem0, Tensor beta, Tensor threshold, Tensor graded)");
}

#if !defined(SNN_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward<CpuBackend>));
  m.impl("lif_backward", TORCH_BOX(&lif_backward<CpuBackend>));
}
#endif

#if defined(SNN_CUDA)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, SNN_CUDA_KEY, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward<CudaBackend>));
  m.impl("lif_backward", TORCH_BOX(&lif_backward<CudaBackend>));
}
#endif

}  // namespace snnfast
