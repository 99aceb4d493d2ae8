// The ops of a convolution of spikes on the CPU. snnfast/_images/conv2d.py decides when they are called.
//
// No result depends on the number of threads. Each image belongs to one thread. The gradient of the weights is summed
// over pieces of the batch, in order, and their number depends on the shapes alone.
#include <algorithm>
#include <atomic>
#include <cmath>
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

using cpu::BandLists;
using cpu::BandPatterns;
using cpu::Chunks;
using cpu::Convolution;
using cpu::kChains;
using cpu::kMoreEvents;
using cpu::kMostPlaces;
using cpu::kMostTables;
using cpu::kTableLanes;
using cpu::kTablePixels;
using cpu::kTableRows;
using cpu::TileLists;
using cpu::Tiles;
using cpu::pool::Scratch;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBandPixels = 512;        // of the output, whose events are listed at a time
constexpr int64_t kLeastBand = 64;          // that a thread takes
constexpr int64_t kTableBandPixels = 2048;  // more, because many tables are read from memory for each band
constexpr int kTilePixels = 384;            // whose gradients are to stay in the L1 cache
constexpr int kOutputsAtOnce = 64;          // whose gradients are added up from the same lists
constexpr int64_t kMostPieces = 32;
constexpr int64_t kPieceBytes = int64_t{64} << 20;  // of all pieces together, unless there is only one
constexpr int64_t kLeastPixels = 2048;              // of a piece, so that its sums are few beside what is added
constexpr int kMostColumns = 256;                   // of a kernel
constexpr int64_t kMostTaps = 1024;                 // of a kernel, so that places of a tile fit 16 bits
constexpr int64_t kCountPart = 4096, kCountWhole = 1 << 17;  // values
constexpr int64_t kSampled = 5;

const cpu::ConvolutionKernels& kernels(){SNN_RETURN_OF_CURRENT_ISA(convolution_kernels())}

// The checked sizes of a convolution.
Convolution described(const Tensor& input, int64_t O, const int64_t (&kernel)[2], const int64_t (&stride)[2],
                      const int64_t (&padding)[2]) {
  const auto sizes = input.sizes();
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  int64_t output[2];
  for (int d = 0; d < 2; ++d) {
    const int64_t size = sizes[2 + d];
    STD_TORCH_CHECK(kernel[d] >= 1 && stride[d] >= 1 && padding[d] >= 0, "kernel, stride, padding: too small");
    STD_TORCH_CHECK(std::max({kernel[d], stride[d], padding[d], size}) < kMost, "kernel, stride, padding: too large");
    STD_TORCH_CHECK(d == 0 || kernel[d] <= kMostColumns, "kernel: too large");
    STD_TORCH_CHECK(size + 2 * padding[d] >= kernel[d], "kernel: larger than the image");
    output[d] = (size + 2 * padding[d] - kernel[d]) / stride[d] + 1;
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= kMostTaps, "kernel: too large");
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
  // No size in bytes may overflow.
  elements(Shape(std::vector<int64_t>{p.N, p.O, p.Y, p.X}));
  elements(Shape(std::vector<int64_t>{16 * (O + 64), 2 * p.C + 4, p.kernel_y + 1, p.kernel_x + 1}));
  return p;
}

// How the weights are divided.
Chunks chunks_of(const Convolution& p) {
  const auto over = [](int a, int b) { return (a + b - 1) / b; };
  constexpr int kChannels = 32;
  Chunks chunks{};
  chunks.of_channels = over(p.C, std::clamp(kMostPlaces / p.kernel_x, 1, kChannels));
  chunks.channels = over(p.C, chunks.of_channels);
  chunks.of_kernel_rows = over(p.kernel_y, std::max(kMostPlaces / (p.kernel_x * chunks.channels), 1));
  chunks.kernel_rows = over(p.kernel_y, chunks.of_kernel_rows);
  const int most = kernels().lanes;
  chunks.lanes = 2 * p.O <= most ? most / 2 : most;
  chunks.blocks = over(p.O, chunks.lanes);
  return chunks;
}

// How the tables are: those of a chunk have the sums of four channels each.
Chunks tables_of(const Convolution& p) {
  const auto over = [](int a, int b) { return (a + b - 1) / b; };
  const int most = std::max(kMostTables / (p.kernel_y * p.kernel_x) / 4 * 4, 4), groups = over(p.C, 4);
  Chunks chunks{};
  chunks.of_channels = over(groups, most);
  const int of_chunk = over(groups, chunks.of_channels);
  chunks.channels = 4 * of_chunk;
  chunks.of_kernel_rows = over(p.kernel_y, std::max(kMostTables / (p.kernel_x * of_chunk), 1));
  chunks.kernel_rows = over(p.kernel_y, chunks.of_kernel_rows);
  chunks.lanes = kTableLanes;
  chunks.blocks = over(p.O, chunks.lanes);
  return chunks;
}

Tiles tiles_of(const Convolution& p) {
  Tiles tiles{};
  const auto along = [](int size, int outputs, int kernel, int stride, int padding, int& first, int& last, int& taps) {
    taps = (kernel - 1) / stride + 1;
    first = padding / stride;
    last = std::min((size - 1 + padding) / stride + 1, outputs + taps - 1);
  };
  along(p.H, p.Y, p.kernel_y, p.stride_y, p.padding_y, tiles.first_row, tiles.last_row, tiles.taps_y);
  along(p.W, p.X, p.kernel_x, p.stride_x, p.padding_x, tiles.first_column, tiles.last_column, tiles.taps_x);
  const int rows = tiles.last_row - tiles.first_row, columns = tiles.last_column - tiles.first_column;
  int of_rows = 1, of_columns = 1;
  tiles.images = 1;
  // Taps that reach further than a small tile make it larger.
  const int most = std::max(kTilePixels, 4 * tiles.taps_y * tiles.taps_x);
  for (;;) {
    tiles.rows = (rows + of_rows - 1) / of_rows, tiles.columns = (columns + of_columns - 1) / of_columns;
    if (tiles.padded() <= most || (tiles.rows == 1 && tiles.columns == 1)) break;
    ++(tiles.rows >= tiles.columns ? of_rows : of_columns);
  }
  tiles.images = static_cast<int>(std::clamp(int64_t{most / tiles.padded()}, int64_t{1}, std::max(p.N, int64_t{1})));
  tiles.lanes = kernels().lanes_of_gradient;
  return tiles;
}

// The first value that is not 0, if there is one.
float first_event(const float* x, int64_t n) {
  const float* const found = std::find_if(x, x + n, [](float value) { return value != 0; });
  return found == x + n ? 1.0f : *found;
}

// Returns the share of events, and whether all have one value. Of a large image, one part of kSampled is looked at: a
// choice needs no more. An odd number, so that the parts are not always the same columns of the image.
std::tuple<double, bool> share_of_events(const Tensor& x) {
  check_image(x, "x");
  const float* const data = static_cast<const float*>(x.const_data_ptr());
  const int64_t n = x.numel(), every = n > kCountWhole ? kSampled : 1;
  const int64_t parts = (n + kCountPart * every - 1) / (kCountPart * every);
  const float value = first_event(data, n);
  std::atomic<int64_t> events = 0, others = 0, values = 0;
  cpu::in_parallel(0, parts, 64, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * every * kCountPart, end = std::min(begin + kCountPart, n);
      int32_t zeros = 0, equal = 0;  // narrow numbers are added up faster, and a part's count fits
      for (int64_t i = begin; i < end; ++i) zeros += data[i] == 0, equal += data[i] == value;
      events += end - begin - zeros;
      others += end - begin - zeros - equal;
      values += end - begin;
    }
  });
  return {n == 0 ? 0.0 : static_cast<double>(events) / static_cast<double>(values), others == 0};
}

// The weights as the kernels read them, [blocks, chunks of channels, chunks of rows, places + 1, lanes].
Scratch<float> pack(const Convolution& p, const Chunks& chunks, const float* weight) {
  const int64_t size = chunks.size(p), of_block = int64_t{chunks.of_channels} * chunks.of_kernel_rows;
  Scratch<float> packed(size * chunks.blocks * of_block);
  cpu::in_parallel(0, chunks.blocks * of_block, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* const to = packed.data() + chunk * size;
      std::fill_n(to, size, 0.0f);
      const int o = static_cast<int>(chunk / of_block) * chunks.lanes;
      const int c0 = static_cast<int>(chunk % of_block / chunks.of_kernel_rows) * chunks.channels;
      const int k0 = static_cast<int>(chunk % chunks.of_kernel_rows) * chunks.kernel_rows * p.kernel_x;
      const int channels = std::min(chunks.channels, p.C - c0);
      const int taps = std::min(chunks.kernel_rows * p.kernel_x, p.kernel_y * p.kernel_x - k0);
      for (int lane = 0; lane < std::min(chunks.lanes, p.O - o); ++lane) {
        const float* from = weight + (int64_t{o + lane} * p.C + c0) * p.kernel_y * p.kernel_x + k0;
        for (int c = 0; c < channels; ++c, from += p.kernel_y * p.kernel_x) {
          for (int k = 0; k < taps; ++k) to[(int64_t{k} * chunks.channels + c) * chunks.lanes + lane] = from[k];
        }
      }
    }
  });
  return packed;
}

// All sums of the weights of each four places.
Scratch<float> sums_of_four(const Convolution& p, const Chunks& chunks, const Scratch<float>& packed) {
  const int64_t places = chunks.places(p), of_table = int64_t{kTableRows} * kTableLanes;
  const int64_t number = int64_t{chunks.blocks} * chunks.of_channels * chunks.of_kernel_rows;
  Scratch<float> tables(number * places / 4 * of_table);
  cpu::in_parallel(0, number, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const float* from = packed.data() + chunk * chunks.size(p);
      float* to = tables.data() + chunk * places / 4 * of_table;
      for (int64_t i = 0; i < places; i += 4, from += 4 * kTableLanes, to += of_table) {
        for (int row = 0; row < kTableRows; ++row) {
          for (int lane = 0; lane < kTableLanes; ++lane) {
            const auto at = [&](int bit) { return (row >> bit & 1) != 0 ? from[bit * kTableLanes + lane] : 0.0f; };
            to[row * kTableLanes + lane] = (at(0) + at(1)) + (at(2) + at(3));
          }
        }
      }
    }
  });
  return tables;
}

// The most rows of the input that some rows of the output see.
int64_t rows_seen(const Convolution& p, int64_t rows) {
  const int64_t images = (rows - 1) / p.Y + 2;
  return std::min(rows * p.stride_y + images * p.kernel_y, images * p.H);
}

// Memory for the events of some rows of the output.
class Band {
 public:
  Band(const Convolution& p, const Chunks& chunks, int64_t rows, bool valued)
      : pixels_(rows * p.X),
        in_(rows_seen(p, rows) * p.W),
        events_(in_ * chunks.channels + kMoreEvents),
        reaching_(pixels_ * (chunks.places(p) + kChains) + kMoreEvents),
        at_(events_),
        value_(valued ? events_ : 0),
        pixel_(in_ + 1),
        reaching_at_(reaching_),
        reaching_value_(valued ? reaching_ : 0),
        output_(pixels_ + 1),
        tile_(pixels_ * chunks.lanes) {}

  BandLists lists() {
    return {at_.data(), value_.data(), pixel_.data(), reaching_at_.data(), reaching_value_.data(), output_.data()};
  }
  float* tile() { return tile_.data(); }

 private:
  int64_t pixels_, in_, events_, reaching_;
  Scratch<uint16_t> at_;
  Scratch<float> value_;
  Scratch<int32_t> pixel_;
  Scratch<uint16_t> reaching_at_;
  Scratch<float> reaching_value_;
  Scratch<int32_t> output_;
  Scratch<float> tile_;
};

Convolution described(const Tensor& x, const Tensor& weight, int64_t stride_y, int64_t stride_x, int64_t padding_y,
                      int64_t padding_x) {
  check_image(x, "x");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float, "weight: expected float32 on the CPU");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1), "weight: expected [O, C, kH, kW]");
  return described(x, weight.size(0), {weight.size(2), weight.size(3)}, {stride_y, stride_x}, {padding_y, padding_x});
}

// The weights and the bias of all blocks, with zeros behind them.
Scratch<float> packed_weight(const Convolution& p, const Chunks& chunks, const Tensor& weight) {
  const Tensor dense = torch::stable::contiguous(weight);
  return pack(p, chunks, static_cast<const float*>(dense.const_data_ptr()));
}
Scratch<float> packed_bias(const Convolution& p, const Chunks& chunks, const std::optional<Tensor>& bias) {
  Scratch<float> biases(int64_t{chunks.blocks} * chunks.lanes);
  std::fill_n(biases.data(), int64_t{chunks.blocks} * chunks.lanes, 0.0f);
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == ScalarType::Float, "bias: expected float32 on the CPU");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == p.O, "bias: expected [O]");
    const Tensor dense = torch::stable::contiguous(*bias);
    std::copy_n(static_cast<const float*>(dense.const_data_ptr()), p.O, biases.data());
  }
  return biases;
}

Tensor event_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_y,
                    int64_t stride_x, int64_t padding_y, int64_t padding_x) {
  const Convolution p = described(x, weight, stride_y, stride_x, padding_y, padding_x);
  const Chunks chunks = chunks_of(p);
  const Scratch<float> biases = packed_bias(p, chunks, bias), packed = packed_weight(p, chunks, weight);
  const Tensor y = new_image(x, p.N, p.O, p.Y, p.X);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const out = static_cast<float*>(y.mutable_data_ptr());
  const int64_t band = std::max<int64_t>(1, kBandPixels / p.X), least = (kLeastBand + p.X - 1) / p.X;
  const auto compute = [&](float value) {
    std::atomic<bool> equal = true;
    cpu::in_parallel(0, p.N * p.Y, least, [&](int64_t first, int64_t last) {
      Band scratch(p, chunks, std::min(band, last - first), value != value);
      for (int64_t row = first; row < last && equal; row += band) {
        const int rows = static_cast<int>(std::min(band, last - row));
        if (!kernels().forward(p, chunks, images, packed.data(), biases.data(), value, row, rows, scratch.lists(),
                               scratch.tile(), out)) {
          equal = false;
        }
      }
    });
    return equal.load();
  };
  const float value = first_event(images, x.numel());
  if (!std::isfinite(value) || !compute(value)) compute(std::numeric_limits<float>::quiet_NaN());
  return y;
}

// Returns the convolution from tables, and whether all events had one value. Else there are no numbers.
std::tuple<Tensor, bool> table_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                      int64_t stride_y, int64_t stride_x, int64_t padding_y, int64_t padding_x) {
  const Convolution p = described(x, weight, stride_y, stride_x, padding_y, padding_x);
  const Chunks chunks = tables_of(p);
  const Scratch<float> biases = packed_bias(p, chunks, bias);
  const Scratch<float> tables = sums_of_four(p, chunks, packed_weight(p, chunks, weight));
  const Tensor y = new_image(x, p.N, p.O, p.Y, p.X);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const out = static_cast<float*>(y.mutable_data_ptr());
  const float value = first_event(images, x.numel());
  const int64_t band = std::max<int64_t>(1, kTableBandPixels / p.X), least = (kLeastBand + p.X - 1) / p.X;
  std::atomic<bool> equal = std::isfinite(value);
  cpu::in_parallel(0, p.N * p.Y, least, [&](int64_t first, int64_t last) {
    const int64_t most = std::min(band, last - first);
    BandPatterns patterns{};
    patterns.of_stride = p.X + (p.kernel_x - 1) / p.stride_x;
    patterns.row = int64_t{patterns.of_stride} * std::min(p.stride_x, p.kernel_x) * (chunks.channels / 4);
    patterns.of_chunk = rows_seen(p, most) * patterns.row;
    const int64_t bytes = patterns.of_chunk * chunks.of_channels + kTablePixels;
    Scratch<uint8_t> at(bytes);
    std::fill_n(at.data(), bytes, uint8_t{0});
    Scratch<float> sums(most * p.X * kTableLanes);
    Scratch<int64_t> offsets(chunks.places(p) / 4);
    patterns.at = at.data(), patterns.offsets = offsets.data(), patterns.sums = sums.data();
    for (int64_t i = 0; i < chunks.places(p) / 4; ++i) {
      const int64_t group = i % (chunks.channels / 4), k = i / (chunks.channels / 4), column = k % p.kernel_x;
      offsets.data()[i] = k / p.kernel_x * patterns.row + column / p.stride_x +
                          (group * std::min(p.stride_x, p.kernel_x) + column % p.stride_x) * patterns.of_stride;
    }
    for (int64_t row = first; row < last && equal; row += band) {
      const int rows = static_cast<int>(std::min(band, last - row));
      if (!kernels().look_up(p, chunks, images, tables.data(), biases.data(), value, row, rows, patterns, out)) {
        equal = false;
      }
    }
  });
  return {y, equal.load()};
}

// Memory for the events of a tile.
class TileScratch {
 public:
  TileScratch(const Convolution& p, const Tiles& tiles)
      : classes_(int64_t{std::min(p.stride_y, p.kernel_y)} * std::min(p.stride_x, p.kernel_x)),
        places_(int64_t{tiles.places()} + kMoreEvents),
        at_(classes_ * p.C * places_),
        value_(classes_ * p.C * places_),
        number_(classes_ * p.C),
        valued_(classes_ * ((p.C + 15) / 16)),
        masks_(places_),
        place_(places_),
        pixel_(places_),
        grads_(int64_t{tiles.padded()} * tiles.lanes) {}

  TileLists lists() {
    return {at_.data(),    value_.data(), number_.data(), valued_.data(),
            masks_.data(), place_.data(), pixel_.data(),  grads_.data()};
  }

 private:
  int64_t classes_, places_;
  Scratch<uint16_t> at_;
  Scratch<float> value_;
  Scratch<int32_t> number_;
  Scratch<uint8_t> valued_;
  Scratch<uint16_t> masks_;
  Scratch<uint32_t> place_;
  Scratch<const float*> pixel_;
  Scratch<float> grads_;
};

// Returns the gradient of the weights, from that of the output.
Tensor event_conv2d_weight(const Tensor& x, const Tensor& grad, int64_t kernel_y, int64_t kernel_x, int64_t stride_y,
                           int64_t stride_x, int64_t padding_y, int64_t padding_x) {
  check_image(x, "x");
  check_image(grad, "grad");
  const Convolution p = described(x, grad.size(1), {kernel_y, kernel_x}, {stride_y, stride_x}, {padding_y, padding_x});
  STD_TORCH_CHECK(grad.size(0) == p.N && grad.size(2) == p.Y && grad.size(3) == p.X, "grad: wrong shape");
  const Tiles tiles = tiles_of(p);
  const int64_t taps = kernel_y * kernel_x, blocks = (p.O + tiles.lanes - 1) / tiles.lanes;
  const int64_t of_channel = taps * tiles.lanes, of_piece = blocks * p.C * of_channel;
  const int64_t most =
      std::min(kPieceBytes / (of_piece * static_cast<int64_t>(sizeof(float))), p.N * p.H * p.W / kLeastPixels);
  const int64_t each =
      (p.N + std::clamp(most, int64_t{1}, kMostPieces) - 1) / std::clamp(most, int64_t{1}, kMostPieces);
  const int64_t pieces = each > 0 ? (p.N + each - 1) / each : 0, groups = (p.O + kOutputsAtOnce - 1) / kOutputsAtOnce;
  Scratch<float> sums(pieces * of_piece);
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  const float* const grads = static_cast<const float*>(grad.const_data_ptr());
  const float value = first_event(images, x.numel());
  cpu::in_parallel(0, pieces * groups, 1, [&](int64_t first, int64_t last) {
    TileScratch scratch(p, tiles);
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t piece = unit / groups, end = std::min((piece + 1) * each, p.N);
      const int o = static_cast<int>(unit % groups) * kOutputsAtOnce, last_o = std::min(o + kOutputsAtOnce, p.O);
      float* const to = sums.data() + piece * of_piece;
      const int64_t first_block = o / tiles.lanes, last_block = (last_o + tiles.lanes - 1) / tiles.lanes;
      std::fill_n(to + first_block * p.C * of_channel, (last_block - first_block) * p.C * of_channel, 0.0f);
      kernels().add_gradient(p, tiles, images, grads, piece * each, end, o, last_o, value, scratch.lists(), to);
    }
  });
  const Shape shape(std::vector<int64_t>{p.O, p.C, p.kernel_y, p.kernel_x});
  const int64_t row = p.C * taps;
  const Tensor made =
      CpuBackend::empty(x, shape, Shape(std::vector<int64_t>{row, taps, kernel_x, 1}), ScalarType::Float);
  float* const to = static_cast<float*>(made.mutable_data_ptr());
  cpu::in_parallel(0, blocks * p.C, 1, [&](int64_t first, int64_t last) {
    std::vector<float> sum(of_channel);
    for (int64_t i = first; i < last; ++i) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const float* const from = sums.data() + piece * of_piece + i * of_channel;
        for (int64_t j = 0; j < of_channel; ++j) sum[j] += from[j];
      }
      const int64_t o = i / p.C * tiles.lanes, c = i % p.C;
      for (int64_t lane = 0; lane < std::min<int64_t>(tiles.lanes, p.O - o); ++lane) {
        for (int64_t k = 0; k < taps; ++k) to[(o + lane) * row + c * taps + k] = sum[k * tiles.lanes + lane];
      }
    }
  });
  return made;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("share_of_events(Tensor x) -> (float, bool)");
  m.def(
      "event_conv2d(Tensor x, Tensor weight, Tensor? bias, int stride_y, int stride_x, int padding_y, int padding_x)"
      " -> Tensor");
  m.def(
      "table_conv2d(Tensor x, Tensor weight, Tensor? bias, int stride_y, int stride_x, int padding_y, int padding_x)"
      " -> (Tensor, bool)");
  m.def(
      "event_conv2d_weight(Tensor x, Tensor grad, int kernel_y, int kernel_x, int stride_y, int stride_x,"
      " int padding_y, int padding_x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("share_of_events", SNN_BOX(share_of_events));
  m.impl("event_conv2d", SNN_BOX(event_conv2d));
  m.impl("table_conv2d", SNN_BOX(table_conv2d));
  m.impl("event_conv2d_weight", SNN_BOX(event_conv2d_weight));
}

}  // namespace snnfast
