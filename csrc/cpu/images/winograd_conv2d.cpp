// The op of a convolution by Winograd's method on the CPU. snnfast/_images/winograd.py decides when it is called.
//
// No result depends on the number of threads: the outputs of a tile do not depend on the tiles that are computed with
// it.
#include "winograd.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../../op/backend.h"
#include "../memory/scratch.h"
#include "../parallel.h"
#include "images.h"

namespace snnfast {
namespace {

using cpu::Winograd;
using cpu::pool::Scratch;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kScratchBytes = 1 << 20;  // of the transformed tiles and products that are to stay in the L2 cache
constexpr int64_t kLeastTiles = 48;         // for which the weights are read once, if a thread has so many
constexpr int64_t kMostTiles = 96;

const cpu::WinogradKernels& kernels(){SNN_RETURN_OF_CURRENT_ISA(winograd_kernels())}

// The checked sizes of a convolution.
Winograd described(const Tensor& x, int64_t C, int64_t O, const int64_t (&padding)[2], int64_t side) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 4;
  STD_TORCH_CHECK(side == 2 || side == 4, "side: expected 2 or 4");
  STD_TORCH_CHECK(x.size(1) == C, "x, weight: expected the same channels");
  STD_TORCH_CHECK(std::min(C, O) >= cpu::kLeastChannels && std::max(C, O) < kMost,
                  "weight: expected 16 or more channels");
  int64_t output[2];
  for (int d = 0; d < 2; ++d) {
    const int64_t size = x.size(2 + d);
    STD_TORCH_CHECK(padding[d] >= 0 && padding[d] <= 2, "padding: expected 0 to 2");
    STD_TORCH_CHECK(size >= 1 && size < kMost && size + 2 * padding[d] >= 3, "x: wrong size of the image");
    output[d] = size + 2 * padding[d] - 2;
  }
  elements(Shape(std::vector<int64_t>{x.size(0), O, output[0], output[1]}));  // whose bytes must not overflow
  auto small = [](int64_t value) { return static_cast<int>(value); };
  Winograd p{};
  p.N = x.size(0), p.C = small(C), p.H = small(x.size(2)), p.W = small(x.size(3));
  p.O = small(O), p.Y = small(output[0]), p.X = small(output[1]);
  p.padding_y = small(padding[0]), p.padding_x = small(padding[1]);
  p.side = small(side);
  p.lanes = kernels().lanes(p.O);
  p.blocks = (p.O + p.lanes - 1) / p.lanes;
  // All threads get equally many tiles.
  const int64_t bytes = p.places() * (p.channels() + p.lanes) * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::clamp(kScratchBytes / bytes, kLeastTiles, kMostTiles) * torch::stable::get_num_threads();
  const int64_t calls = std::max<int64_t>((p.all_tiles() + most - 1) / most, 1) * torch::stable::get_num_threads();
  p.tiles = small(std::max<int64_t>((p.all_tiles() + calls - 1) / calls, 1));
  return p;
}

// Returns the convolution, and whether all of its outputs are finite. If it is turned, it is the gradient of the input
// of a convolution with this weight from that of its output, whose padding was 2 less this one.
std::tuple<Tensor, bool> winograd_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                         int64_t padding_y, int64_t padding_x, int64_t side, bool turned) {
  check_image(x, "x");
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == ScalarType::Float && weight.dim() == 4 &&
                      weight.size(2) == 3 && weight.size(3) == 3,
                  "weight: expected [O, C, 3, 3] in float32 on the CPU");
  const Winograd p =
      described(x, weight.size(turned ? 0 : 1), weight.size(turned ? 1 : 0), {padding_y, padding_x}, side);
  const float* added = nullptr;
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == ScalarType::Float && bias->dim() == 1 &&
                        bias->size(0) == p.O && bias->is_contiguous(),
                    "bias: expected one float32 for each output channel");
    added = static_cast<const float*>(bias->const_data_ptr());
  }
  const Tensor y = new_image(x, p.N, p.O, p.Y, p.X);
  cpu::WinogradWeights from{static_cast<const float*>(weight.const_data_ptr()), weight.stride(0), weight.stride(1),
                            weight.stride(2), weight.stride(3)};
  if (turned) {
    from = {from.data + 2 * (from.y + from.x), from.input, from.output, -from.y, -from.x};
  }
  Scratch<float> weights(p.weights()), zeros(p.C);
  std::fill_n(zeros.data(), p.C, 0.0f);
  cpu::in_parallel(0, int64_t{p.blocks} * p.groups(), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      kernels().transform(p, from, static_cast<int>(i / p.groups()), static_cast<int>(i % p.groups()), weights.data());
    }
  });
  const float* const images = static_cast<const float*>(x.const_data_ptr());
  float* const outputs = static_cast<float*>(y.mutable_data_ptr());
  std::atomic<bool> finite = true;
  cpu::in_parallel(0, (p.all_tiles() + p.tiles - 1) / p.tiles, 1, [&](int64_t first, int64_t last) {
    Scratch<float> scratch(p.scratch());
    for (int64_t i = first; i < last; ++i) {
      const int64_t tile = i * p.tiles, end = std::min(tile + p.tiles, p.all_tiles());
      if (!kernels().run(p, images, weights.data(), added, zeros.data(), scratch.data(), tile, end, outputs)) {
        finite = false;
      }
    }
  });
  return {y, finite.load()};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def(
      "winograd_conv2d(Tensor x, Tensor weight, Tensor? bias, int padding_y, int padding_x, int side, bool turned)"
      " -> (Tensor, bool)");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) { m.impl("winograd_conv2d", SNN_BOX(winograd_conv2d)); }

}  // namespace snnfast
