// The ops of batch normalisation in training and the neuron behind it: their schemas, and on CUDA their checks and
// outputs. Those of the CPU are in ../cpu/norm/neurons.cpp.
// snnfast/_unroll/normed.py decides when they are called, and has their definition.
#include "norm.h"

#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../neurons/ifnode.h"
#include "../neurons/leaky.h"
#include "norm_steps.h"
#include "tensors.h"

namespace snnfast {

#if defined(SNN_CUDA)
namespace {

using Steps = NormSteps<CudaBackend>;

// Describes the steps to the kernels.
Norm described(const Steps& steps, bool over_time) {
  STD_TORCH_CHECK(steps.layout.T <= kMostNormSteps && steps.layout.N < std::numeric_limits<int>::max(), "x: too large");
  Norm norm{};
  norm.B = steps.B, norm.C = steps.C, norm.S = steps.S;
  norm.channels_last = steps.channels_last, norm.over_time = over_time;
  return norm;
}

// Shares out the neurons of a call that has these rows; returns how many doubles its sums take.
template <typename P>
int64_t plan(P& p, std::initializer_list<const void*> rows) {
  const bool vectors = p.norm.fits_vectors() && cuda::norm_wants_vectors(p.N, rows);
  return p.norm.plan(p.T, vectors, cuda::norm_blocks());
}

// Returns what the statistics of x update: averages of the channels, and the number of steps.
RunningAverages running_averages(const Steps& steps, const Tensor& x, const MaybeTensor& mean,
                                 const MaybeTensor& variance, const MaybeTensor& tracked, double momentum) {
  STD_TORCH_CHECK(mean.has_value() == variance.has_value(), "running_variance: expected beside running_mean");
  RunningAverages found{nullptr, nullptr, nullptr, momentum};
  if (mean.has_value()) {
    found.mean = const_cast<float*>(steps.read(*mean, "running_mean", x, steps.C));
    found.variance = const_cast<float*>(steps.read(*variance, "running_variance", x, steps.C));
  }
  if (tracked.has_value()) {
    const bool fits = tracked->device() == x.device() && tracked->scalar_type() == ScalarType::Long;
    STD_TORCH_CHECK(fits && tracked->numel() == 1, "tracked: expected one number in int64 on the device of x");
    found.tracked = static_cast<int64_t*>(tracked->mutable_data_ptr());
  }
  return found;
}

template <typename Launch>
void run(const Tensor& x, const char* name, Launch&& launch) {
  const int error = CudaBackend::on_stream_of(x, launch);
  STD_TORCH_CHECK(error == 0, "snnfast: the CUDA kernel ", name, " failed: ", cuda::error_string(error));
}

// Returns the scale, shift, mean and 1 / sqrt(variance + eps) of the channels at each step [T, C, 4], and their
// variance [T, C]; both with one row over time. The running averages and the number of steps change in place, if they
// are given.
std::tuple<Tensor, Tensor> statistics(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      bool over_time, const MaybeTensor& running_mean,
                                      const MaybeTensor& running_variance, const MaybeTensor& tracked,
                                      double momentum) {
  const Steps steps(x);
  OpTensors<CudaBackend> tensors(x, steps.layout, x.scalar_type());
  Statistics p{};
  p.dtype = dtype_of(x, "x");
  p.norm = described(steps, over_time);
  p.T = steps.layout.T, p.N = steps.layout.N, p.eps = eps;
  p.x = tensors.read(x, "x", x.scalar_type(), p.T);
  if (weight.has_value()) p.weight = steps.read(*weight, "weight", x, p.norm.C);
  if (bias.has_value()) p.bias = steps.read(*bias, "bias", x, p.norm.C);
  const int64_t rows = p.norm.rows_of(p.T);
  const Tensor numbers = steps.make(x, {rows, p.norm.C, kNormNumbers}, ScalarType::Float);
  const Tensor variance = steps.make(x, {rows, p.norm.C}, ScalarType::Float);
  p.numbers = static_cast<float*>(numbers.mutable_data_ptr());
  p.variance = static_cast<float*>(variance.mutable_data_ptr());
  p.running = running_averages(steps, x, running_mean, running_variance, tracked, momentum);
  p.norm.partial_sums = tensors.scratch(ScalarType::Double, plan(p, {p.x}));
  run(x, "norm_statistics", [&](void* stream) { return cuda::norm_statistics(p, stream); });
  return {numbers, variance};
}

// What forward and backward have in common.
template <typename Neuron, typename P>
void describe(P& p, OpTensors<CudaBackend>& tensors, const Steps& steps, const Tensor& x, const Tensor& numbers,
              const MaybeTensor& state, const std::vector<Tensor>& parameters, int64_t reset) {
  static_assert(Neuron::kStates == 1);
  p.dtype = dtype_of(x, "x");
  p.norm = described(steps, numbers.dim() == 3 && numbers.size(0) == 1);
  p.rule = {static_cast<Reset>(reset), true};
  STD_TORCH_CHECK(norm_resets<Neuron>(p.rule.reset), "reset: ", Neuron::kName, " has no kernel behind a normalisation");
  p.T = steps.layout.T, p.N = steps.layout.N;
  p.x = tensors.read(x, "x", x.scalar_type(), p.T);
  p.channels = steps.read(numbers, "numbers", x, p.norm.rows_of(p.T) * p.norm.C * kNormNumbers);
  p.initial[0] = tensors.read_state(state, Neuron::kStateNames[0], 0, p.initial_repeats);
  STD_TORCH_CHECK(parameters.size() == Neuron::kParameters, "parameters: not those of ", Neuron::kName);
  for (size_t k = 0; k < parameters.size(); ++k) {
    p.parameters[k] = tensors.parameter(parameters[k], Neuron::kParameterNames[k]);
    // Of a node, the kernels load its rate alone, and do not divide by its tau.
    const bool known = !ResetsAtOnce<Neuron> || k == 0 || p.parameters[k].data == nullptr;
    STD_TORCH_CHECK(p.parameters[k].uniform() && known, Neuron::kParameterNames[k], ": expected one number",
                    known ? "" : " on the CPU");
  }
  if constexpr (ResetsAtOnce<Neuron>) STD_TORCH_CHECK(p.parameters[1].value == 1, "tau: expected 1");
}

// Returns the spikes, and if `last` is set the state after the last step. All steps are in registers, so that nothing
// else is saved.
template <typename Neuron>
std::vector<Tensor> forward(const Tensor& x, const Tensor& numbers, const MaybeTensor& state,
                            const std::vector<Tensor>& parameters, int64_t reset, const std::vector<int64_t>& windows,
                            bool last, bool) {
  STD_TORCH_CHECK(windows.empty(), "windows: only on the CPU");
  const Steps steps(x);
  OpTensors<CudaBackend> tensors(x, steps.layout, x.scalar_type());
  ForwardNorm<Neuron> p{};
  describe<Neuron>(p, tensors, steps, x, numbers, state, parameters, reset);
  p.spk = tensors.make(x.scalar_type(), p.T);
  if (last) p.last[0] = tensors.make(tensors.opmath, kNoRows);
  plan(p, {p.x, p.spk, p.initial[0], p.last[0]});
  run(x, "norm_forward", [&](void* stream) { return cuda::norm_forward(p, stream); });
  return tensors.outputs;
}

// Returns what the ops of the CPU return. The gradient of the first parameter is the sum of shares of the channels;
// that of Leaky has none.
template <typename Neuron>
std::vector<Tensor> backward(const Tensor& grad, const MaybeTensor& grad_last, const Tensor& x, const MaybeTensor& rows,
                             const MaybeTensor& places, const Tensor& numbers, const MaybeTensor& state,
                             const std::vector<Tensor>& parameters, int64_t reset, const std::vector<int64_t>& windows,
                             int64_t surrogate, double p0, double p1, bool needs_first, bool needs_x,
                             bool needs_state) {
  STD_TORCH_CHECK(!rows.has_value() && !places.has_value() && windows.empty(),
                  "rows, places, windows: only on the CPU");
  const Steps steps(x);
  OpTensors<CudaBackend> tensors(x, steps.layout, x.scalar_type());
  BackwardNorm<Neuron> p{};
  describe<Neuron>(p, tensors, steps, x, numbers, state, parameters, reset);
  p.surrogate = static_cast<SurrogateKind>(surrogate);
  p.coefficients = visit_surrogate(p.surrogate, [&](auto kind) { return decltype(kind)::coefficients(p0, p1); });
  STD_TORCH_CHECK(
      (p.surrogate != SurrogateKind::kSigmoid || ResetsAtOnce<Neuron>) && Slope::fits(p.surrogate, p.coefficients),
      "surrogate: expected one that the kernels of ", Neuron::kName, " have, with an ordinary slope");
  STD_TORCH_CHECK(!needs_first || ResetsAtOnce<Neuron>, Neuron::kParameterNames[0], ": has no gradient here");
  p.grad_spk = tensors.read_steps(grad, "grad", x.scalar_type(), false, p.grad_spk_stride);
  p.grad_last[0] = tensors.read(grad_last, "gradient of a state", tensors.opmath, kNoRows);
  const int64_t lines = p.norm.rows_of(p.T);
  tensors.outputs.push_back(steps.make(x, {2, p.norm.C}, ScalarType::Float));
  p.sums = static_cast<float*>(tensors.outputs[0].mutable_data_ptr());
  if (needs_first) {
    tensors.outputs.push_back(steps.make(x, {p.norm.C}, ScalarType::Double));
    p.of_first = static_cast<double*>(tensors.outputs[1].mutable_data_ptr());
  }
  if (needs_x || needs_state) p.grad_x = tensors.make(x.scalar_type(), p.T);
  if (needs_state) p.grad_initial[0] = tensors.make(tensors.opmath, kNoRows);
  p.through = static_cast<float*>(tensors.scratch(ScalarType::Float, lines * p.norm.C * 2));
  p.norm.partial_sums = tensors.scratch(
      ScalarType::Double, plan(p, {p.x, p.grad_spk, p.grad_x, p.initial[0], p.grad_last[0], p.grad_initial[0]}));
  run(x, "norm_backward", [&](void* stream) { return cuda::norm_backward(p, stream); });
  return tensors.outputs;
}

}  // namespace
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def(
      "norm_statistics(Tensor x, Tensor? weight, Tensor? bias, float eps, bool over_time, "
      "Tensor(a!)? running_mean=None, Tensor(b!)? running_variance=None, Tensor(c!)? tracked=None, "
      "float momentum=0) -> (Tensor, Tensor)");
  for (const std::string neuron : {Leaky::kName, IFNode::kName}) {
    const std::string inputs = "Tensor numbers, Tensor? state, Tensor[] parameters, int reset, int[] windows, ";
    m.def((neuron + "_norm_forward(Tensor x, " + inputs + "bool last, bool save) -> Tensor[]").c_str());
    m.def((neuron + "_norm_backward(Tensor grad, Tensor? grad_last, Tensor x, Tensor? rows, Tensor? places, " + inputs +
           "int surrogate, float p0, float p1, bool needs_first, bool needs_x, bool needs_state) -> Tensor[]")
              .c_str());
  }
}

#if defined(SNN_CUDA)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, SNN_CUDA_KEY, m) {
  m.impl("norm_statistics", SNN_BOX(statistics));
  m.impl("leaky_norm_forward", SNN_BOX(forward<Leaky>));
  m.impl("leaky_norm_backward", SNN_BOX(backward<Leaky>));
  m.impl("ifnode_norm_forward", SNN_BOX(forward<IFNode>));
  m.impl("ifnode_norm_backward", SNN_BOX(backward<IFNode>));
}
#endif

}  // namespace snnfast
