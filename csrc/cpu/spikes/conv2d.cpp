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
#include "../memory/scratch.h"
#include "../parallel.h"
#include "convolution.h"

namespace snnfast {
namespace {

using cpu::Convolution;
using cpu::Events;
using cpu::pool::Scratch;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kWeightBytes = 24 << 10;  // of a row of the kernel, which is to stay in the L1 cache
constexpr int64_t kGroupBytes = 128 << 10;  // of the gradients of some images, which are to stay in the L2 cache
constexpr int64_t kListBytes = 1 << 20;     // of the values of some images, if all were events
constexpr int64_t kMostPieces = 32;
constexpr int64_t kPieceBytes = int64_t{64} << 20;  // of all pieces together, unless there is only one
constexpr int64_t kLeastPixels = 512;               // of a piece, so that its sums are few beside what is added
constexpr int64_t kCountGrain = 1 << 16;

const cpu::ConvolutionKernels& kernels(){SNN_RETURN_OF_CURRENT_ISA(convolution_kernels())}

// The checked sizes of a convolution.
Convolution described(const Tensor& input, int64_t O, const int64_t (&kernel)[2], const int64_t (&stride)[2],
                      const int64_t (&padding)[2], bool of_weight) {
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
  STD_TORCH_CHECK(sizes[2] >= 1 && sizes[3] >= 1, "image: expected 1 pixel or more");
  STD_TORCH_CHECK(sizes[2] * sizes[3] < kMost / sizes[1], "image: too large");
  auto small = [](int64_t value) { return static_cast<int>(value); };
  Convolution p{};
  p.N = sizes[0], p.C = small(sizes[1]), p.H = small(sizes[2]), p.W = small(sizes[3]);
  p.O = small(O), p.Y = small(output[0]), p.X = small(output[1]);
  p.kernel_y = small(kernel[0]), p.kernel_x = small(kernel[1]);
  p.stride_y = small(stride[0]), p.stride_x = small(stride[1]);
  p.padding_y = small(padding[0]), p.padding_x = small(padding[1]);
  const int most = of_weight && !p.few_channels() ? cpu::kMostLanesOfTaps : cpu::kMostLanes;
  p.lanes = std::min(p.O > 32 ? cpu::kMostLanes : p.O > 16 ? 32 : 16, most);
  while (p.lanes > 16 && kernel[1] * p.C * p.lanes * static_cast<int64_t>(sizeof(float)) > kWeightBytes) p.lanes /= 2;
  p.blocks = (p.O + p.lanes - 1) / p.lanes;
  // No size in bytes may overflow.
  elements(Shape(std::vector<int64_t>{p.N, p.O, p.Y, p.X}));
  elements(Shape(std::vector<int64_t>{int64_t{p.blocks} * p.lanes * 4, p.C, p.kernel_y, p.kernel_x}));
  return p;
}

int lanes_of(const Convolution& p, int block) { return std::min(p.lanes, p.O - block * p.lanes); }

// The events of some images.
class EventLists {
 public:
  EventLists(const Convolution& p, int64_t images)
      : C_(p.C),
        pixels_(int64_t{p.H} * p.W),
        at_(images * pixels_ * C_ + cpu::kMoreEvents),
        value_(images * pixels_ * C_ + cpu::kMoreEvents),
        pixel_(images * (pixels_ + 1)) {}

  // Lists those of an image. They are there until an image before it is listed.
  Events find(const float* image, int64_t number) {
    int32_t* const at = at_.data() + number * pixels_ * C_;
    float* const value = value_.data() + number * pixels_ * C_;
    int32_t* const pixel = pixel_.data() + number * (pixels_ + 1);
    kernels().find(image, pixels_, C_, at, value, pixel);
    return {at, value, pixel};
  }

 private:
  int C_;
  int64_t pixels_;
  Scratch<int32_t> at_;
  Scratch<float> value_;
  Scratch<int32_t> pixel_;
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
  const Convolution p = described(x, weight.size(0), {weight.size(2), weight.size(3)}, {stride_y, stride_x},
                                  {padding_y, padding_x}, false);
  const Tensor w = torch::stable::contiguous(weight);
  Scratch<float> packed(p.weights() * p.blocks), biases(int64_t{p.blocks} * p.lanes);
  std::fill_n(packed.data(), p.weights() * p.blocks, 0.0f);
  std::fill_n(biases.data(), int64_t{p.blocks} * p.lanes, 0.0f);
  const int64_t taps = int64_t{p.kernel_y} * p.kernel_x;
  const float* from = static_cast<const float*>(w.const_data_ptr());
  for (int o = 0; o < p.O; ++o) {
    float* const to = packed.data() + o / p.lanes * p.weights() + o % p.lanes;
    for (int c = 0; c < p.C; ++c) {
      for (int64_t k = 0; k < taps; ++k) to[(k * p.C + c) * p.lanes] = *from++;
    }
  }
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == ScalarType::Float, "bias: expected float32 on the CPU");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.O, "bias: expected [O]");
    const Tensor dense = torch::stable::contiguous(*bias);
    std::copy_n(static_cast<const float*>(dense.const_data_ptr()), p.O, biases.data());
  }
  const Tensor y = new_image(x, p.N, p.O, p.Y, p.X);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const outputs = static_cast<float*>(y.mutable_data_ptr());
  const int64_t image = int64_t{p.C} * p.H * p.W, pixels = int64_t{p.Y} * p.X;
  cpu::in_parallel(0, p.N, 1, [&](int64_t first, int64_t last) {
    EventLists lists(p, 1);
    Scratch<float> tile(p.O % p.lanes == 0 ? 1 : pixels * p.lanes);
    for (int64_t n = first; n < last; ++n) {
      const Events events = lists.find(images + n * image, 0);
      for (int b = 0; b < p.blocks; ++b) {
        float* const to = outputs + n * pixels * p.O + int64_t{b} * p.lanes;
        const float* const bias_of_block = biases.data() + int64_t{b} * p.lanes;
        const bool whole = lanes_of(p, b) == p.lanes;
        kernels().forward(p, events, packed.data() + b * p.weights(), bias_of_block, whole ? to : tile.data(),
                          whole ? p.O : p.lanes);
        for (int64_t i = 0; i < pixels && !whole; ++i) {
          std::copy_n(tile.data() + i * p.lanes, lanes_of(p, b), to + i * p.O);
        }
      }
    }
  });
  return y;
}

// The first tap by which an event of a row, or of a column, reaches an output, and that output. The next tap is a
// stride further, and its output is the one before.
struct FirstTap {
  int tap, output;
};

FirstTap first_tap(int i, int stride, int padding) { return {(i + padding) % stride, (i + padding) / stride}; }

int taps_from(int tap, int kernel, int stride) { return tap < kernel ? (kernel - 1 - tap) / stride + 1 : 0; }

// The gradients of the outputs of an image with zeros around them, so that all events with the same first tap reach
// equally many.
struct Padded {
  int64_t before_y, before_x, rows, columns;

  explicit Padded(const Convolution& p)
      : before_y((p.kernel_y - 1) / p.stride_y),
        before_x((p.kernel_x - 1) / p.stride_x),
        rows(before_y + std::max(first_tap(p.H - 1, p.stride_y, p.padding_y).output + 1, p.Y)),
        columns(before_x + std::max(first_tap(p.W - 1, p.stride_x, p.padding_x).output + 1, p.X)) {
    STD_TORCH_CHECK(rows * columns <= std::numeric_limits<int32_t>::max() / p.lanes, "image: too large");
  }

  int64_t pixels() const { return rows * columns; }
  int64_t at(int64_t image, int y, int x) const { return (image * rows + before_y + y) * columns + before_x + x; }
};

// The gradient of a block of weights of few channels.
class WeightGradientOfFew {
 public:
  explicit WeightGradientOfFew(const Convolution& p)
      : p_(p), lists_(p, 1), tile_(p.O % p.lanes == 0 ? 1 : int64_t{p.Y} * p.X * p.lanes) {}

  // Adds images first to last - 1.
  void add(const float* images, const float* grads, int64_t first, int64_t last, int block, float* sums) {
    const int64_t pixels = int64_t{p_.Y} * p_.X;
    const int lanes = lanes_of(p_, block);
    for (int64_t n = first; n < last; ++n) {
      const float* const from = grads + n * pixels * p_.O + int64_t{block} * p_.lanes;
      const bool whole = lanes == p_.lanes;  // else a row of the block reads further
      for (int64_t i = 0; i < pixels && !whole; ++i) std::copy_n(from + i * p_.O, lanes, tile_.data() + i * p_.lanes);
      kernels().add_events(p_, lists_.find(images + n * p_.C * p_.H * p_.W, 0), whole ? from : tile_.data(),
                           whole ? p_.O : p_.lanes, sums);
    }
  }

 private:
  const Convolution& p_;
  EventLists lists_;
  Scratch<float> tile_;
};

// The gradient of a block of weights of many channels. The events of a few images are sorted, so that each sum stays in
// a register while all that belongs to it is added.
class WeightGradient {
 public:
  WeightGradient(const Convolution& p, const Padded& padded)
      : p_(p),
        padded_(padded),
        tap_rows_(std::min(p.stride_y, p.kernel_y)),
        tap_columns_(std::min(p.stride_x, p.kernel_x)),
        image_(int64_t{p.C} * p.H * p.W),
        images_(std::max(std::min(kGroupBytes / (padded.pixels() * p.lanes * kSize), kListBytes / (image_ * kSize)),
                         int64_t{1})),
        lists_(p, images_),
        events_(images_),
        first_(int64_t{tap_rows_} * tap_columns_ * p.C + 1),
        at_(images_ * image_),
        value_(images_ * image_),
        grads_(images_ * padded.pixels() * p.lanes) {
    std::fill_n(grads_.data(), images_ * padded.pixels() * p.lanes, 0.0f);
    for (int y = 0; y < p.H; ++y) of_y_.push_back(first_tap(y, p.stride_y, p.padding_y));
    for (int x = 0; x < p.W; ++x) of_x_.push_back(first_tap(x, p.stride_x, p.padding_x));
  }

  // Adds images first to last - 1.
  void add(const float* images, const float* grads, int64_t first, int64_t last, int block, float* sums) {
    for (int64_t n = first; n < last; n += images_) {
      const int64_t number = std::min(images_, last - n);
      sort_events(images + n * image_, number);
      load_grads(grads + n * p_.Y * p_.X * p_.O, number, block);
      for (int tap_y = 0; tap_y < tap_rows_; ++tap_y) {
        for (int tap_x = 0; tap_x < tap_columns_; ++tap_x) add_taps(tap_y, tap_x, sums);
      }
    }
  }

 private:
  static constexpr int64_t kSize = sizeof(float);

  // By the first tap, and then by the channel.
  void sort_events(const float* images, int64_t number) {
    std::fill(first_.begin(), first_.end(), 0);
    for (int64_t n = 0; n < number; ++n) {
      events_[n] = lists_.find(images + n * image_, n);
      each_event(n, [&](int64_t key, int64_t, float) { ++first_[key + 1]; });
    }
    for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    std::vector<int32_t> next(first_.begin(), first_.end() - 1);
    for (int64_t n = 0; n < number; ++n) {
      each_event(n, [&](int64_t key, int64_t place, float value) {
        const int32_t i = next[key]++;
        at_.data()[i] = static_cast<int32_t>(place);
        value_.data()[i] = value;
      });
    }
  }

  template <typename F>
  void each_event(int64_t image, F&& f) const {
    const Events& events = events_[image];
    const int32_t* first = events.pixels;
    int64_t before = 0;  // the values of the pixels before
    for (const FirstTap& y : of_y_) {
      for (const FirstTap& x : of_x_) {
        if (y.tap < tap_rows_ && x.tap < tap_columns_) {
          const int64_t key = (int64_t{y.tap} * tap_columns_ + x.tap) * p_.C - before;
          const int64_t place = padded_.at(image, y.output, x.output);
          for (int32_t i = first[0]; i < first[1]; ++i) f(key + events.at[i], place, events.value[i]);
        }
        ++first;
        before += p_.C;
      }
    }
  }

  void load_grads(const float* grads, int64_t number, int block) {
    const int lanes = lanes_of(p_, block);
    for (int64_t n = 0; n < number; ++n) {
      for (int y = 0; y < p_.Y; ++y) {
        for (int x = 0; x < p_.X; ++x, grads += p_.O) {
          std::copy_n(grads + int64_t{block} * p_.lanes, lanes, grads_.data() + padded_.at(n, y, x) * p_.lanes);
        }
      }
    }
  }

  void add_taps(int tap_y, int tap_x, float* sums) const {
    const int64_t row = padded_.columns * p_.lanes, tap = int64_t{p_.C} * p_.lanes;
    for (int c = 0; c < p_.C; ++c) {
      const int64_t key = (int64_t{tap_y} * tap_columns_ + tap_x) * p_.C + c, first = first_[key];
      const int64_t number = first_[key + 1] - first;
      for (int j = 0; j < taps_from(tap_y, p_.kernel_y, p_.stride_y) && number > 0; ++j) {
        float* const to = sums + (int64_t{tap_y + j * p_.stride_y} * p_.kernel_x + tap_x) * tap + c * p_.lanes;
        kernels().add_taps(p_.lanes, taps_from(tap_x, p_.kernel_x, p_.stride_x), at_.data() + first,
                           value_.data() + first, number, grads_.data() - j * row, to, p_.stride_x * tap);
      }
    }
  }

  const Convolution& p_;
  const Padded& padded_;
  int tap_rows_, tap_columns_;  // of first taps
  int64_t image_, images_;      // the values of an image, and the number of images at a time
  std::vector<FirstTap> of_y_, of_x_;
  EventLists lists_;
  std::vector<Events> events_;
  std::vector<int32_t> first_;  // event of each first tap and channel
  Scratch<int32_t> at_;         // the pixel of the gradient that an event reaches by its first tap
  Scratch<float> value_, grads_;
};

// Returns the gradient of the weights, from that of the output.
Tensor event_conv2d_weight(const Tensor& x, const Tensor& grad, int64_t kernel_y, int64_t kernel_x, int64_t stride_y,
                           int64_t stride_x, int64_t padding_y, int64_t padding_x) {
  check_image(x, "x");
  check_image(grad, "grad");
  const Convolution p =
      described(x, grad.size(1), {kernel_y, kernel_x}, {stride_y, stride_x}, {padding_y, padding_x}, true);
  STD_TORCH_CHECK(grad.size(0) == p.N && grad.size(2) == p.Y && grad.size(3) == p.X, "grad: wrong shape");
  const int64_t bytes = p.weights() * p.blocks * static_cast<int64_t>(sizeof(float));
  const int64_t pieces =
      std::clamp(std::min(kPieceBytes / bytes, x.numel() / p.C / kLeastPixels), int64_t{1}, kMostPieces);
  const Padded padded(p);
  const int64_t each = (p.N + pieces - 1) / pieces, sums_of_piece = p.weights() * p.blocks;
  Scratch<float> sums(pieces * sums_of_piece);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  const float* const grads = static_cast<const float*>(grad.const_data_ptr());
  cpu::in_parallel(0, pieces * p.blocks, 1, [&](int64_t first, int64_t last) {
    const auto add_units = [&](auto gradient) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t piece = unit / p.blocks, end = std::min((piece + 1) * each, p.N);
        float* const to = sums.data() + unit * p.weights();
        std::fill_n(to, p.weights(), 0.0f);
        gradient.add(images, grads, piece * each, end, static_cast<int>(unit % p.blocks), to);
      }
    };
    if (p.few_channels()) return add_units(WeightGradientOfFew(p));
    add_units(WeightGradient(p, padded));
  });
  const Shape shape(std::vector<int64_t>{p.O, p.C, p.kernel_y, p.kernel_x});
  const int64_t taps = kernel_y * kernel_x, row = p.C * taps;
  const Tensor made =
      CpuBackend::empty(x, shape, Shape(std::vector<int64_t>{row, taps, kernel_x, 1}), ScalarType::Float);
  float* const to = static_cast<float*>(made.mutable_data_ptr());
  cpu::in_parallel(0, int64_t{p.blocks} * p.C, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t b = i / p.C, c = i % p.C;
      for (int64_t k = 0; k < taps; ++k) {
        const float* from = sums.data() + b * p.weights() + (k * p.C + c) * p.lanes;
        float sum[cpu::kMostLanes] = {};
        for (int64_t piece = 0; piece < pieces; ++piece, from += sums_of_piece) {
          for (int lane = 0; lane < p.lanes; ++lane) sum[lane] += from[lane];
        }
        for (int lane = 0; lane < lanes_of(p, static_cast<int>(b)); ++lane) {
          to[(b * p.lanes + lane) * row + c * taps + k] = sum[lane];
        }
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
