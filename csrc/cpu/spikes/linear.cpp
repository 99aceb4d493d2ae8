// The ops of a Linear layer that is given spikes: these as bits, their products with a weight, and the gradient of the
// weight. They exist on the CPU only: elsewhere snnfast/ converts the bits to numbers and calls PyTorch's product.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../../op/tensors.h"
#include "../memory/scratch.h"
#include "../parallel.h"
#include "../unroll/dispatch.h"
#include "events.h"

namespace snnfast {
namespace {

using cpu::EventKernels;
using cpu::EventList;
using cpu::Height;
using cpu::in_parallel;
using cpu::Isa;
using cpu::kListed;
using cpu::kLookedUpOutputs;
using cpu::kSummed;
using cpu::kWord;
using cpu::Packed;
using cpu::SpikeBits;
using cpu::Tiles;
using cpu::pool::Buffer;
using cpu::pool::Scratch;
using cpu::pool::scratch;

const EventKernels& kernels() { SNN_RETURN_OF_CURRENT_ISA(event_kernels()) }

// The checked sizes and the spikes of a product. It owns the copy of their height that is read.
struct Product {
  DType dtype;  // of weight, bias and outputs
  SpikeBits spikes;
  Height height{nullptr, 0};
  int64_t O;

  Product(const Tensor& bits, const Tensor& graded, const Tensor& like, int64_t T, int64_t outputs)
      : dtype(dtype_of(like, "weight")), O(outputs) {
    STD_TORCH_CHECK(bits.is_cpu() && graded.is_cpu() && like.is_cpu(), "expected tensors on the CPU");
    STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte && bits.dim() == 3 && bits.is_contiguous(),
                    "bits: expected contiguous bytes [(steps + 7) // 8, R, N]");
    STD_TORCH_CHECK(T >= 0 && bits.size(0) == (T + 7) / 8, "bits: expected [(steps + 7) // 8, R, N]");
    spikes = {static_cast<const uint8_t*>(bits.const_data_ptr()), T, bits.size(1), bits.size(2)};
    // The height is rounded to this dtype, as that of a spike is.
    const ScalarType type = like.scalar_type(), opmath = opmath_of(type);
    if (graded.dim() == 0) {
      height.value = number_in(graded, number_type_of(graded, "graded"), opmath);
      const auto narrow = static_cast<float>(height.value);
      if (type == ScalarType::Half) height.value = static_cast<float>(torch::headeronly::Half(narrow));
      if (type == ScalarType::BFloat16) height.value = static_cast<float>(torch::headeronly::BFloat16(narrow));
      return;
    }
    STD_TORCH_CHECK(graded.dim() == 1 && graded.size(0) == spikes.N, "graded: expected a number or [N]");
    height_of_each_ = in_order(in_order(graded, type), opmath);
    height.data = height_of_each_->const_data_ptr();
  }

  int64_t rows() const { return spikes.T * spikes.R; }
  bool empty() const { return rows() * spikes.N == 0 || O == 0; }

 private:
  MaybeTensor height_of_each_;
};

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 65536;

// ---- events or the dense product

// Bytes of a vector of the instruction set in use.
int64_t vector_bytes() { return cpu::current_isa() == Isa::avx512 ? 64 : cpu::current_isa() == Isa::avx2 ? 32 : 16; }

// With so few vectors of outputs, PyTorch's dense product is never faster.
constexpr int64_t kFewVectors = 1;

// What events cost, in the time of the dense product: a spike costs as much as two neuron-steps, and packing the
// weights or unpacking the gradient as much as 64 rows.
constexpr int64_t kStepsPerSpike = 2, kRowsToPack = 64;

// The sizes and the number of spikes decide, and the number of threads does not: results must not depend on it.
bool dense_is_faster(const Product& p) {
  if (p.O * opmath_size(p.dtype) <= kFewVectors * vector_bytes()) return false;
  if (p.rows() <= kRowsToPack) return true;
  const int64_t spikes = kernels().count(p.spikes.bits, p.spikes.units() * p.spikes.N);
  return kStepsPerSpike * spikes >= (p.rows() - kRowsToPack) * p.spikes.N;
}

// ---- the dense product

// Bytes of the rows that become numbers at once: they stay in the caches until the product has read them.
constexpr int64_t kDenseBytes = int64_t{16} << 20;

int64_t dense_block(const Product& p) {
  return std::max<int64_t>(1, kDenseBytes / (p.spikes.N * element_size(p.dtype)));
}

// Calls f with the spikes as numbers [last - first, N], `block` rows at a time.
template <typename F>
void each_dense_block(const Product& p, int64_t block, F&& f) {
  const int64_t row = p.spikes.N * element_size(p.dtype);
  const Buffer numbers = scratch(std::min(block, p.rows()) * row);
  for (int64_t first = 0; first < p.rows(); first += block) {
    const int64_t last = std::min(first + block, p.rows());
    in_parallel(first, last, kGrain / p.spikes.N, [&](int64_t a, int64_t b) {
      kernels().as_numbers[static_cast<int>(p.dtype)](p.spikes, p.height, a, b, numbers.get() + (a - first) * row);
    });
    f(first, last, numbers.get());
  }
}

Tensor matrix(DType dtype, const void* data, int64_t rows, int64_t columns, bool transposed = false) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
  const int64_t sizes[] = {rows, columns}, strides[] = {transposed ? 1 : columns, transposed ? rows : 1};
  return torch::stable::from_blob(const_cast<void*>(data), {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  kTypes[static_cast<int>(dtype)]);
}

void dense_forward(const Product& p, const Tensor& weight, const MaybeTensor& bias, char* y) {
  each_dense_block(p, dense_block(p), [&](int64_t first, int64_t last, const void* numbers) {
    void* const to = y + first * p.O * element_size(p.dtype);
    call_out("aten::linear", matrix(p.dtype, numbers, last - first, p.spikes.N), weight, bias,
             matrix(p.dtype, to, last - first, p.O));
  });
}

template <typename A>
void add(const void* from, void* to, int64_t n) {
  in_parallel(0, n, kGrain, [&](int64_t first, int64_t last) {
    const A* const a = static_cast<const A*>(from);
    A* const b = static_cast<A*>(to);
    for (int64_t i = first; i < last; ++i) b[i] += a[i];
  });
}

void dense_weight(const Product& p, const char* grad, void* gradient) {
  const int64_t N = p.spikes.N;
  // In 16 bits, all rows are one block: sums must not be rounded from block to block.
  const int64_t block = element_size(p.dtype) > 2 ? dense_block(p) : p.rows();
  const Buffer part = scratch(block < p.rows() ? p.O * N * element_size(p.dtype) : 1);
  each_dense_block(p, block, [&](int64_t first, int64_t last, const void* numbers) {
    const void* const from = grad + first * p.O * element_size(p.dtype);
    void* const to = first == 0 ? gradient : part.get();
    const Tensor transposed = matrix(p.dtype, from, p.O, last - first, /*transposed=*/true);
    call_out("aten::mm", transposed, matrix(p.dtype, numbers, last - first, N), matrix(p.dtype, to, p.O, N));
    if (first == 0) return;
    p.dtype == DType::kDouble ? add<double>(to, gradient, p.O * N) : add<float>(to, gradient, p.O * N);
  });
}

// ---- events

// The most vectors of a tile: the weights of a thousand neurons then stay in the L2 cache, and the gradient rows of
// kSummed units do.
constexpr int kForwardVectors = 8, kWeightVectors = 4;

// Bytes of the lists of events that several tiles read: those of many rows, so that the weights of a tile are read from
// memory once for all of them. With one tile, each list is read as soon as it is made.
constexpr int64_t kListBytes = int64_t{2} << 20;

// Bytes of the totals that rows are added to at once: they stay in the L2 cache.
constexpr int64_t kTotalBytes = int64_t{512} << 10;

// Bytes of the gradient rows that are packed at once.
constexpr int64_t kPanelBytes = int64_t{4} << 20;

// Tiles as narrow as the outputs allow, none with more vectors than `most`.
Tiles tiles_of(const Product& p, int most) {
  const int lanes = static_cast<int>(vector_bytes() / opmath_size(p.dtype));
  const int64_t vectors = (p.O + lanes - 1) / lanes, count = (vectors + most - 1) / most;
  return {count, static_cast<int>((vectors + count - 1) / count), lanes};
}

void events_forward(const Product& p, const void* weight, const void* bias, void* y) {
  const auto dtype = static_cast<size_t>(p.dtype);
  const int64_t N = p.spikes.N;
  const Tiles tiles = tiles_of(p, kForwardVectors);
  const Buffer panels = scratch(tiles.count * tiles.width() * N * opmath_size(p.dtype));
  const Packed packed{panels.get(), tiles};
  in_parallel(0, N, kGrain / p.O, [&](int64_t first, int64_t last) {
    kernels().pack_weight[dtype](weight, p.O, N, p.height, packed, first, last);
  });
  const int64_t lists_of_unit = 8 * ((N + kListed - 1) / kListed), bytes = lists_of_unit * int64_t{sizeof(EventList)};
  in_parallel(0, p.spikes.units(), kGrain / (8 * N * tiles.count), [&](int64_t first, int64_t last) {
    const int64_t at_once = tiles.count == 1 ? 1 : std::clamp<int64_t>(kListBytes / bytes, 1, last - first);
    Scratch<EventList> lists(at_once * lists_of_unit);
    for (; first < last; first += at_once) {
      kernels().forward[dtype](p.spikes, packed, bias, p.O, y, first, std::min(first + at_once, last), lists.data());
    }
  });
}

void events_weight(const Product& p, const void* grad, void* gradient) {
  const auto dtype = static_cast<size_t>(p.dtype);
  const bool few = p.O <= kLookedUpOutputs;
  const Tiles tiles = tiles_of(p, few ? kForwardVectors : kWeightVectors);
  const int64_t N = p.spikes.N, units = p.spikes.units(), row = tiles.width() * opmath_size(p.dtype);
  const int64_t summed = kSummed * 8 * row * tiles.count;  // bytes of the rows that are summed before they are added
  const int64_t block = std::min(units, std::max<int64_t>(1, kPanelBytes / summed) * kSummed);
  const int64_t parts = (N + kWord - 1) / kWord * tiles.count,
                at_once = std::max<int64_t>(1, kTotalBytes / (kWord * row));
  const auto add = few ? kernels().add_subsets_of_rows[dtype] : kernels().add_rows[dtype];
  const Buffer totals = scratch(tiles.count * N * row), panels = scratch(tiles.count * block * 8 * row);
  std::fill_n(totals.get(), tiles.count * N * row, char{0});
  for (int64_t a = 0; a < units; a += block) {
    const int64_t b = std::min(a + block, units), panel = (b - a) * 8 * row;
    in_parallel(a, b, kGrain / (8 * p.O), [&](int64_t first, int64_t last) {
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        char* const to = panels.get() + tile * panel + (first - a) * 8 * row;
        kernels().pack_rows[dtype](p.spikes, grad, p.O, tiles, tile, first, last, to);
      }
    });
    in_parallel(0, parts, kGrain / ((b - a) * 8 * kWord), [&](int64_t first, int64_t last) {
      for (; first < last; first += at_once) {
        add(p.spikes, {panels.get(), tiles}, a, b, first, std::min(first + at_once, last), totals.get());
      }
    });
  }
  in_parallel(0, N, kGrain / p.O, [&](int64_t first, int64_t last) {
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      const char* const from = totals.get() + tile * N * row;
      kernels().unpack_totals[dtype](from, tiles, tile, p.O, N, p.height, first, last, gradient);
    }
  });
}

// ---- spikes that are found among numbers

// Packs values [T, N] of a dtype whose bytes are those of a word, eight steps to a byte. Returns the value that all
// have that are not 0: 0 if there is none, NaN if they differ. Then the bits are not all written.
template <typename S, typename Word>
double pack(DType dtype, const void* from, int64_t T, int64_t N, uint8_t* to) {
  const Word* const words = static_cast<const Word*>(from);
  const Word* const end = words + T * N;
  // Words are shifted to lose their sign, as -0 is no spike.
  const Word* const first = std::find_if(words, end, [](Word w) { return static_cast<Word>(w << 1) != 0; });
  S height{};
  if (first != end) std::memcpy(&height, first, sizeof height);
  std::atomic<bool> equal = true;
  in_parallel(0, (T + 7) / 8, kGrain / (8 * N), [&](int64_t unit, int64_t last) {
    for (; unit < last && equal.load(std::memory_order_relaxed); ++unit) {
      const int64_t t = 8 * unit, steps = std::min<int64_t>(8, T - t);
      if (!kernels().pack[static_cast<int>(dtype)](words + t * N, steps, N, &height, to + unit * N)) equal = false;
    }
  });
  return equal ? static_cast<double>(height) : std::numeric_limits<double>::quiet_NaN();
}

// ---- the ops

// [T, R, N] to bits [(T + 7) / 8, R, N] that tell where it is not 0; how many these are, and the value of all of them.
// Where they differ, or are not finite, the values are no spikes: the value is NaN, and the bits are anything.
std::tuple<Tensor, int64_t, double> spikes_as_bits(const Tensor& spk) {
  CpuBackend::check_device(spk);
  STD_TORCH_CHECK(spk.dim() == 3 && spk.is_contiguous(), "spk: expected contiguous [T, R, N]");
  const DType dtype = dtype_of(spk, "spk");
  const int64_t T = spk.size(0), N = spk.size(1) * spk.size(2);
  const Shape shape(std::array<int64_t, 3>{(T + 7) / 8, spk.size(1), spk.size(2)});
  Tensor bits = CpuBackend::empty(spk, shape, contiguous_strides(shape), ScalarType::Byte);
  if (spk.numel() == 0) return {bits, 0, 0.0};
  auto* const to = static_cast<uint8_t*>(bits.mutable_data_ptr());
  const void* const from = spk.const_data_ptr();
  double value = 0;
  switch (dtype) {
    case DType::kFloat: value = pack<float, uint32_t>(dtype, from, T, N, to); break;
    case DType::kDouble: value = pack<double, uint64_t>(dtype, from, T, N, to); break;
    case DType::kHalf: value = pack<torch::headeronly::Half, uint16_t>(dtype, from, T, N, to); break;
    case DType::kBFloat16: value = pack<torch::headeronly::BFloat16, uint16_t>(dtype, from, T, N, to); break;
  }
  if (!std::isfinite(value)) return {bits, 0, std::numeric_limits<double>::quiet_NaN()};
  return {bits, kernels().count(to, bits.numel()), value};
}

Tensor make(const Tensor& like, const Shape& shape) {
  elements(shape);
  return CpuBackend::empty(like, shape, contiguous_strides(shape), like.scalar_type());
}

// y [T, R, O] = spikes * weight + bias
Tensor spikes_linear(const Tensor& bits, const Tensor& weight, const MaybeTensor& bias, const Tensor& graded,
                     int64_t steps) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight: expected [O, N]");
  const Product p(bits, graded, weight, steps, weight.size(0));
  STD_TORCH_CHECK(weight.size(1) == p.spikes.N, "weight: expected [O, N]");
  const ScalarType dtype = weight.scalar_type();
  MaybeTensor b;
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == dtype && bias->dim() == 1 && bias->size(0) == p.O,
                    "bias: expected [O] in the dtype of weight");
    b = in_order(*bias, dtype);
  }
  const Tensor w = in_order(weight, dtype);
  const Tensor y = make(weight, Shape(std::array<int64_t, 3>{steps, p.spikes.R, p.O}));
  STD_TORCH_CHECK(p.spikes.N > 0 || y.numel() == 0, "weight: expected [O, N] with N of 1 or more");
  if (p.empty()) return y;
  auto* const to = static_cast<char*>(y.mutable_data_ptr());
  if (dense_is_faster(p)) {
    dense_forward(p, w, b, to);
  } else {
    events_forward(p, w.const_data_ptr(), b.has_value() ? b->const_data_ptr() : nullptr, to);
  }
  return y;
}

// gradient [O, N] of the weight, from that of y [T, R, O]
Tensor spikes_linear_weight(const Tensor& bits, const Tensor& grad, const Tensor& graded) {
  STD_TORCH_CHECK(grad.dim() == 3, "grad: expected [T, R, O]");
  const Product p(bits, graded, grad, grad.size(0), grad.size(2));
  STD_TORCH_CHECK(grad.size(1) == p.spikes.R, "grad: expected [T, R, O]");
  const Tensor g = in_order(grad, grad.scalar_type());
  Tensor gradient = make(grad, Shape(std::array<int64_t, 2>{p.O, p.spikes.N}));
  if (p.empty()) return torch::stable::zero_(gradient);
  const auto* const from = static_cast<const char*>(g.const_data_ptr());
  void* const to = gradient.mutable_data_ptr();
  if (p.O > kLookedUpOutputs && dense_is_faster(p)) {
    dense_weight(p, from, to);
  } else {
    events_weight(p, from, to);
  }
  return gradient;
}

// Bytes of a block's gradient.
constexpr int64_t kGradientBytes = int64_t{4} << 20;

}  // namespace

void cpu::each_spike_gradient(const Outputs& outputs, DType dtype, int64_t T, int64_t samples,
                              const std::function<void(int64_t first, int64_t last, const void* gradient)>& f) {
  const int64_t size = element_size(dtype), row = outputs.size * size;
  const int64_t block = std::clamp<int64_t>(kGradientBytes / (T * outputs.columns * size), 1, samples);
  const Buffer gradient = scratch(T * block * outputs.columns * size), rows = scratch(T * block * row);
  const Tensor weight = matrix(dtype, outputs.weight, outputs.size, outputs.columns);
  for (int64_t first = 0; first < samples; first += block) {
    const int64_t last = std::min(first + block, samples), n = last - first;
    in_parallel(0, T, kGrain / (n * outputs.size), [&](int64_t a, int64_t b) {
      for (int64_t t = a; t < b; ++t) {
        const char* const from = static_cast<const char*>(outputs.grad) + (t * samples + first) * row;
        std::memcpy(rows.get() + t * n * row, from, static_cast<size_t>(n * row));
      }
    });
    call_out("aten::mm", matrix(dtype, rows.get(), T * n, outputs.size), weight,
             matrix(dtype, gradient.get(), T * n, outputs.columns));
    f(first, last, gradient.get());
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("spikes_as_bits(Tensor spk) -> (Tensor, int, float)");
  m.def("spikes_linear(Tensor bits, Tensor weight, Tensor? bias, Tensor graded, SymInt steps) -> Tensor");
  m.def("spikes_linear_weight(Tensor bits, Tensor grad, Tensor graded) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("spikes_as_bits", SNN_BOX(spikes_as_bits));
  m.impl("spikes_linear", SNN_BOX(spikes_linear));
  m.impl("spikes_linear_weight", SNN_BOX(spikes_linear_weight));
}

}  // namespace snnfast
