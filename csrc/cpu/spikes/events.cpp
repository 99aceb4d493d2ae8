// Products that visit only the spikes: each of them adds a row of the weight, or of the gradient.
//
// Compiled once for each instruction set. The rules at the top of kernels.cpp hold here too. No result depends on how
// the work is divided, nor on the instruction set: one thread computes each sum, in the order of the neurons or of the
// rows. Each value that is added to a sum rounds it. A part of the neurons or rows is therefore summed by itself before
// it is added to the total: one long chain would round as often, but at larger sums.
#include "events.h"

#include <algorithm>
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

// A word as wide as a dtype: values are compared by their bits.
template <typename S>
using Word = std::conditional_t<sizeof(S) == 8, uint64_t, std::conditional_t<sizeof(S) == 4, uint32_t, uint16_t>>;

template <typename S>
bool pack(const void* values, int64_t steps, int64_t N, const void* height, uint8_t* bits) {
  using W = Word<S>;
  constexpr W kMagnitude = static_cast<W>(~W{0}) >> 1;  // without the sign, as -0 is no spike
  W one, others = 0;
  std::memcpy(&one, height, sizeof one);
  for (int64_t at = 0; at < N; at += kWord) {
    const int64_t n = least(kWord, N - at);
    uint8_t found[kWord] = {};
    for (int64_t k = 0; k < steps; ++k) {
      const W* const row = static_cast<const W*>(values) + k * N + at;
      const auto bit = static_cast<uint8_t>(1 << k);
      for (int64_t i = 0; i < n; ++i) {  // no branch: which values are spikes can't be predicted
        const W spikes = static_cast<W>(-static_cast<W>((row[i] & kMagnitude) != 0));
        found[i] |= static_cast<uint8_t>(spikes) & bit;
        others |= (row[i] ^ one) & spikes;
      }
    }
    std::memcpy(bits + at, found, static_cast<size_t>(n));
  }
  return others == 0;
}

#if !defined(__AVX2__)
// Gathers the lowest bits of eight bytes, whose other bits are 0.
SNN_HD uint64_t gather_bits(uint64_t ones) { return ones * 0x0102040810204080 >> 56; }
#endif

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
    mask |= gather_bits(eight >> bit & 0x0101010101010101) << (8 * i);
  }
  return mask;
#endif
}

// Returns a mask of the kWord bytes that are not 0.
inline uint64_t select_any(const uint8_t* bytes) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(v, v);
#elif defined(__AVX2__)
  const auto half = [&](int at) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + at));
    return static_cast<uint32_t>(~_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256())));
  };
  return half(0) | uint64_t{half(32)} << 32;
#else
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f;
  uint64_t mask = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, sizeof eight);
    mask |= gather_bits((((eight & kLow) + kLow) | eight) >> 7 & 0x0101010101010101) << (8 * i);
  }
  return mask;
#endif
}

#if !defined(__AVX512F__)
// The places of the bits that are set in each byte, in ascending order, and their number.
struct Places {
  uint8_t of[256][8] = {}, number[256] = {};

  constexpr Places() {
    for (int byte = 0; byte < 256; ++byte) {
      for (uint8_t place = 0; place < 8; ++place) {
        if ((byte >> place & 1) != 0) of[byte][number[byte]++] = place;
      }
    }
  }
};
constexpr Places kPlaces;
#endif

// Lists the neurons whose bit is set in `mask`, in ascending order, and returns their number. The list needs room for
// 16 more. No loop runs over the bits of the mask: its end would be mispredicted.
SNN_HD int list_word(uint64_t mask, int first, uint16_t* list) {
#if defined(__AVX512F__)
  int found = 0;
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i neurons = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  for (int i = 0; i < kWord; i += 16, mask >>= 16) {
    const auto some = static_cast<__mmask16>(mask);
    const __m256i few = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(some, neurons));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(list + found), few);
    found += __builtin_popcount(some);
    neurons = _mm512_add_epi32(neurons, _mm512_set1_epi32(16));
  }
  return found;
#else
  const int count = __builtin_popcountll(mask);
  if (count <= 4) {
    constexpr uint64_t kEnd = uint64_t{1} << 63;
    for (int i = 0; i < 4; ++i, mask &= mask - 1) list[i] = static_cast<uint16_t>(first + __builtin_ctzll(mask | kEnd));
    return count;
  }
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  typedef uint16_t Neurons __attribute__((vector_size(16)));
  for (int i = 0, found = 0; i < kWord; i += 8, mask >>= 8) {
    const auto byte = static_cast<uint8_t>(mask);
    Bytes places;
    std::memcpy(&places, kPlaces.of[byte], sizeof places);
    const Neurons neurons = __builtin_convertvector(places, Neurons) + static_cast<uint16_t>(first + i);
    std::memcpy(list + found, &neurons, sizeof neurons);
    found += kPlaces.number[byte];
  }
  return count;
#endif
}

// Lists those of n neurons whose bytes `select` selects, kWord at a time, and returns their number.
template <typename Select>
SNN_HD int list_neurons(const uint8_t* bytes, int64_t n, uint16_t* list, Select&& select) {
  int64_t at = 0;
  int found = 0;
  for (; at + kWord <= n; at += kWord) found += list_word(select(bytes + at), static_cast<int>(at), list + found);
  if (at == n) return found;
  uint8_t rest[kWord] = {};
  std::memcpy(rest, bytes + at, static_cast<size_t>(n - at));
  return found + list_word(select(rest), static_cast<int>(at), list + found);
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
    std::fill(to + spikes.steps(unit) * width, to + 8 * width, A(0));
  }
}

// ---- forward

// Adds the sum of the listed rows to `totals`. Two chains, so that an addition need not wait for the one before.
template <int Vectors, typename A>
SNN_HD void add_listed(const A* rows, const uint16_t* list, int listed, Vec<A> (&totals)[Vectors]) {
  using V = Vec<A>;
  constexpr int kWidth = Vectors * V::kSize;
  V even[Vectors], odd[Vectors];
  for (int v = 0; v < Vectors; ++v) even[v] = odd[v] = V(A(0));
  int i = 0;
  for (; i + 2 <= listed; i += 2) {
    const A *const first = rows + list[i] * kWidth, *const second = rows + list[i + 1] * kWidth;
    for (int v = 0; v < Vectors; ++v) {
      even[v] += V::load(first + v * V::kSize);
      odd[v] += V::load(second + v * V::kSize);
    }
  }
  if (i < listed) {
    for (int v = 0; v < Vectors; ++v) even[v] += V::load(rows + list[i] * kWidth + v * V::kSize);
  }
  for (int v = 0; v < Vectors; ++v) totals[v] += even[v] + odd[v];
}

template <typename S, int Vectors>
void forward_tile(const SpikeBits& spikes, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
                  int64_t last, int64_t tile, const EventList* lists) {
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
      V sums[Vectors];
      for (int v = 0; v < Vectors; ++v) sums[v] = V::load(start + v * V::kSize);
      for (int64_t from = 0; from < N; from += kListed, ++lists) {
        add_listed(panel + from * kWidth, lists->neurons, lists->listed, sums);
      }
      S* const out = static_cast<S*>(y) + (row + k * spikes.R) * O + at;
      if constexpr (std::is_same_v<S, A>) {
        if (n == kWidth) {
          for (int v = 0; v < Vectors; ++v) sums[v].store(out + v * V::kSize);
          continue;
        }
      }
      for (int v = 0; v < Vectors; ++v) sums[v].store(sum + v * V::kSize);
      store_row(out, n, sum);
    }
  }
}

template <typename S>
void forward(const SpikeBits& spikes, const Packed& weight, const void* bias, int64_t O, void* y, int64_t first,
             int64_t last, EventList* lists) {
  EventList* to = lists;
  for (int64_t unit = first; unit < last; ++unit) {
    for (int k = 0; k < spikes.steps(unit); ++k) {
      for (int64_t from = 0; from < spikes.N; from += kListed, ++to) {
        to->listed = list_neurons(spikes.bits + unit * spikes.N + from, least(kListed, spikes.N - from), to->neurons,
                                  [&](const uint8_t* bytes) { return select_bit(bytes, k); });
      }
    }
  }
  with_vectors(weight.tiles.vectors, [&](auto vectors) {
    for (int64_t tile = 0; tile < weight.tiles.count; ++tile) {
      forward_tile<S, decltype(vectors)::value>(spikes, weight, bias, O, y, first, last, tile, lists);
    }
  });
}

// ---- weight gradient

// Transposes a block of 8 x 8 bytes: byte j of row i becomes byte i of row j.
SNN_HD void transpose(uint64_t (&rows)[8]) {
  const auto swap = [&](int apart, uint64_t low) {
    for (int i = 0; i < 8; ++i) {
      if ((i & apart) != 0) continue;
      uint64_t &a = rows[i], &b = rows[i + apart];
      const uint64_t other = (a >> (8 * apart) ^ b) & low;
      a ^= other << (8 * apart);
      b ^= other;
    }
  };
  swap(4, 0x00000000ffffffff);
  swap(2, 0x0000ffff0000ffff);
  swap(1, 0x00ff00ff00ff00ff);
}

// Of up to kSummed units, the rows in which each of up to kWord neurons spikes.
struct RowLists {
  uint16_t rows[kWord * 8 * kSummed + 16];
  int begin[kWord + 1];  // in `rows`, of the list of each neuron

  SNN_HD RowLists(const SpikeBits& spikes, int64_t neuron, int64_t neurons, int64_t first, int64_t last) {
    begin[0] = 0;
    for (int64_t at = 0; at < neurons; at += 8) {
      const int64_t n = least(8, neurons - at);
      uint64_t masks[kSummed / 8][8] = {};
      const uint8_t* bytes = spikes.bits + first * spikes.N + neuron + at;
      for (int64_t i = 0; i < last - first; ++i, bytes += spikes.N) {
        std::memcpy(&masks[i / 8][i % 8], bytes, static_cast<size_t>(n));
      }
      for (auto& block : masks) transpose(block);
      for (int64_t j = 0; j < n; ++j) {
        int found = begin[at + j];
        for (int i = 0; i < kSummed / 8; ++i) found += list_word(masks[i][j], 64 * i, rows + found);
        begin[at + j + 1] = found;
      }
    }
  }
};

template <typename S>
void add_rows(const SpikeBits& spikes, const Packed& rows, int64_t first_unit, int64_t last_unit, int64_t begin,
              int64_t end, void* totals) {
  using A = Opmath<S>;
  using V = Vec<A>;
  const int64_t tiles = rows.tiles.count, units = last_unit - first_unit, summed = summed_units(spikes);
  with_vectors(rows.tiles.vectors, [&](auto constant) {
    constexpr int kVectors = decltype(constant)::value, kWidth = kVectors * V::kSize;
    for (int64_t first = first_unit; first < last_unit; first += summed) {
      const int64_t last = least(first + summed, last_unit);
      for (int64_t at = begin, next; at < end; at = next) {
        const int64_t word = at / tiles, neuron = word * kWord, n = least(kWord, spikes.N - neuron);
        next = least((word + 1) * tiles, end);
        const RowLists lists(spikes, neuron, n, first, last);
        for (int64_t tile = at - word * tiles; tile < next - word * tiles; ++tile) {
          const A* const panel = static_cast<const A*>(rows.data) + (tile * units + first - first_unit) * 8 * kWidth;
          A* to = static_cast<A*>(totals) + (tile * spikes.N + neuron) * kWidth;
          for (int64_t j = 0; j < n; ++j, to += kWidth) {
            V sums[kVectors];
            for (int v = 0; v < kVectors; ++v) sums[v] = V::load(to + v * V::kSize);
            add_listed(panel, lists.rows + lists.begin[j], lists.begin[j + 1] - lists.begin[j], sums);
            for (int v = 0; v < kVectors; ++v) sums[v].store(to + v * V::kSize);
          }
        }
      }
    }
  });
}

// Fills a table with the sums of each subset of four rows.
template <int Vectors, typename A>
SNN_HD void add_subsets(const A* rows, A* table) {
  using V = Vec<A>;
  constexpr int kWidth = Vectors * V::kSize;
  for (int v = 0; v < Vectors; ++v) {
    V sums[16];
    sums[0] = V(A(0));
    for (int k = 0; k < 4; ++k) {
      const V row = V::load(rows + k * kWidth + v * V::kSize);
      for (int i = 0; i < 1 << k; ++i) sums[(1 << k) + i] = sums[i] + row;
    }
    for (int i = 0; i < 16; ++i) sums[i].store(table + i * kWidth + v * V::kSize);
  }
}

// Bytes of the sums of the neurons whose bytes are looked up at once: they stay in the L1 cache with the tables.
constexpr int kLookedUpBytes = 16 << 10;

template <typename S, int Vectors>
void look_up(const SpikeBits& spikes, const void* rows, int64_t first_unit, int64_t last_unit, int64_t neuron,
             int64_t neurons, Opmath<S>* totals) {
  using A = Opmath<S>;
  using V = Vec<A>;
  constexpr int kWidth = Vectors * V::kSize;
  alignas(64) A low[16 * kWidth], high[16 * kWidth], sums[kLookedUpBytes / sizeof(A)];
  uint16_t list[kLookedUpBytes / (kWidth * sizeof(A)) + 16];
  const A* row = static_cast<const A*>(rows);
  const int64_t summed = summed_units(spikes);
  for (int64_t first = first_unit; first < last_unit; first += summed) {
    std::fill_n(sums, neurons * kWidth, A(0));
    for (int64_t unit = first; unit < least(first + summed, last_unit); ++unit, row += 8 * kWidth) {
      add_subsets<Vectors>(row, low);
      add_subsets<Vectors>(row + 4 * kWidth, high);
      const uint8_t* const bytes = spikes.bits + unit * spikes.N + neuron;
      const int listed = list_neurons(bytes, neurons, list, select_any);
      for (int i = 0; i < listed; ++i) {
        const int byte = bytes[list[i]];
        const A *const a = low + (byte & 15) * kWidth, *const b = high + (byte >> 4) * kWidth;
        A* const sum = sums + list[i] * kWidth;
        for (int v = 0; v < kWidth; v += V::kSize) {
          (V::load(sum + v) + (V::load(a + v) + V::load(b + v))).store(sum + v);
        }
      }
    }
    for (int64_t i = 0; i < neurons * kWidth; i += V::kSize) {
      (V::load(totals + i) + V::load(sums + i)).store(totals + i);
    }
  }
}

template <typename S>
void add_subsets_of_rows(const SpikeBits& spikes, const Packed& rows, int64_t first_unit, int64_t last_unit,
                         int64_t begin, int64_t end, void* totals) {
  using A = Opmath<S>;
  with_vectors(rows.tiles.vectors, [&](auto constant) {
    constexpr int kVectors = decltype(constant)::value, kWidth = kVectors * Vec<A>::kSize;
    if constexpr (kWidth <= kLookedUpOutputs) {
      constexpr int64_t kNeurons = kLookedUpBytes / (kWidth * static_cast<int>(sizeof(A))) / kWord * kWord;
      const int64_t last = least(end * kWord, spikes.N);
      for (int64_t neuron = begin * kWord; neuron < last; neuron += kNeurons) {
        look_up<S, kVectors>(spikes, rows.data, first_unit, last_unit, neuron, least(kNeurons, last - neuron),
                             static_cast<A*>(totals) + neuron * kWidth);
      }
    }
  });
}

template <typename S>
void unpack_totals(const void* totals, const Tiles& tiles, int64_t tile, int64_t O, int64_t N, const Height& height,
                   int64_t first, int64_t last, void* gradient) {
  using A = Opmath<S>;
  const int64_t width = tiles.width();
  const int64_t outputs = least(width, O - tile * width);
  const A* const from = static_cast<const A*>(totals);
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
      SNN_EACH(pack),
      SNN_EACH(pack_weight),
      SNN_EACH(pack_rows),
      SNN_EACH(forward),
      SNN_EACH(add_rows),
      SNN_EACH(add_subsets_of_rows),
      SNN_EACH(unpack_totals),
      SNN_EACH(as_numbers),
  };
#undef SNN_EACH
  return kAll;
}

}  // namespace snnfast::cpu::SNN_ISA
