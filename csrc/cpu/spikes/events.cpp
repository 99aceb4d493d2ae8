// Products that visit only the spikes: each of them adds a row of the weight, or of the gradient.
//
// Compiled once for each instruction set. The rules at the top of kernels.cpp hold here too. No result depends on how
// the work is divided: one thread computes each sum, in the order of the neurons or of the rows.
#include "events.h"

#include <type_traits>

#include "../convert.h"
#include "../vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

constexpr int kMostVectors = 8;

SNN_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- bits

int64_t count(const uint8_t* bits, int64_t bytes) {
  int64_t found = 0, i = 0;
  for (uint64_t eight; i + 8 <= bytes; i += 8) {
    std::memcpy(&eight, bits + i, sizeof eight);
    found += __builtin_popcountll(eight);
  }
  for (; i < bytes; ++i) found += __builtin_popcount(bits[i]);
  return found;
}

// Returns a mask of the kWord bytes in which `bit` is set.
inline uint64_t select_bit(const uint8_t* bytes, int bit) {
#if defined(__AVX512BW__)
  return _mm512_test_epi8_mask(_mm512_loadu_si512(bytes), _mm512_set1_epi8(static_cast<char>(1 << bit)));
#elif defined(__AVX2__)
  const __m128i up = _mm_cvtsi32_si128(7 - bit);  // the bit becomes the highest of its byte
  const auto half = [&](int at) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + at));
    return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_sll_epi16(v, up))));
  };
  return half(0) | half(32) << 32;
#else
  uint64_t mask = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, sizeof eight);
    const uint64_t ones = eight >> bit & 0x0101010101010101;
    mask |= (ones * 0x0102040810204080 >> 56) << (8 * i);
  }
  return mask;
#endif
}

// The number of neurons whose events are listed at once.
constexpr int kListed = 2048;

// Lists the neurons whose bit is set in `mask`, in ascending order, and returns their number. The list needs room for
// 16 more.
SNN_HD int list_word(uint64_t mask, int first, uint16_t* list) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i neurons = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  int found = 0;
  for (int i = 0; i < kWord; i += 16, mask >>= 16) {
    const auto some = static_cast<__mmask16>(mask);
    const __m256i few = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(some, neurons));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(list + found), few);
    found += __builtin_popcount(some);
    neurons = _mm512_add_epi32(neurons, _mm512_set1_epi32(16));
  }
  return found;
#else
  // Four at a time, even if fewer are left: a branch for each of them would be mispredicted.
  const int count = __builtin_popcountll(mask);
  constexpr uint64_t kEnd = uint64_t{1} << 63;
  for (int found = 0; found < count; found += 4) {
    for (int i = 0; i < 4; ++i, mask &= mask - 1)
      list[found + i] = static_cast<uint16_t>(first + __builtin_ctzll(mask | kEnd));
  }
  return count;
#endif
}

// Calls f with the mask of each kWord of n neurons, and the first neuron of each.
template <typename F>
SNN_HD void each_word(const uint8_t* bytes, int64_t n, int bit, F&& f) {
  int64_t at = 0;
  for (; at + kWord <= n; at += kWord) f(select_bit(bytes + at, bit), static_cast<int>(at));
  if (at == n) return;
  uint8_t rest[kWord] = {};
  std::memcpy(rest, bytes + at, static_cast<size_t>(n - at));
  f(select_bit(rest, bit), static_cast<int>(at));
}

// Calls f with each of at most kListed neurons whose bit is set, and whether it is an odd one among them. `begin` is
// called before the first. A loop over the bits of a mask ends with a mispredicted branch. If f adds so few vectors
// that it takes less time than that, the loop runs over a list.
template <int Vectors, typename Begin, typename F>
SNN_HD void each_event(const uint8_t* bytes, int64_t n, int bit, Begin&& begin, F&& f) {
  if constexpr (Vectors > 2) {
    each_word(bytes, n, bit, [&](uint64_t mask, int first) {
      if (mask == 0) return;
      begin();
      for (; mask != 0; mask &= mask - 1) f(first + __builtin_ctzll(mask), std::false_type{});
    });
  } else {
    uint16_t list[kListed + 16];
    int found = 0, event = 0;
    each_word(bytes, n, bit, [&](uint64_t mask, int first) { found += list_word(mask, first, list + found); });
    begin();
    for (; event + 2 <= found; event += 2) {
      f(static_cast<int>(list[event]), std::false_type{});
      f(static_cast<int>(list[event + 1]), std::true_type{});
    }
    if (event < found) f(static_cast<int>(list[event]), std::false_type{});
  }
}

// ---- tiles

template <typename A>
A height_of(const Height& height, int64_t neuron) {
  return height.data == nullptr ? static_cast<A>(height.value) : static_cast<const A*>(height.data)[neuron];
}

// Calls f with the number of vectors of a tile as a constant.
template <int Vectors = kMostVectors, typename F>
void with_vectors(int vectors, F&& f) {
  if constexpr (Vectors > 1) {
    if (vectors < Vectors) return with_vectors<Vectors - 1>(vectors, f);
  }
  f(std::integral_constant<int, Vectors>{});
}

template <typename S>
void pack_weight(const void* weight, int64_t O, int64_t N, const Height& height, const Packed& packed, int64_t first,
                 int64_t last) {
  using A = Opmath<S>;
  const S* const from = static_cast<const S*>(weight);
  A* const to = static_cast<A*>(packed.data);
  const int64_t width = packed.tiles.width();
  constexpr int64_t kStrip = 16;  // neurons whose rows are written at once, so that whole cache lines are read
  for (int64_t tile = 0; tile < packed.tiles.count; ++tile) {
    for (int64_t j0 = first; j0 < last; j0 += kStrip) {
      const int64_t strip = least(kStrip, last - j0);
      A* const rows = to + (tile * N + j0) * width;
      for (int64_t o = 0; o < width; ++o) {
        const int64_t output = tile * width + o;
        for (int64_t j = 0; j < strip; ++j) {
          rows[j * width + o] = output < O ? widen(from[output * N + j0 + j]) * height_of<A>(height, j0 + j) : A(0);
        }
      }
    }
  }
}

template <typename S>
void pack_rows(const SpikeBits& spikes, const void* rows, int64_t O, const Tiles& tiles, int64_t tile, int64_t first,
               int64_t last, void* panel) {
  using A = Opmath<S>;
  const int64_t width = tiles.width(), n = least(width, O - tile * width);
  A* to = static_cast<A*>(panel);
  for (int64_t unit = first; unit < last; ++unit, to += 8 * width) {
    const int64_t row = spikes.step(unit) * spikes.R + spikes.sample(unit);
    const S* from = static_cast<const S*>(rows) + row * O + tile * width;
    for (int k = 0; k < spikes.steps(unit); ++k, from += spikes.R * O) {
      load_row(from, static_cast<int>(n), to + k * width);
      for (int64_t o = n; o < width; ++o) to[k * width + o] = A(0);
    }
  }
}

// ---- forward

template <typename S, int Vectors>
void forward_tile(const SpikeBits& spikes, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
                  int64_t last, int64_t tile) {
  using A = Opmath<S>;
  using V = Vec<A>;
  constexpr int kWidth = Vectors * V::kSize;
  const int64_t N = spikes.N, at = tile * kWidth;
  const int n = static_cast<int>(least(kWidth, O - at));
  const A* const panel = static_cast<const A*>(weight.data) + tile * N * kWidth;
  alignas(64) A start[kWidth] = {}, sum[kWidth];
  if (bias != nullptr) load_row(static_cast<const S*>(bias) + at, n, start);
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t row = spikes.step(unit) * spikes.R + spikes.sample(unit);
    for (int k = 0; k < spikes.steps(unit); ++k) {
      V even[Vectors], odd[Vectors];  // two sums, so that an addition need not wait for the one before
      for (int v = 0; v < Vectors; ++v) even[v] = V::load(start + v * V::kSize);
      for (int v = 0; v < Vectors; ++v) odd[v] = V(A(0));
      for (int64_t from = 0; from < N; from += kListed) {
        const A* const rows = panel + from * kWidth;
        const int64_t n_listed = least(kListed, N - from);
        each_event<Vectors>(
            spikes.bits + unit * N + from, n_listed, k, [] {},
            [&](int neuron, auto is_odd) {
              V(&sums)[Vectors] = decltype(is_odd)::value ? odd : even;
              for (int v = 0; v < Vectors; ++v) sums[v] += V::load(rows + neuron * kWidth + v * V::kSize);
            });
      }
      for (int v = 0; v < Vectors; ++v) even[v] += odd[v];
      S* const out = static_cast<S*>(y) + (row + k * spikes.R) * O + at;
      if constexpr (std::is_same_v<S, A>) {
        if (n == kWidth) {
          for (int v = 0; v < Vectors; ++v) even[v].store(out + v * V::kSize);
          continue;
        }
      }
      for (int v = 0; v < Vectors; ++v) even[v].store(sum + v * V::kSize);
      store_row(out, n, sum);
    }
  }
}

template <typename S>
void forward(const SpikeBits& spikes, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
             int64_t last) {
  with_vectors(weight.tiles.vectors, [&](auto vectors) {
    for (int64_t tile = 0; tile < weight.tiles.count; ++tile) {
      forward_tile<S, decltype(vectors)::value>(spikes, weight, bias, O, y, first, last, tile);
    }
  });
}

// ---- weight gradient

template <typename S>
void add_rows(const SpikeBits& spikes, int64_t first_neuron, int64_t last_neuron, int64_t first, int64_t last,
              const Tiles& tiles, const void* panel, void* sums) {
  using A = Opmath<S>;
  using V = Vec<A>;
  with_vectors(tiles.vectors, [&](auto constant) {
    constexpr int kVectors = decltype(constant)::value, kWidth = kVectors * V::kSize;
    const A* row = static_cast<const A*>(panel);
    for (int64_t unit = first; unit < last; ++unit) {
      const uint8_t* const bytes = spikes.bits + unit * spikes.N + first_neuron;
      A* const to = static_cast<A*>(sums) + first_neuron * kWidth;
      for (int k = 0; k < spikes.steps(unit); ++k) {
        V g[kVectors];
        const auto load = [&] {
          for (int v = 0; v < kVectors; ++v) g[v] = V::load(row + k * kWidth + v * V::kSize);
        };
        each_event<kVectors>(bytes, last_neuron - first_neuron, k, load, [&](int neuron, auto) {
          A* const sum = to + neuron * kWidth;
          for (int v = 0; v < kVectors; ++v) (V::load(sum + v * V::kSize) + g[v]).store(sum + v * V::kSize);
        });
      }
      row += 8 * kWidth;
    }
  });
}

template <typename S>
void unpack_sums(const void* sums, const Tiles& tiles, int64_t tile, int64_t O, int64_t N, const Height& height,
                 int64_t first, int64_t last, void* gradient) {
  using A = Opmath<S>;
  const int64_t width = tiles.width();
  const int64_t outputs = least(width, O - tile * width);
  const A* const from = static_cast<const A*>(sums);
  alignas(64) A row[kWord];
  for (int64_t at = first; at < last; at += kWord) {
    const int64_t n = least(kWord, last - at);
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t j = 0; j < n; ++j) row[j] = from[(at + j) * width + o] * height_of<A>(height, at + j);
      store_row(static_cast<S*>(gradient) + (tile * width + o) * N + at, static_cast<int>(n), row);
    }
  }
}

// ---- as numbers

template <typename S>
void as_numbers(const SpikeBits& spikes, const Height& height, int64_t first, int64_t last, void* out) {
  using A = Opmath<S>;
  const int64_t N = spikes.N;
  S* to = static_cast<S*>(out);
  alignas(64) A row[kWord];
  for (int64_t i = first; i < last; ++i, to += N) {
    const int64_t t = i / spikes.R, sample = i % spikes.R;
    const uint8_t* const bytes = spikes.bits + (t / 8 * spikes.R + sample) * N;
    const int bit = static_cast<int>(t % 8);
    for (int64_t at = 0; at < N; at += kWord) {
      const int64_t n = least(kWord, N - at);
      for (int64_t j = 0; j < n; ++j) {
        const A one = height_of<A>(height, at + j);
        row[j] = (bytes[at + j] >> bit & 1) != 0 ? one : A(0);
      }
      store_row(to + at, static_cast<int>(n), row);
    }
  }
}

}  // namespace

const EventKernels& event_kernels() {
#define SNN_EACH(f)                           \
  {                                           \
    f<float>, f<double>, f<Half>, f<BFloat16> \
  }
  static constexpr EventKernels kAll{
      count,
      SNN_EACH(pack_weight),
      SNN_EACH(pack_rows),
      SNN_EACH(forward),
      SNN_EACH(add_rows),
      SNN_EACH(unpack_sums),
      SNN_EACH(as_numbers),
  };
#undef SNN_EACH
  return kAll;
}

}  // namespace snnfast::cpu::SNN_ISA
