// The ops that a loop over connected neurons calls beside those of a step: memory from the pool, whose rows the steps
// write, and its spikes as bits, for the gradient of the weights between the steps.
#include <algorithm>
#include <array>
#include <cstdint>

#include <torch/csrc/stable/library.h>

#include "../../op/tensors.h"

namespace snnfast {
namespace {

// An uninitialised contiguous [rows, *] like [*].
Tensor rows_like(const Tensor& like, int64_t rows) {
  STD_TORCH_CHECK(rows >= 0, "rows: expected 0 or more");
  CpuBackend::check_device(like);
  dtype_of(like, "like");
  const Shape shape = Shape(like.sizes()).with(rows);
  elements(shape);
  return CpuBackend::empty(like, shape, contiguous_strides(shape), like.scalar_type());
}

// Bits that tell which values of [T, N] are not 0, eight steps to a byte: [(T + 7) / 8, N]. Words are compared without
// their sign, as -0 is no spike.
template <typename Word>
void pack(const void* from, int64_t T, int64_t N, uint8_t* to) {
  constexpr Word kMagnitude = static_cast<Word>(~Word{0}) >> 1;
  for (int64_t t = 0; t < T; t += 8, to += N) {
    std::fill_n(to, N, uint8_t{0});
    for (int64_t k = 0; k < 8 && t + k < T; ++k) {
      const Word* const row = static_cast<const Word*>(from) + (t + k) * N;
      const auto bit = static_cast<uint8_t>(1 << k);
      for (int64_t i = 0; i < N; ++i) to[i] |= (row[i] & kMagnitude) != 0 ? bit : uint8_t{0};
    }
  }
}

// [T, R, N] to [(T + 7) / 8, R, N]
Tensor spikes_as_bits(const Tensor& spk) {
  CpuBackend::check_device(spk);
  STD_TORCH_CHECK(spk.dim() == 3 && spk.is_contiguous(), "spk: expected contiguous [T, R, N]");
  const DType dtype = dtype_of(spk, "spk");
  const int64_t T = spk.size(0), N = spk.size(1) * spk.size(2);
  const Shape shape(std::array<int64_t, 3>{(T + 7) / 8, spk.size(1), spk.size(2)});
  Tensor bits = CpuBackend::empty(spk, shape, contiguous_strides(shape), ScalarType::Byte);
  auto* const to = static_cast<uint8_t*>(bits.mutable_data_ptr());
  const void* const from = spk.const_data_ptr();
  if (dtype == DType::kDouble) {
    pack<uint64_t>(from, T, N, to);
  } else if (dtype == DType::kFloat) {
    pack<uint32_t>(from, T, N, to);
  } else {
    pack<uint16_t>(from, T, N, to);
  }
  return bits;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def("rows_like(Tensor like, SymInt rows) -> Tensor");
  m.def("spikes_as_bits(Tensor spk) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("rows_like", SNN_BOX(rows_like));
  m.impl("spikes_as_bits", SNN_BOX(spikes_as_bits));
}

}  // namespace snnfast
