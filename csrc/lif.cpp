// The ops: schemas, checks, outputs, and the hand-over to a backend. The same for every device.
//
// Messages for users come from snnfast/_arguments.py; the checks here keep a kernel from touching memory that is not
// its own, whatever tensors reach the op.
#include "lif.h"

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "backend.h"
#include "inputs.h"

namespace snnfast {
namespace {

// ---- what all ops share

// Whether clamp(beta, 0, 1) has a gradient at 0 and 1: the rule of the torch that runs, which Python tells once.
bool g_clamp_closed = false;

void set_clamp_closed(bool closed) { g_clamp_closed = closed; }

// What every op is given beside its current.
struct Common {
  const MaybeTensor& mem0;  // [*] acc
  const Tensor& beta;       // broadcastable to [*], acc; as the next two
  const Tensor& threshold;
  const Tensor& graded;
  int64_t reset;
  bool reset_delay;
  bool count;  // of the spikes, in place of the spikes of every step
};

void describe(LifProblem& p, Inputs& inputs, const Sizes& sizes, const Common& common) {
  STD_TORCH_CHECK(common.reset >= 0 && common.reset <= static_cast<int64_t>(Reset::kNone), "reset: expected 0, 1 or 2");
  p.reset = static_cast<Reset>(common.reset);
  p.reset_delay = common.reset_delay;
  p.T = sizes.T;
  p.N = count(sizes.step);
  count(sizes.sequence);
  p.x_constant = sizes.x_constant;
  p.spk_count = common.count;
  p.mem0 = inputs.keep(common.mem0, "mem0", inputs.acc(), sizes.step);
  p.beta = inputs.parameter(common.beta, "beta", sizes.step);
  p.threshold = inputs.parameter(common.threshold, "threshold", sizes.step);
  p.graded = inputs.parameter(common.graded, "graded", sizes.step);
}

struct KeptSize {
  Shape shape;
  ScalarType dtype;
};

KeptSize kept_size(Keep keep, const Sizes& sizes, ScalarType acc) {
  switch (keep) {
    case Keep::kCheckpoints: return {with_time(checkpoint_rows(sizes.T), sizes.step), acc};
    case Keep::kRounded: return {sizes.sequence, ScalarType::BFloat16};
    case Keep::kBits: return {with_time(bit_rows(sizes.T), sizes.step), ScalarType::Byte};
    case Keep::kNothing: break;
  }
  return {with_time(0, sizes.step), acc};
}

Keep checked_keep(int64_t keep, bool reset_delay) {
  STD_TORCH_CHECK(keep >= 0 && keep < kKeeps, "keep: unknown kind");
  const Keep kind = static_cast<Keep>(keep);
  STD_TORCH_CHECK(reset_delay || kind == Keep::kNothing || kind == Keep::kCheckpoints,
                  "keep: only with a delayed reset does the membrane of a step tell its reset");
  return kind;
}

// Returns spk and mem.
template <typename Backend>
std::tuple<Tensor, Tensor> forward(LifForward& p, Inputs& inputs, const Tensor& x, const Sizes& sizes,
                                   bool record_mem) {
  p.dtype = dtype_of(x, "x");
  p.x = inputs.keep(x, "x", x.scalar_type(), sizes.x());
  Tensor spk = Backend::empty(x, sizes.spk(p.spk_count), x.scalar_type());
  Tensor mem =
      record_mem ? Backend::empty(x, sizes.sequence, x.scalar_type()) : Backend::empty(x, sizes.step, inputs.acc());
  p.spk = spk.mutable_data_ptr();
  (record_mem ? p.mem_rec : p.mem_last) = mem.mutable_data_ptr();
  if (p.N > 0) Backend::run(p, x);
  return {spk, mem};
}

struct BackwardInputs {
  MaybeTensor grad_spk;    // [T, *], or [*] of a count
  MaybeTensor grad_mem;    // [T, *], or [*] acc for the last membrane only
  MaybeTensor x;           // as in forward, with checkpoints; or
  MaybeTensor mem;         // [T, *], where the reset is delayed and the dtype is that of the arithmetic; or
  MaybeTensor kept;        // what forward kept
  MaybeTensor derivative;  // [T, *] acc, in place of a surrogate
  int64_t keep;
  int64_t surrogate;
  double p0, p1;
  int64_t needs;  // bit i: the gradient of input i of x, mem0, beta, threshold, graded
};

constexpr int kNeedsBeta = 1 << 2, kNeedsGraded = 1 << 4;

template <typename Backend>
std::vector<Tensor> backward(const BackwardInputs& in, const Sizes& sizes, const Common& common) {
  constexpr int kGradients = 5;
  STD_TORCH_CHECK(in.grad_spk.has_value() || in.grad_mem.has_value(), "grad_spk or grad_mem must be given");
  // Where only the gradient of the last membrane is given, all is in its dtype, that of the arithmetic.
  const Tensor& like = in.grad_spk.has_value() ? *in.grad_spk : in.x.has_value() ? *in.x : *in.grad_mem;
  const ScalarType dtype = like.scalar_type();
  Backend::check_device(like);
  STD_TORCH_CHECK(in.surrogate >= 0 && in.surrogate < kSurrogateKinds, "surrogate: unknown kind");
  STD_TORCH_CHECK(in.needs >= 0 && in.needs < 1 << kGradients, "needs: expected five bits");
  LifBackward p{};
  Inputs inputs(like);
  p.dtype = dtype_of(like, in.grad_spk.has_value() ? "grad_spk" : in.x.has_value() ? "x" : "grad_mem");
  p.clamp_closed = g_clamp_closed;
  describe(p, inputs, sizes, common);
  p.keep = checked_keep(in.keep, p.reset_delay);
  if (in.mem.has_value()) {
    STD_TORCH_CHECK(p.keep == Keep::kNothing, "mem: nothing else is kept beside it");
    STD_TORCH_CHECK(p.reset_delay && dtype == inputs.acc(),
                    "mem: only a delayed reset in float32 or float64 can use it");
    p.mem_rec = inputs.keep(*in.mem, "mem", dtype, sizes.sequence);
  } else {
    const KeptSize kept = kept_size(p.keep, sizes, inputs.acc());
    if (p.keep == Keep::kNothing || p.keep == Keep::kCheckpoints) {
      STD_TORCH_CHECK(in.x.has_value(), "exactly one of x and mem must be given");
      STD_TORCH_CHECK((in.kept.has_value() && p.keep == Keep::kCheckpoints) || checkpoint_rows(p.T) == 0,
                      "kept: checkpoints must be given with x");
      p.x = inputs.keep(*in.x, "x", dtype, sizes.x());
    } else {
      STD_TORCH_CHECK(!in.x.has_value() && in.kept.has_value(), "kept: given alone, it must be there");
    }
    p.kept = inputs.keep(in.kept, "kept", kept.dtype, kept.shape);
  }
  p.derivative = inputs.keep(in.derivative, "derivative", inputs.acc(), sizes.sequence);
  p.grad_spk = inputs.keep(in.grad_spk, "grad_spk", dtype, sizes.spk(p.spk_count));
  if (in.grad_mem.has_value()) {
    // Of one step, which has no time dimension, it is the state.
    const bool recorded = in.grad_mem->dim() == static_cast<int64_t>(sizes.step.size()) + 1;
    if (recorded) {
      p.grad_mem_rec = inputs.keep(*in.grad_mem, "grad_mem", dtype, sizes.sequence);
    } else {
      p.grad_mem_last = inputs.keep(*in.grad_mem, "grad_mem", inputs.acc(), sizes.step);
    }
  }

  p.surrogate = p.derivative != nullptr ? SurrogateKind::kStraightThrough : static_cast<SurrogateKind>(in.surrogate);
  if (p.grad_spk == nullptr && (p.reset_delay || p.reset == Reset::kNone)) {
    // No gradient passes through a spike, so its derivative must not matter, not even where it is NaN.
    p.surrogate = SurrogateKind::kNone;
    p.derivative = nullptr;
  }
  p.coefficients = visit_surrogate(p.surrogate, [&](auto kind) { return decltype(kind)::coefficients(in.p0, in.p1); });

  STD_TORCH_CHECK(p.keep != Keep::kRounded || (in.needs & kNeedsBeta) == 0,
                  "keep: a rounded membrane does not tell the gradient of beta");
  if (p.keep == Keep::kBits) {
    STD_TORCH_CHECK(p.surrogate == SurrogateKind::kNone ||
                        (p.surrogate == SurrogateKind::kStraightThrough && p.derivative == nullptr),
                    "keep: spikes alone do not tell this derivative");
    STD_TORCH_CHECK((in.needs & (kNeedsBeta | kNeedsGraded)) == 0, "keep: spikes alone do not tell these gradients");
  }
  void** const pointers[kGradients] = {&p.grad_x, &p.grad_mem0, &p.grad_beta, &p.grad_threshold, &p.grad_graded};
  std::vector<Tensor> gradients;
  gradients.reserve(kGradients);
  for (int i = 0; i < kGradients; ++i) {
    if ((in.needs >> i & 1) == 0) continue;
    gradients.push_back(i == 0 ? Backend::empty(like, sizes.x(), dtype)
                               : Backend::empty(like, sizes.step, inputs.acc()));
    *pointers[i] = gradients.back().mutable_data_ptr();
  }
  if (p.N > 0) Backend::run(p, like);
  return gradients;
}

// ---- the ops

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor> lif_forward(const Tensor& x,  // [T, *], or [*] with num_steps
                                               const MaybeTensor& mem0, const Tensor& beta, const Tensor& threshold,
                                               const Tensor& graded, std::optional<int64_t> num_steps, int64_t reset,
                                               bool reset_delay, bool record_mem, bool count, int64_t keep) {
  Backend::check_device(x);
  const Sizes sizes = sizes_of_unroll(x, !num_steps.has_value(), num_steps, "x");
  LifForward p{};
  Inputs inputs(x);
  describe(p, inputs, sizes, {mem0, beta, threshold, graded, reset, reset_delay, count});
  p.keep = checked_keep(keep, p.reset_delay);
  const KeptSize size = kept_size(p.keep, sizes, inputs.acc());
  Tensor kept = Backend::empty(x, size.shape, size.dtype);
  if (size.shape[0] > 0) p.kept = kept.mutable_data_ptr();
  auto [spk, mem] = forward<Backend>(p, inputs, x, sizes, record_mem);
  return {spk, mem, kept};
}

template <typename Backend>
std::tuple<Tensor, Tensor> lif_step_forward(const Tensor& x,  // [*]
                                            const MaybeTensor& mem0, const Tensor& beta, const Tensor& threshold,
                                            const Tensor& graded, int64_t reset, bool reset_delay) {
  Backend::check_device(x);
  const Sizes sizes = sizes_of_step(x);
  LifForward p{};
  Inputs inputs(x);
  describe(p, inputs, sizes, {mem0, beta, threshold, graded, reset, reset_delay, /*count=*/false});
  p.keep = Keep::kCheckpoints;  // of which one step has none; backward reads the current again
  return forward<Backend>(p, inputs, x, sizes, /*record_mem=*/false);
}

// Of an unroll of T steps whose membranes come from one of three tensors.
Sizes sizes_of_backward(const MaybeTensor& x, const MaybeTensor& mem_rec, const MaybeTensor& kept, int64_t T,
                        bool x_constant) {
  STD_TORCH_CHECK(x.has_value() ? !mem_rec.has_value() : mem_rec.has_value() || kept.has_value(),
                  "exactly one of x, mem_rec and, alone, kept must be given");
  STD_TORCH_CHECK(T >= 0, "steps: expected 0 or more");
  const bool has_time = !(x.has_value() && x_constant);
  Shape step = shape_of(x.has_value() ? *x : mem_rec.has_value() ? *mem_rec : *kept);
  STD_TORCH_CHECK(!has_time || !step.empty(), "expected [T, *]");
  if (has_time) step.erase(step.begin());
  Shape sequence = with_time(T, step);
  return {T, std::move(step), std::move(sequence), x_constant};
}

template <typename Backend>
std::vector<Tensor> lif_backward(const MaybeTensor& grad_spk, const MaybeTensor& grad_mem, const MaybeTensor& x,
                                 const MaybeTensor& mem_rec, const MaybeTensor& kept, const MaybeTensor& mem0,
                                 const Tensor& beta, const Tensor& threshold, const Tensor& graded,
                                 const MaybeTensor& derivative, int64_t steps, bool constant, int64_t reset,
                                 bool reset_delay, bool count, int64_t keep, int64_t surrogate, double p0, double p1,
                                 int64_t needs) {
  return backward<Backend>({grad_spk, grad_mem, x, mem_rec, kept, derivative, keep, surrogate, p0, p1, needs},
                           sizes_of_backward(x, mem_rec, kept, steps, constant),
                           {mem0, beta, threshold, graded, reset, reset_delay, count});
}

template <typename Backend>
std::vector<Tensor> lif_step_backward(const MaybeTensor& grad_spk,  // [*]
                                      const MaybeTensor& grad_mem,  // [*]
                                      const Tensor& x,              // as in forward
                                      const MaybeTensor& mem0, const Tensor& beta, const Tensor& threshold,
                                      const Tensor& graded, int64_t reset, bool reset_delay, int64_t surrogate,
                                      double p0, double p1, int64_t needs) {
  constexpr auto keep = static_cast<int64_t>(Keep::kNothing);
  return backward<Backend>(
      {grad_spk, grad_mem, x, std::nullopt, std::nullopt, std::nullopt, keep, surrogate, p0, p1, needs},
      sizes_of_step(x), {mem0, beta, threshold, graded, reset, reset_delay, /*count=*/false});
}

}  // namespace

STABLE_TORCH_LIBRARY(SNN_NAMESPACE, m) {
  m.def(
      "lif_forward(Tensor x, Tensor? mem0, Tensor beta, Tensor threshold, Tensor graded, int? num_steps, int reset, "
      "bool reset_delay, bool record_mem, bool count, int keep) -> (Tensor spk, Tensor mem, Tensor kept)");
  m.def(
      "lif_backward(Tensor? grad_spk, Tensor? grad_mem, Tensor? x, Tensor? mem_rec, Tensor? kept, Tensor? mem0, "
      "Tensor beta, Tensor threshold, Tensor graded, Tensor? derivative, SymInt steps, bool constant, int reset, "
      "bool reset_delay, bool count, int keep, int surrogate, float p0, float p1, int needs) -> Tensor[]");
  m.def(
      "lif_step_forward(Tensor x, Tensor? mem0, Tensor beta, Tensor threshold, Tensor graded, int reset, "
      "bool reset_delay) -> (Tensor spk, Tensor mem)");
  m.def(
      "lif_step_backward(Tensor? grad_spk, Tensor? grad_mem, Tensor x, Tensor? mem0, Tensor beta, "
      "Tensor threshold, Tensor graded, int reset, bool reset_delay, int surrogate, float p0, float p1, int needs) "
      "-> Tensor[]");
  m.def("set_clamp_closed(bool closed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("set_clamp_closed", TORCH_BOX(&set_clamp_closed));
}

#if !defined(SNN_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward<CpuBackend>));
  m.impl("lif_backward", TORCH_BOX(&lif_backward<CpuBackend>));
  m.impl("lif_step_forward", TORCH_BOX(&lif_step_forward<CpuBackend>));
  m.impl("lif_step_backward", TORCH_BOX(&lif_step_backward<CpuBackend>));
}
#endif

#if defined(SNN_CUDA)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, SNN_CUDA_KEY, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward<CudaBackend>));
  m.impl("lif_backward", TORCH_BOX(&lif_backward<CudaBackend>));
  m.impl("lif_step_forward", TORCH_BOX(&lif_step_forward<CudaBackend>));
  m.impl("lif_step_backward", TORCH_BOX(&lif_step_backward<CudaBackend>));
}
#endif

}  // namespace snnfast
