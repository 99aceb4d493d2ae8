// The ops of a convolution of spikes on the CPU. snnfast/_images/conv2d.py decides when they are called.
//
// No result depends on the number of threads. Each image belongs to one thread. The gradient of the weights is summed
// over pieces of the batch, in order, and their number depends on the shapes alone.
#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../../op/backend.h"
#include "../images/images.h"
#include "../parallel.h"
#include "convolution.h"

namespace snnfast {
namespace {

using cpu::Convolution;
using cpu::Event;
using cpu::Reach;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMostPieces = 32;
constexpr int64_t kPieceBytes = int64_t{64} << 20;  // of all pieces together, unless there is only one
constexpr int64_t kCountGrain = 1 << 16;

const cpu::ConvolutionKernels& kernels(){SNN_RETURN_OF_CURRENT_ISA(convolution_kernels())}

std::vector<Reach> reach_of(int64_t size, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding) {
  std::vector<Reach> made;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t last = std::min((i + padding) / stride, outputs - 1);  // the last output that begins before i
    const int64_t tap = i + padding - last * stride;
    const int64_t n = tap < kernel ? std::min((kernel - 1 - tap) / stride, last) + 1 : 0;
    made.push_back({static_cast<int>(tap), static_cast<int>(last), static_cast<int>(n)});
  }
  return made;
}

// The checked sizes of a convolution. It owns the memory that they point to.
struct Described {
  Convolution p{};
  std::vector<Reach> y, x;

  Described(const Tensor& input, int64_t O, const int64_t (&kernel)[2], const int64_t (&stride)[2],
            const int64_t (&padding)[2]) {
    const auto sizes = input.sizes();
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
    int64_t output[2];
    for (int d = 0; d < 2; ++d) {
      const int64_t size = sizes[2 + d];
      STD_TORCH_CHECK(kernel[d] >= 1 && stride[d] >= 1 && padding[d] >= 0, "kernel, stride, padding: too small");
      STD_TORCH_CHECK(std::max({kernel[d], stride[d], padding[d], size}) < kMost, "kernel, stride, padding: too large");
      STD_TORCH_CHECK(size + 2 * padding[d] >= kernel[d], "kernel: larger than the image");
      output[d] = (size + 2 * padding[d] - kernel[d]) / stride[d] + 1;
    }
    STD_TORCH_CHECK(O >= 1 && sizes[1] >= 1 && O < kMost && sizes[1] < kMost, "channels: expected 1 or more");
    y = reach_of(sizes[2], output[0], kernel[0], stride[0], padding[0]);
    x = reach_of(sizes[3], output[1], kernel[1], stride[1], padding[1]);
    auto small = [](int64_t value) { return static_cast<int>(value); };
    p.N = sizes[0], p.C = small(sizes[1]), p.H = small(sizes[2]), p.W = small(sizes[3]);
    p.O = small(O), p.Y = small(output[0]), p.X = small(output[1]);
    p.kernel_y = small(kernel[0]), p.kernel_x = small(kernel[1]);
    p.stride_y = small(stride[0]), p.stride_x = small(stride[1]);
    p.reach_y = y.data(), p.reach_x = x.data();
    p.lanes = O > 32 ? cpu::kMostLanes : O > 16 ? 32 : 16;
    p.blocks = (p.O + p.lanes - 1) / p.lanes;
    // No size in bytes may overflow.
    elements(Shape(std::vector<int64_t>{p.N, p.O, p.Y, p.X}));
    elements(Shape(std::vector<int64_t>{int64_t{p.blocks} * p.lanes * 4, p.C, p.kernel_y, p.kernel_x}));
  }

  int lanes_of(int block) const { return std::min(p.lanes, p.O - block * p.lanes); }

  // The events of an image, in the order of its memory.
  const Event* find(const float* image, std::vector<Event>& events) const {
    events.resize(static_cast<size_t>(p.C) * p.H * p.W);
    Event* next = events.data();
    for (int i = 0; i < p.H; ++i) {
      for (int j = 0; j < p.W; ++j) {
        for (int c = 0; c < p.C; ++c) {
          const float value = *image++;
          *next = {c, i, j, value};
          next += value != 0;  // a branch would be mispredicted at every event
        }
      }
    }
    return next;
  }
};

int64_t count_events(const Tensor& x) {
  check_image(x, "x");
  const float* const data = static_cast<const float*>(x.const_data_ptr());
  std::atomic<int64_t> total = 0;
  cpu::in_parallel(0, x.numel(), 4 * kCountGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last;) {
      int32_t count = 0;  // narrow numbers are added up faster, and a part's count fits
      for (const int64_t end = std::min(i + kCountGrain, last); i < end; ++i) count += data[i] != 0;
      total += count;
    }
  });
  return total;
}

Tensor event_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_y,
                    int64_t stride_x, int64_t padding_y, int64_t padding_x) {
  check_image(x, "x");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float, "weight: expected float32 on the CPU");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1), "weight: expected [O, C, kH, kW]");
  const Described d(x, weight.size(0), {weight.size(2), weight.size(3)}, {stride_y, stride_x}, {padding_y, padding_x});
  const Convolution& p = d.p;
  const Tensor w = torch::stable::contiguous(weight);
  std::vector<float> packed(static_cast<size_t>(p.weights() * p.blocks)),
      biases(static_cast<size_t>(p.blocks) * p.lanes);
  const int64_t taps = int64_t{p.C} * p.kernel_y * p.kernel_x;
  const float* from = static_cast<const float*>(w.const_data_ptr());
  for (int o = 0; o < p.O; ++o) {
    float* const to = packed.data() + o / p.lanes * p.weights() + o % p.lanes;
    for (int64_t k = 0; k < taps; ++k) to[k * p.lanes] = *from++;
  }
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == ScalarType::Float, "bias: expected float32 on the CPU");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.O, "bias: expected [O]");
    const Tensor dense = torch::stable::contiguous(*bias);
    std::copy_n(static_cast<const float*>(dense.const_data_ptr()), p.O, biases.begin());
  }
  const Tensor y = new_image(x, p.N, p.O, p.Y, p.X);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const outputs = static_cast<float*>(y.mutable_data_ptr());
  const int64_t image = int64_t{p.C} * p.H * p.W, pixels = int64_t{p.Y} * p.X;
  cpu::in_parallel(0, p.N, 1, [&](int64_t first, int64_t last) {
    std::vector<Event> events;
    const bool whole = p.O == p.lanes;  // the output itself is the tile of the only block
    std::vector<float> scratch(whole ? 0 : static_cast<size_t>(pixels) * p.lanes);
    for (int64_t n = first; n < last; ++n) {
      const Event* const end = d.find(images + n * image, events);
      for (int b = 0; b < p.blocks; ++b) {
        float* const to = outputs + n * pixels * p.O + int64_t{b} * p.lanes;
        float* const tile = whole ? to : scratch.data();
        for (int64_t i = 0; i < pixels; ++i) {
          std::copy_n(biases.data() + int64_t{b} * p.lanes, p.lanes, tile + i * p.lanes);
        }
        kernels().forward(p, events.data(), end, packed.data() + b * p.weights(), tile);
        for (int64_t i = 0; i < pixels && !whole; ++i) std::copy_n(tile + i * p.lanes, d.lanes_of(b), to + i * p.O);
      }
    }
  });
  return y;
}

// Returns the gradient of the weights, from that of the output.
Tensor event_conv2d_weight(const Tensor& x, const Tensor& grad, int64_t kernel_y, int64_t kernel_x, int64_t stride_y,
                           int64_t stride_x, int64_t padding_y, int64_t padding_x) {
  check_image(x, "x");
  check_image(grad, "grad");
  const Described d(x, grad.size(1), {kernel_y, kernel_x}, {stride_y, stride_x}, {padding_y, padding_x});
  const Convolution& p = d.p;
  STD_TORCH_CHECK(grad.size(0) == p.N && grad.size(2) == p.Y && grad.size(3) == p.X, "grad: wrong shape");
  const int64_t bytes = p.weights() * static_cast<int64_t>(sizeof(float));
  const int64_t pieces = std::clamp(kPieceBytes / (bytes * p.blocks), int64_t{1}, kMostPieces);
  const int64_t each = (p.N + pieces - 1) / pieces;
  std::vector<float> sums(static_cast<size_t>(pieces * p.blocks * p.weights()));
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  const float* const grads = static_cast<const float*>(grad.const_data_ptr());
  const int64_t image = int64_t{p.C} * p.H * p.W, output = int64_t{p.Y} * p.X * p.O;
  cpu::in_parallel(0, pieces * p.blocks, 1, [&](int64_t first, int64_t last) {
    std::vector<Event> events;
    std::vector<float> padded(p.O % p.lanes != 0 ? static_cast<size_t>(output) + p.lanes : 0);
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t piece = unit / p.blocks, b = unit % p.blocks;
      for (int64_t n = piece * each; n < std::min((piece + 1) * each, p.N); ++n) {
        const float* from = grads + n * output;
        if (!padded.empty()) from = (std::copy_n(from, output, padded.data()), padded.data());  // a block reads further
        // Before the call: it resizes the events, and C++ leaves open which argument is evaluated first.
        const Event* const end = d.find(images + n * image, events);
        kernels().backward(p, events.data(), end, from + b * p.lanes, sums.data() + unit * p.weights());
      }
    }
  });
  const Shape shape(std::vector<int64_t>{p.O, p.C, p.kernel_y, p.kernel_x});
  const int64_t taps = int64_t{p.C} * p.kernel_y * p.kernel_x;
  const Tensor made = CpuBackend::empty(
      x, shape, Shape(std::vector<int64_t>{taps, int64_t{p.kernel_y} * p.kernel_x, p.kernel_x, 1}), ScalarType::Float);
  float* const to = static_cast<float*>(made.mutable_data_ptr());
  cpu::in_parallel(0, p.O, 1, [&](int64_t first, int64_t last) {
    for (int64_t o = first; o < last; ++o) {
      for (int64_t k = 0; k < taps; ++k) {
        float sum = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
          sum += sums[static_cast<size_t>((piece * p.blocks + o / p.lanes) * p.weights() + k * p.lanes + o % p.lanes)];
        }
        to[o * taps + k] = sum;
      }
    }
  });
  return made;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("count_events(Tensor x) -> int");
  m.def(
      "event_conv2d(Tensor x, Tensor weight, Tensor? bias, int stride_y, int stride_x, int padding_y, int padding_x)"
      " -> Tensor");
  m.def(
      "event_conv2d_weight(Tensor x, Tensor grad, int kernel_y, int kernel_x, int stride_y, int stride_x,"
      " int padding_y, int padding_x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("count_events", SNN_BOX(count_events));
  m.impl("event_conv2d", SNN_BOX(event_conv2d));
  m.impl("event_conv2d_weight", SNN_BOX(event_conv2d_weight));
}

}  // namespace snnfast
