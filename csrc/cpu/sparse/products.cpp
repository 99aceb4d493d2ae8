#include "products.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../memory/pool.h"
#include "../unroll/dispatch.h"

namespace snnfast::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const EventKernels& current(){SNN_RETURN_OF_CURRENT_ISA(event_kernels())}

// Bytes of a vector of the instruction set in use.
int64_t vector_bytes() {
  return current_isa() == Isa::avx512 ? 64 : current_isa() == Isa::avx2 ? 32 : 16;
}

// Memory of the pool for the time of a call.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : data_(pool::take(static_cast<size_t>(bytes))) {}
  ~Scratch() { pool::give_back(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get() const { return data_; }

 private:
  void* data_;
};

// Tiles as narrow as the outputs allow, none with more vectors than `most`.
Tiles tiles_of(const Linear& p, int most) {
  const int lanes = static_cast<int>(vector_bytes() / acc_size(p.dtype));
  const int64_t vectors = (p.O + lanes - 1) / lanes, count = (vectors + most - 1) / most;
  return {count, static_cast<int>((vectors + count - 1) / count), lanes};
}

// Neuron-steps below which another thread costs more than it saves.
constexpr int64_t kGrain = 65536;

// Calls f with ranges of at least so many.
template <typename F>
void in_parallel(int64_t first, int64_t last, int64_t least, F&& f) {
  torch::stable::parallel_for(first, last, std::max<int64_t>(1, least), f);
}

// ---- events or the dense product

// Vectors of outputs up to which the library's dense product loses at any rate.
constexpr int64_t kFewVectors = 1;

// What events cost in time of the dense product: for each spike that of two neuron-steps, and before that, to pack the
// weights or to put the gradient together, that of some rows.
constexpr int64_t kStepsPerSpike = 2, kRowsToPack = 64;

// By the sizes and the number of spikes alone, not by the number of threads.
bool dense_is_faster(const Linear& p) {
  if (p.O * acc_size(p.dtype) <= kFewVectors * vector_bytes()) return false;
  const int64_t N = p.spikes.N, rows = p.spikes.T * p.spikes.R;
  if (rows <= kRowsToPack) return true;
  return kStepsPerSpike * current().count(p.spikes.bits, p.spikes.units() * N) >= (rows - kRowsToPack) * N;
}

// Bytes of rows that become numbers at once: they stay in the caches until the product has read them.
constexpr int64_t kDenseBytes = int64_t{16} << 20;

// Calls f with the spikes of `block` rows after the other as numbers [last - first, N].
template <typename F>
void each_dense_block(const Linear& p, int64_t block, F&& f) {
  const int64_t rows = p.spikes.T * p.spikes.R, row = p.spikes.N * element_size(p.dtype);
  const Scratch numbers(std::min(block, rows) * row);
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t last = std::min(first + block, rows);
    in_parallel(first, last, kGrain / p.spikes.N, [&](int64_t a, int64_t b) {
      void* const to = static_cast<char*>(numbers.get()) + (a - first) * row;
      current().as_numbers[static_cast<int>(p.dtype)](p.spikes, p.height, a, b, to);
    });
    f(first, last, numbers.get());
  }
}

int64_t dense_block(const Linear& p) {
  return std::max<int64_t>(1, kDenseBytes / (p.spikes.N * element_size(p.dtype)));
}

Tensor blob(DType dtype, const void* data, size_t dimensions, const int64_t* sizes, const int64_t* strides) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
  return torch::stable::from_blob(const_cast<void*>(data), {sizes, dimensions}, {strides, dimensions},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                  kTypes[static_cast<int>(dtype)]);
}

Tensor matrix(DType dtype, const void* data, int64_t rows, int64_t columns, bool transposed = false) {
  const int64_t sizes[] = {rows, columns}, strides[] = {transposed ? 1 : columns, transposed ? rows : 1};
  return blob(dtype, data, 2, sizes, strides);
}

Tensor vector(DType dtype, const void* data, int64_t size) {
  const int64_t stride = 1;
  return blob(dtype, data, 1, &size, &stride);
}

void mm(const Tensor& a, const Tensor& b, const Tensor& c) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b), from(c)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

void linear(const Tensor& rows, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& c) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(rows), from(weight), from(bias), from(c)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack, TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

void dense_forward(const Linear& p, const void* weight, const void* bias, void* y) {
  const int64_t N = p.spikes.N, row = p.O * element_size(p.dtype);
  const Tensor w = matrix(p.dtype, weight, p.O, N);
  std::optional<Tensor> b;
  if (bias != nullptr) b = vector(p.dtype, bias, p.O);
  each_dense_block(p, dense_block(p), [&](int64_t first, int64_t last, const void* numbers) {
    void* const to = static_cast<char*>(y) + first * row;
    linear(matrix(p.dtype, numbers, last - first, N), w, b, matrix(p.dtype, to, last - first, p.O));
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

void dense_weight(const Linear& p, const void* grad, void* gradient) {
  const int64_t N = p.spikes.N, row = p.O * element_size(p.dtype);
  // 16-bit gradients must not be rounded from block to block.
  const bool in_blocks = element_size(p.dtype) > 2;
  const int64_t rows = p.spikes.T * p.spikes.R, block = in_blocks ? dense_block(p) : rows;
  const Scratch part(block < rows ? p.O * N * element_size(p.dtype) : 1);
  each_dense_block(p, block, [&](int64_t first, int64_t last, const void* numbers) {
    const void* const from = static_cast<const char*>(grad) + first * row;
    void* const to = first == 0 ? gradient : part.get();
    const Tensor a = matrix(p.dtype, from, p.O, last - first, /*transposed=*/true);
    mm(a, matrix(p.dtype, numbers, last - first, N), matrix(p.dtype, to, p.O, N));
    if (first == 0) return;
    p.dtype == DType::kDouble ? add<double>(to, gradient, p.O * N) : add<float>(to, gradient, p.O * N);
  });
}

// ---- events

// Vectors of a tile: so that the weights of a thousand neurons stay in the L2 cache, and the sums of few are enough.
constexpr int kForwardVectors = 8, kWeightVectors = 4;

// Bytes of the sums that rows are added to at once: they are to stay in the L1 cache.
constexpr int64_t kSumBytes = int64_t{16} << 10;

// Bytes of gradient rows that are added up before the next ones: a panel of them is to stay in the L2 cache.
constexpr int64_t kPanelBytes = int64_t{1} << 20;

void events_forward(const Linear& p, const void* weight, const void* bias, void* y) {
  const auto dtype = static_cast<size_t>(p.dtype);
  const int64_t N = p.spikes.N;
  const Tiles tiles = tiles_of(p, kForwardVectors);
  const Scratch panels(tiles.count * tiles.width() * N * acc_size(p.dtype));
  const Packed packed{panels.get(), tiles};
  in_parallel(0, N, kGrain / p.O, [&](int64_t first, int64_t last) {
    current().pack_weight[dtype](weight, p.O, N, p.height, packed, first, last);
  });
  in_parallel(0, p.spikes.units(), kGrain / (8 * N * tiles.count), [&](int64_t first, int64_t last) {
    current().forward[dtype](p.spikes, packed, bias, p.O, y, first, last);
  });
}

void events_weight(const Linear& p, const void* grad, void* gradient) {
  const auto dtype = static_cast<size_t>(p.dtype);
  const int64_t N = p.spikes.N, units = p.spikes.units();
  const Tiles tiles = tiles_of(p, kWeightVectors);
  const int64_t row = tiles.width() * acc_size(p.dtype), block = kPanelBytes / (8 * row);
  const int64_t group = kSumBytes / row, groups = (N + group - 1) / group;
  const Scratch sums(tiles.count * N * row);
  // A thread takes groups of a tile, and of the next one: each sum is its own, whatever the other threads do.
  in_parallel(0, tiles.count * groups, kGrain / (units * 8 * group), [&](int64_t at, int64_t stop) {
    const Scratch panel(block * 8 * row);
    for (int64_t end; at < stop; at = end) {
      const int64_t tile = at / groups, first = at % groups * group;
      end = std::min(stop, (tile + 1) * groups);
      const int64_t last = std::min(first + (end - at) * group, N);
      char* const to = static_cast<char*>(sums.get()) + tile * N * row;
      std::fill(to + first * row, to + last * row, char{0});
      for (int64_t a = 0; a < units; a += block) {
        const int64_t b = std::min(a + block, units);
        current().pack_rows[dtype](p.spikes, grad, p.O, tiles, tile, a, b, panel.get());
        for (int64_t neuron = first; neuron < last; neuron += group) {
          current().add_rows[dtype](p.spikes, neuron, std::min(neuron + group, last), a, b, tiles, panel.get(), to);
        }
      }
      current().unpack_sums[dtype](to, tiles, tile, p.O, N, p.height, first, last, gradient);
    }
  });
}

}  // namespace

void spikes_linear(const Linear& p, const void* weight, const void* bias, void* y) {
  return dense_is_faster(p) ? dense_forward(p, weight, bias, y) : events_forward(p, weight, bias, y);
}

void spikes_linear_weight(const Linear& p, const void* grad, void* gradient) {
  return dense_is_faster(p) ? dense_weight(p, grad, gradient) : events_weight(p, grad, gradient);
}

// Bytes of a block's gradient.
constexpr int64_t kGradientBytes = int64_t{4} << 20;

void each_spike_gradient(const Outputs& outputs, DType dtype, int64_t T, int64_t samples,
                         const std::function<void(int64_t first, int64_t last, const void* gradient)>& f) {
  const int64_t size = element_size(dtype), row = outputs.size * size;
  const int64_t block = std::clamp<int64_t>(kGradientBytes / (T * outputs.columns * size), 1, samples);
  const Scratch gradient(T * block * outputs.columns * size), rows(T * block * row);
  const Tensor weight = matrix(dtype, outputs.weight, outputs.size, outputs.columns);
  for (int64_t first = 0; first < samples; first += block) {
    const int64_t last = std::min(first + block, samples), n = last - first;
    in_parallel(0, T, kGrain / (n * outputs.size), [&](int64_t a, int64_t b) {
      for (int64_t t = a; t < b; ++t) {
        const char* const from = static_cast<const char*>(outputs.grad) + (t * samples + first) * row;
        std::memcpy(static_cast<char*>(rows.get()) + t * n * row, from, static_cast<size_t>(n * row));
      }
    });
    mm(matrix(dtype, rows.get(), T * n, outputs.size), weight, matrix(dtype, gradient.get(), T * n, outputs.columns));
    f(first, last, gradient.get());
  }
}

}  // namespace snnfast::cpu
