// The ops of batch normalisation in training and the neuron behind it, on the CPU, and of a pooling behind both.
// snnfast/_unroll/normed.py decides when they are called, and has their definition.
//
// The normalised currents are made row by row, where the kernels of the neuron read them, and are never in memory. Nor
// are spikes that are pooled: each strip of an image, as high as its windows, goes through all steps by itself.
#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../../neurons/ifnode.h"
#include "../../neurons/leaky.h"
#include "../../op/norm_steps.h"
#include "../../op/tensors.h"
#include "../memory/scratch.h"
#include "strips.h"
#include "through.h"

namespace snnfast {
namespace {

using cpu::Channels;
using cpu::NormedGradients;
using cpu::Strips;

constexpr int64_t kChunk = 1024;      // neurons that go back through all steps together
constexpr int64_t kMostParts = 64;    // of a backward pass; each has sums of its own
constexpr int64_t kPartSamples = 64;  // the least of a channel that a part has

// How x [T, B, C, *] lies in memory.
struct Steps : NormSteps<CpuBackend> {
  using NormSteps::NormSteps;
  Channels channels() const { return {C, channels_last ? 1 : S}; }
};

// Returns the scale, bias, mean and 1 / sqrt(variance + eps) of the channels at each step [T, C, 4], and their
// variance [T, C]; both with one row over time. PyTorch's calls update the running averages, which round at each step.
std::tuple<Tensor, Tensor> statistics(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      bool over_time, const MaybeTensor& running_mean,
                                      const MaybeTensor& running_variance, const MaybeTensor& tracked, double) {
  STD_TORCH_CHECK(!running_mean.has_value() && !running_variance.has_value() && !tracked.has_value(),
                  "running_mean, running_variance, tracked: only on CUDA");
  const Steps steps(x);
  OpTensors<CpuBackend> tensors(x, steps.layout, x.scalar_type());
  cpu::BatchNormForward p{};
  p.dtype = dtype_of(x, "x");
  p.T = over_time ? 1 : steps.layout.T;
  p.B = over_time ? steps.B * steps.layout.T : steps.B;
  p.C = steps.C, p.S = steps.S, p.channels_last = steps.channels_last, p.eps = eps;
  p.x = tensors.read(x, "x", x.scalar_type(), steps.layout.T);
  if (weight.has_value()) p.weight = steps.read(*weight, "weight", x, p.C);
  if (bias.has_value()) p.bias = steps.read(*bias, "bias", x, p.C);
  const Tensor numbers = steps.make(x, {p.T, p.C, kNormNumbers}, ScalarType::Float);
  const Tensor variance = steps.make(x, {p.T, p.C}, ScalarType::Float);
  p.numbers = numbers.mutable_data_ptr();
  p.variance = variance.mutable_data_ptr();
  cpu::run(cpu::batch_norm().forward[static_cast<int>(p.dtype)], p);
  return {numbers, variance};
}

// What forward and backward have in common.
template <typename Neuron>
struct Call {
  Steps steps;
  OpTensors<CpuBackend> tensors;
  int64_t rows;  // of the numbers: a step each, or one
  cpu::NormedInput input;

  Call(const Tensor& x, const Tensor& of_channels)
      : steps(x),
        tensors(x, steps.layout, x.scalar_type()),
        rows(of_channels.dim() == 3 && of_channels.size(0) == 1 ? 1 : steps.layout.T),
        input(steps.channels(), rows, steps.read(of_channels, "numbers", x, rows * steps.C * kNormNumbers)) {}

  void describe(Problem<Neuron>& p, const Tensor& x, const MaybeTensor& state, const std::vector<Tensor>& parameters,
                int64_t reset) {
    static_assert(Neuron::kStates == 1);
    p.dtype = dtype_of(x, "x");
    STD_TORCH_CHECK(reset >= 0 && reset <= static_cast<int64_t>(Reset::kNone), "reset: unknown");
    p.rule = {static_cast<Reset>(reset), true};
    p.T = steps.layout.T, p.N = steps.layout.N;
    p.x = tensors.read(x, "x", x.scalar_type(), p.T);
    p.initial[0] = tensors.read_state(state, Neuron::kStateNames[0], 0, p.initial_repeats);
    STD_TORCH_CHECK(parameters.size() == Neuron::kParameters, "parameters: not those of ", Neuron::kName);
    for (size_t k = 0; k < parameters.size(); ++k) {
      p.parameters[k] = tensors.parameter(parameters[k], Neuron::kParameterNames[k]);
    }
  }
};

// The shape and the strides of what is pooled: [T, B, C, Y, X] in the order of x.
std::array<Shape, 2> of_pooled(const Tensor& x, const Steps& steps, const Strips& strips) {
  const int64_t B = steps.B, C = steps.C, Y = strips.Y, X = strips.image.X, of_image = C * Y * X;
  const std::vector<int64_t> sizes{x.size(0), B, C, Y, X};
  if (steps.channels_last) return {Shape(sizes), Shape(std::vector<int64_t>{B * of_image, of_image, 1, X * C, C})};
  return {Shape(sizes), contiguous_strides(Shape(sizes))};
}

void check_pooled(const Tensor& t, const char* name, ScalarType type, const std::array<Shape, 2>& wanted) {
  const auto& [sizes, strides] = wanted;
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == type && t.dim() == 5, name, ": expected what is pooled, on the CPU");
  for (int d = 0; d < 5; ++d) {
    STD_TORCH_CHECK(t.size(d) == sizes[d] && (sizes[d] <= 1 || t.stride(d) == strides[d]), name, ": wrong shape");
  }
}

// Returns the spikes, or those that are pooled and the place of each maximum; if `last` is set the state after the last
// step; and if `save` is set, and there are so many steps, the states before every kCheckpoint-th step.
template <typename Neuron>
std::vector<Tensor> forward(const Tensor& x, const Tensor& numbers, const MaybeTensor& state,
                            const std::vector<Tensor>& parameters, int64_t reset, const std::vector<int64_t>& windows,
                            bool last, bool save) {
  Call<Neuron> call(x, numbers);
  OpTensors<CpuBackend>& tensors = call.tensors;
  Forward<Neuron> p{};
  call.describe(p, x, state, parameters, reset);
  std::optional<Strips> strips;
  if (windows.empty()) {
    p.spk = tensors.make(x.scalar_type(), p.T);
    p.spk_stride = p.N;
  } else {
    const auto [sizes, strides] = of_pooled(x, call.steps, strips.emplace(x, call.steps, windows));
    tensors.outputs.push_back(CpuBackend::empty(x, sizes, strides, ScalarType::Float));
    if (!strips->mean) tensors.outputs.push_back(CpuBackend::empty(x, sizes, strides, ScalarType::Byte));
  }
  if (last) p.last[0] = tensors.make(tensors.opmath, kNoRows);
  const int64_t saved = saved_rows(Saved::kCheckpoints, p.T);
  if (save && saved > 0) {
    p.saved = Saved::kCheckpoints;
    p.rows = tensors.make(tensors.opmath, saved);
  }
  if (!strips.has_value()) {
    cpu::forward(p, &call.input.norm);
    return tensors.outputs;
  }
  float* const pooled = static_cast<float*>(tensors.outputs[0].mutable_data_ptr());
  uint8_t* const places = strips->mean ? nullptr : static_cast<uint8_t*>(tensors.outputs[1].mutable_data_ptr());
  const auto kernel = cpu::current_kernels<Neuron>().forward[static_cast<int>(p.dtype)];
  const int64_t work = p.T * strips->most;
  cpu::in_parallel(0, strips->number, cpu::kNormGrain / work + 1, [&](int64_t first, int64_t last) {
    cpu::pool::Scratch<float> spk(work);
    Forward<Neuron> of_strip = p;
    of_strip.spk = spk.data();
    of_strip.spk_stride = strips->most;
    for (int64_t i = first; i < last; ++i) {
      of_strip.spk_first = strips->first(i);
      kernel(of_strip, &call.input.norm, strips->first(i), strips->last(i), false);
      strips->pool(i, spk.data(), pooled, places);
    }
  });
  return tensors.outputs;
}

// How the neurons of a step are shared out to those who sum: into parts of some chunks. All of it depends on nothing
// but the shape and the memory layout.
struct Chunks {
  int64_t size, number, parts;

  // `strips`: so many have chunks of their own, and are what is shared out.
  Chunks(const Steps& steps, int64_t strips) : size(kChunk) {
    const int64_t N = steps.layout.N, C = steps.C;
    if (steps.channels_last && C < kChunk) {  // whole pixels, and whole cache lines if these are not too many
      const int64_t whole = cpu::kUnit / std::gcd(C, cpu::kUnit);
      const int64_t pixels = kChunk / C;
      size = C * (pixels >= whole ? pixels / whole * whole : pixels);
    }
    number = strips > 0 ? strips : (N + size - 1) / size;
    parts = std::clamp<int64_t>(steps.B * steps.S / kPartSamples, 1, std::min(number, kMostParts));
  }
};

// Returns the gradients of the bias and of the weight [2, T, C] in float64, with one row over time; what that of the
// first parameter is the sum of, in float64, if it is needed; that of x if it or that of the state is needed; and that
// of the state if it is. A parameter that is clamped has a gradient at 0 and 1, too.
// `grad`: that of the spikes, or [T, B, C, Y, X] of what was pooled, beside the places of the maxima.
template <typename Neuron>
std::vector<Tensor> backward(const Tensor& grad, const MaybeTensor& grad_last, const Tensor& x,
                             const MaybeTensor& checkpoints, const MaybeTensor& places, const Tensor& numbers,
                             const MaybeTensor& state, const std::vector<Tensor>& parameters, int64_t reset,
                             const std::vector<int64_t>& windows, int64_t surrogate, double p0, double p1,
                             bool needs_first, bool needs_x, bool needs_state) {
  Call<Neuron> call(x, numbers);
  OpTensors<CpuBackend>& tensors = call.tensors;
  Backward<Neuron> p{};
  call.describe(p, x, state, parameters, reset);
  STD_TORCH_CHECK(surrogate >= 0 && surrogate < kSurrogateKinds, "surrogate: unknown");
  p.clamp_closed = true;
  p.saved = Saved::kCheckpoints;
  const int64_t saved = saved_rows(Saved::kCheckpoints, p.T);
  STD_TORCH_CHECK(checkpoints.has_value() == (saved > 0), "rows: expected with more than ", kCheckpoint, " steps");
  if (saved > 0) p.rows = tensors.read(checkpoints, "rows", tensors.opmath, saved);
  p.surrogate = static_cast<SurrogateKind>(surrogate);
  p.coefficients = visit_surrogate(p.surrogate, [&](auto kind) { return decltype(kind)::coefficients(p0, p1); });
  std::optional<Strips> strips;
  const float* given = nullptr;
  const uint8_t* at_places = nullptr;
  if (windows.empty()) {
    p.grad_spk = tensors.read_steps(grad, "grad", x.scalar_type(), false, p.grad_spk_stride);
  } else {
    const auto pooled = of_pooled(x, call.steps, strips.emplace(x, call.steps, windows));
    STD_TORCH_CHECK(places.has_value() != strips->mean, "places: expected with maxima");
    check_pooled(grad, "grad", ScalarType::Float, pooled);
    if (!strips->mean) check_pooled(*places, "places", ScalarType::Byte, pooled);
    given = static_cast<const float*>(grad.const_data_ptr());
    if (!strips->mean) at_places = static_cast<const uint8_t*>(places->const_data_ptr());
  }
  p.grad_last[0] = tensors.read(grad_last, "gradient of a state", tensors.opmath, kNoRows);
  const int64_t C = call.steps.C, rows = call.rows;
  tensors.outputs.push_back(call.steps.make(x, {2, C}, ScalarType::Float));
  cpu::pool::Scratch<double> of_rows(2 * rows * C);  // [2, rows, C]: the gradients of the bias and of the weight
  const Chunks chunks(call.steps, strips.has_value() ? strips->number : 0);
  std::optional<cpu::pool::Scratch<float>> of_neurons;
  double* of_first = nullptr;  // of each part
  if (needs_first) {
    tensors.outputs.push_back(call.steps.make(x, {chunks.parts}, ScalarType::Double));
    of_first = static_cast<double*>(tensors.outputs[1].mutable_data_ptr());
    p.grad_parameters[0] = of_neurons.emplace(p.N).data();
  }
  if (needs_x || needs_state) p.grad_x = tensors.make(x.scalar_type(), p.T);
  if (needs_state) p.grad_initial[0] = tensors.make(tensors.opmath, kNoRows);

  const int64_t each = call.input.sums();
  cpu::pool::Scratch<double> partial(chunks.parts * each);
  const auto kernel = cpu::current_kernels<Neuron>().backward[static_cast<int>(p.dtype)];
  const bool stream = cpu::streams(p.dtype, p.T, p.N, 3, {p.grad_x});
  cpu::in_parallel(0, chunks.parts, cpu::kNormGrain / (p.T * p.N / chunks.parts) + 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      double* const own = partial.data() + part * each;
      std::fill(own, own + each, 0.0);
      cpu::Normalised norm = call.input.norm;
      norm.chunk = chunks.size;
      norm.sums = own;
      const int64_t begin = chunks.number * part / chunks.parts, end = chunks.number * (part + 1) / chunks.parts;
      double total = 0;
      const auto run = [&](const Backward<Neuron>& of_some, int64_t from, int64_t to) {
        kernel(of_some, &norm, from, to, stream);
        if (of_first != nullptr) total = std::accumulate(of_neurons->data() + from, of_neurons->data() + to, total);
        if (of_first != nullptr) of_first[part] = total;
      };
      if (!strips.has_value()) {
        run(p, begin * chunks.size, std::min(end * chunks.size, p.N));
        continue;
      }
      cpu::pool::Scratch<float> spread(p.T * strips->most);
      Backward<Neuron> of_strip = p;
      of_strip.grad_spk = spread.data();
      of_strip.grad_spk_stride = strips->most;
      for (int64_t i = begin; i < end; ++i) {
        strips->spread(i, given, at_places, spread.data());
        of_strip.grad_spk_first = strips->first(i);
        run(of_strip, strips->first(i), strips->last(i));
      }
    }
  });

  call.input.go_through(partial.data(), chunks.parts, of_rows.data(), {p.dtype, p.T, p.N, {}, p.x, p.grad_x}, 1);
  float* const sums = static_cast<float*>(tensors.outputs[0].mutable_data_ptr());
  for (int64_t i = 0; i < 2 * C; ++i) {
    const double* const column = of_rows.data() + i / C * rows * C + i % C;
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += column[row * C];
    sums[i] = static_cast<float>(sum);
  }
  return tensors.outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("norm_statistics", SNN_BOX(statistics));
  m.impl("leaky_norm_forward", SNN_BOX(forward<Leaky>));
  m.impl("leaky_norm_backward", SNN_BOX(backward<Leaky>));
  m.impl("ifnode_norm_forward", SNN_BOX(forward<IFNode>));
  m.impl("ifnode_norm_backward", SNN_BOX(backward<IFNode>));
}

}  // namespace snnfast
