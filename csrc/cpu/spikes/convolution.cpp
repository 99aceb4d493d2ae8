// Compiled once for each instruction set. The rules at the top of ../unroll/kernels.cpp hold here too.
//
// Sums stay in registers while events are added to them. The order of a sum is the same for all instruction sets, which
// also excludes multiply_add.
#include "convolution.h"

#include <cstring>

#include "../vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

using V = Vec<float>;

// Places are in units of 8 bytes: 16 bits suffice, and the processor multiplies by 8 as it loads.
constexpr int kUnit = 8;

SNN_HD constexpr int least(int a, int b) { return a < b ? a : b; }
SNN_HD int most(int a, int b) { return a > b ? a : b; }

// Returns a bit for each of n <= 16 values that is not 0.
SNN_HD uint32_t events_among(const float* x, int n) {
#if defined(__AVX512F__)
  const auto some = static_cast<__mmask16>((1u << n) - 1);
  return _mm512_cmp_ps_mask(_mm512_maskz_loadu_ps(some, x), _mm512_setzero_ps(), _CMP_NEQ_UQ);
#else
  uint32_t bits = 0;
  int i = 0;
#if defined(__SSE2__) || defined(__ARM_NEON)
  for (; i + V::kSize <= n; i += V::kSize) {
    const auto other = V::load(x + i).r != V(0.0f).r;
#if defined(__AVX__)
    bits |= static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(other))) << i;
#elif defined(__SSE2__)
    bits |= static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(other))) << i;
#else
    constexpr uint32_t kBits[] = {1, 2, 4, 8};
    bits |= vaddvq_u32(vandq_u32(reinterpret_cast<uint32x4_t>(other), vld1q_u32(kBits))) << i;
#endif
  }
#endif
  for (; i < n; ++i) bits |= static_cast<uint32_t>(x[i] != 0) << i;
  return bits;
#endif
}

// Whether one of the n <= 16 values whose bits are set is not `value`.
SNN_HD bool other_among(const float* x, uint32_t events, float value) {
#if defined(__AVX512F__)
  const auto some = static_cast<__mmask16>(events);
  return _mm512_mask_cmp_ps_mask(some, _mm512_maskz_loadu_ps(some, x), _mm512_set1_ps(value), _CMP_NEQ_UQ) != 0;
#else
  bool other = false;
  for (; events != 0; events &= events - 1) other |= x[__builtin_ctz(events)] != value;
  return other;
#endif
}

// ---- forward: the events that reach each output

// Calls f with the image, its rows of the output, and the rows of the input that these see, for each image of a band.
template <typename F>
SNN_HD void each_image(const Convolution& p, int64_t first_row, int rows, F&& f) {
  for (int done = 0; done < rows;) {
    const int64_t row = first_row + done, image = row / p.Y;
    const int y0 = static_cast<int>(row - image * p.Y), y1 = least(p.Y, y0 + rows - done);
    const int64_t above = int64_t{y0} * p.stride_y - p.padding_y;
    const int64_t below = int64_t{y1 - 1} * p.stride_y - p.padding_y + p.kernel_y;
    const int in0 = static_cast<int>(above < 0 ? 0 : above < p.H ? above : p.H);
    const int in1 = static_cast<int>(below < in0 ? in0 : below < p.H ? below : p.H);
    f(image, y0, y1, in0, in1);
    done += y1 - y0;
  }
}

// Lists the events of some channels. A place is that of the channel in the row of the image, modulo 2^16. Returns false
// if one has not got the value that all should have.
template <bool Valued>
bool find(const Convolution& p, const float* images, int first_channel, int channels, int distance, int unit,
          float value, int64_t first_row, int rows, const BandLists& lists) {
  int32_t found = 0;
  int32_t* pixel = lists.pixel;
  bool other = false;
  each_image(p, first_row, rows, [&](int64_t image, int, int, int in0, int in1) {
    const float* x = images + (image * p.H + in0) * p.W * p.C + first_channel;
    for (int y = in0; y < in1; ++y) {
      for (int column = 0; column < p.W; ++column, x += p.C) {
        *pixel++ = found;
        for (int c = 0; c < channels; c += 16) {
          const int n = least(16, channels - c);
          const uint32_t events = events_among(x + c, n);
          if constexpr (!Valued) other |= other_among(x + c, events, value);
          const uint32_t first = static_cast<uint32_t>(column) * distance + c;
#if defined(__AVX512F__)
          const auto some = static_cast<__mmask16>(events);
          const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
          const __m512i places =
              _mm512_mullo_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)), _mm512_set1_epi32(unit));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(lists.at + found),
                              _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(some, places)));
          if constexpr (Valued) {
            _mm512_storeu_ps(lists.value + found, _mm512_maskz_compress_ps(some, _mm512_maskz_loadu_ps(some, x + c)));
          }
          found += __builtin_popcount(events);
#else
          for (uint32_t rest = events; rest != 0; rest &= rest - 1, ++found) {
            const int i = __builtin_ctz(rest);
            lists.at[found] = static_cast<uint16_t>((first + i) * unit);
            if constexpr (Valued) lists.value[found] = x[c + i];
          }
#endif
        }
      }
    }
  });
  *pixel = found;
  return !other;
}

typedef uint16_t Places __attribute__((vector_size(kVectorBytes)));
typedef uint16_t UnalignedPlaces __attribute__((vector_size(kVectorBytes), aligned(2), may_alias));

// Lists the events that reach each output by some rows of the kernel, in multiples of kChains: places of the zeros
// behind the weights fill them up.
template <bool Valued>
void merge(const Convolution& p, int first_kernel_row, int kernel_rows, int distance, int unit, uint16_t zeros,
           int64_t first_row, int rows, const BandLists& lists) {
  constexpr int kPlaces = kVectorBytes / 2;
  int32_t listed = 0;
  int32_t* output = lists.output;
  const int32_t* pixel = lists.pixel;
  each_image(p, first_row, rows, [&](int64_t, int y0, int y1, int in0, int in1) {
    for (int y = y0; y < y1; ++y) {
      const int above = y * p.stride_y - p.padding_y + first_kernel_row;
      const int begin = most(above, in0), end = least(above + kernel_rows, in1);
      for (int x = 0; x < p.X; ++x) {
        *output++ = listed;
        const int left = x * p.stride_x - p.padding_x, from = most(left, 0), to = least(left + p.kernel_x, p.W);
        for (int in = begin; in < end && from < to; ++in) {
          const int32_t* const row = pixel + int64_t{in - in0} * p.W;
          const int32_t first = row[from], number = row[to] - first;
          const auto shift = static_cast<uint16_t>(((in - above) * p.kernel_x - left) * distance * unit);
          for (int i = 0; i < number; i += kPlaces) {
            const Places places = *reinterpret_cast<const UnalignedPlaces*>(lists.at + first + i);
            *reinterpret_cast<UnalignedPlaces*>(lists.reaching + listed + i) = places + shift;
          }
          if constexpr (Valued) {
            for (int i = 0; i < number; i += V::kSize) {
              V::load(lists.value + first + i).store(lists.reaching_value + listed + i);
            }
          }
          listed += number;
        }
        for (int i = 0; i < kChains; ++i) {
          lists.reaching[listed + i] = zeros;
          if constexpr (Valued) lists.reaching_value[listed + i] = 0;
        }
        listed = (listed + kChains - 1) / kChains * kChains;
      }
    }
    pixel += int64_t{in1 - in0} * p.W;
  });
  *output = listed;
}

// Adds up the weights of the events that reach each of some outputs, and adds the sums to these, or to the bias.
template <int Vectors, bool Valued>
void gather(const BandLists& lists, int64_t pixels, const float* weights, const float* bias, float value, float* out,
            int64_t stride) {
  const char* const base = reinterpret_cast<const char*>(weights);
  const V factor(Valued ? 1.0f : value);
  for (int64_t i = 0; i < pixels; ++i, out += stride) {
    V sums[kChains][Vectors];
    SNN_UNROLL for (int k = 0; k < kChains; ++k) { SNN_UNROLL for (int v = 0; v < Vectors; ++v) sums[k][v] = V(0); }
    const int32_t end = lists.output[i + 1];
    for (int32_t event = lists.output[i]; event < end; event += kChains) {
      SNN_UNROLL for (int k = 0; k < kChains; ++k) {
        const auto* const row = reinterpret_cast<const float*>(base + size_t{lists.reaching[event + k]} * kUnit);
        SNN_UNROLL for (int v = 0; v < Vectors; ++v) {
          const V weight = V::load(row + v * V::kSize);
          if constexpr (Valued) {
            sums[k][v] += V(lists.reaching_value[event + k]) * weight;
          } else {
            sums[k][v] += weight;
          }
        }
      }
    }
    SNN_UNROLL for (int v = 0; v < Vectors; ++v) {
      const V sum = (sums[0][v] + sums[2][v]) + (sums[1][v] + sums[3][v]);
      const V before = V::load((bias != nullptr ? bias : out) + v * V::kSize);
      (before + factor * sum).store(out + v * V::kSize);
    }
  }
}

template <bool Valued>
bool forward_of(const Convolution& p, const Chunks& chunks, const float* images, const float* weights,
                const float* bias, float value, int64_t first_row, int rows, const BandLists& lists, float* tile,
                float* out) {
  const int unit = chunks.lanes * static_cast<int>(sizeof(float)) / kUnit;
  const auto zeros = static_cast<uint16_t>(chunks.places(p) * unit);
  const int64_t pixels = int64_t{rows} * p.X, size = chunks.size(p);
  const int64_t of_block = size * chunks.of_channels * chunks.of_kernel_rows;
  const int whole = p.O / chunks.lanes, rest = p.O - whole * chunks.lanes;
  out += first_row * p.X * p.O;
  for (int i = 0; i < chunks.of_channels; ++i) {
    const int c = i * chunks.channels, channels = least(chunks.channels, p.C - c);
    if (!find<Valued>(p, images, c, channels, chunks.channels, unit, value, first_row, rows, lists)) return false;
    for (int j = 0; j < chunks.of_kernel_rows; ++j, weights += size) {
      const int k = j * chunks.kernel_rows, kernel_rows = least(chunks.kernel_rows, p.kernel_y - k);
      merge<Valued>(p, k, kernel_rows, chunks.channels, unit, zeros, first_row, rows, lists);
      const bool first = i == 0 && j == 0;
      for (int b = 0; b < chunks.blocks; ++b) {
        float* const to = b < whole ? out + int64_t{b} * chunks.lanes : tile;
        const auto add = (b < whole ? chunks.lanes : rest) <= V::kSize ? gather<1, Valued> : gather<2, Valued>;
        add(lists, pixels, weights + b * of_block, first ? bias + int64_t{b} * chunks.lanes : nullptr, value, to,
            b < whole ? p.O : chunks.lanes);
      }
    }
  }
  for (int64_t i = 0; i < pixels && rest > 0; ++i) {
    std::memcpy(out + i * p.O + int64_t{whole} * chunks.lanes, tile + i * chunks.lanes, sizeof(float) * rest);
  }
  return true;
}

bool forward(const Convolution& p, const Chunks& chunks, const float* images, const float* weights, const float* bias,
             float value, int64_t first_row, int rows, const BandLists& lists, float* tile, float* out) {
  const auto compute = value == value ? forward_of<false> : forward_of<true>;
  return compute(p, chunks, images, weights, bias, value, first_row, rows, lists, tile, out);
}

// ---- forward, by tables

constexpr int kTableVectors = kTableLanes / V::kSize;
constexpr int kPixelsAtOnce = least(kTablePixels, kRegisters / (2 * kTableVectors));

// Writes down which channels of each pixel are set, in units of 8 bytes of a table. Nothing is written around the
// image, where the zeros are that were there first. Returns false if a value is neither 0 nor the one that all should
// have.
bool find_patterns(const Convolution& p, const Chunks& chunks, const float* images, float value, int64_t first_row,
                   int rows, const BandPatterns& patterns) {
  constexpr uint32_t kRow = kTableLanes * sizeof(float) / kUnit;
  const int64_t columns = int64_t{patterns.of_stride} * least(p.stride_x, p.kernel_x);
  bool other = false;
  for (int i = 0; i < chunks.of_channels; ++i) {
    const int first = i * chunks.channels, channels = least(chunks.channels, p.C - first);
    uint8_t* to = patterns.at + i * patterns.of_chunk;
    each_image(p, first_row, rows, [&](int64_t image, int, int, int in0, int in1) {
      for (int y = in0; y < in1; ++y, to += patterns.row) {
        const float* x = images + (image * p.H + y) * p.W * p.C + first;
        int phase = p.padding_x % p.stride_x, place = p.padding_x / p.stride_x;
        for (int column = 0; column < p.W && place < patterns.of_stride; ++column, x += p.C) {
          uint8_t* const pixel = to + int64_t{phase} * patterns.of_stride + place;
          const bool seen = phase < p.kernel_x;
          if (++phase == p.stride_x) phase = 0, ++place;
          if (!seen) continue;
          for (int c = 0; c < channels; c += 16) {
            const int n = least(16, channels - c);
            const uint32_t events = events_among(x + c, n);
            other |= other_among(x + c, events, value);
            for (int k = 0; k < n; k += 4) {
              pixel[(c + k) / 4 * columns] = static_cast<uint8_t>((events >> k & 0xf) * kRow);
            }
          }
        }
      }
    });
  }
  return !other;
}

// Adds up the sums that n tables have for kPixelsAtOnce pixels. The patterns for table i are at `from + offsets[i]`.
// One load takes all of them: with a load for each, loads would be the limit.
SNN_HD void add_tables(const uint8_t* from, const int64_t* offsets, int n, const float* table,
                       V (&sums)[kPixelsAtOnce][kTableVectors]) {
  const auto* row = reinterpret_cast<const char*>(table);
  for (int i = 0; i < n; ++i, row += kTableRows * kTableLanes * sizeof(float)) {
    uint32_t patterns;
    std::memcpy(&patterns, from + offsets[i], sizeof patterns);
    SNN_UNROLL for (int k = 0; k < kPixelsAtOnce; ++k) {
      const auto* const sum = reinterpret_cast<const float*>(row + size_t{patterns >> (8 * k) & 0xff} * kUnit);
      SNN_UNROLL for (int v = 0; v < kTableVectors; ++v) sums[k][v] += V::load(sum + v * V::kSize);
    }
  }
}

// Adds to the sums of a band what one chunk of channels and of rows of the kernel contributes.
void add_chunk(const Convolution& p, const Chunks& chunks, int first_kernel_row, int kernel_rows, const float* tables,
               bool first, int64_t first_row, int rows, const uint8_t* at, const BandPatterns& patterns) {
  const int of_row = p.kernel_x * chunks.channels / 4;
  float* to = patterns.sums;
  each_image(p, first_row, rows, [&](int64_t, int y0, int y1, int in0, int in1) {
    for (int y = y0; y < y1; ++y) {
      const int above = y * p.stride_y - p.padding_y + first_kernel_row;
      const int begin = most(above, in0), end = least(above + kernel_rows, in1), n = most(end - begin, 0) * of_row;
      const float* const table = tables + int64_t{begin - above} * of_row * kTableRows * kTableLanes;
      const uint8_t* const from = at + int64_t{begin - in0} * patterns.row;
      for (int x = 0; x < p.X; x += kPixelsAtOnce) {
        V sums[kPixelsAtOnce][kTableVectors];
        SNN_UNROLL for (int k = 0; k < kPixelsAtOnce; ++k) {
          SNN_UNROLL for (int v = 0; v < kTableVectors; ++v) sums[k][v] = V(0);
        }
        add_tables(from + x, patterns.offsets, n, table, sums);
        const int pixels = least(kPixelsAtOnce, p.X - x);
        SNN_UNROLL for (int k = 0; k < kPixelsAtOnce; ++k) {
          if (k == pixels) break;
          SNN_UNROLL for (int v = 0; v < kTableVectors; ++v, to += V::kSize) {
            (first ? sums[k][v] : V::load(to) + sums[k][v]).store(to);
          }
        }
      }
    }
    at += int64_t{in1 - in0} * patterns.row;
  });
}

bool look_up(const Convolution& p, const Chunks& chunks, const float* images, const float* tables, const float* bias,
             float value, int64_t first_row, int rows, const BandPatterns& patterns, float* out) {
  if (!find_patterns(p, chunks, images, value, first_row, rows, patterns)) return false;
  const int64_t pixels = int64_t{rows} * p.X;
  const int64_t size = int64_t{chunks.places(p)} / 4 * kTableRows * kTableLanes;
  const V factor(value);
  out += first_row * p.X * p.O;
  for (int b = 0; b < chunks.blocks; ++b, out += kTableLanes, bias += kTableLanes) {
    for (int i = 0; i < chunks.of_channels; ++i) {
      for (int j = 0; j < chunks.of_kernel_rows; ++j, tables += size) {
        const int k = j * chunks.kernel_rows, kernel_rows = least(chunks.kernel_rows, p.kernel_y - k);
        add_chunk(p, chunks, k, kernel_rows, tables, i == 0 && j == 0, first_row, rows,
                  patterns.at + i * patterns.of_chunk, patterns);
      }
    }
    const int rest = p.O - b * kTableLanes;
    for (int64_t i = 0; i < pixels; ++i) {
      float* const sums = patterns.sums + i * kTableLanes;
      float* const to = rest < kTableLanes ? sums : out + i * p.O;
      SNN_UNROLL for (int v = 0; v < kTableLanes; v += V::kSize) {
        (V::load(bias + v) + factor * V::load(sums + v)).store(to + v);
      }
      if (rest < kTableLanes) std::memcpy(out + i * p.O, sums, sizeof(float) * rest);
    }
  }
  return true;
}

// ---- the gradient of the weights: the events of each channel, and the outputs that they reach

// Vectors of outputs in a block, and of sums that leave registers for operands.
constexpr int kTapVectors = kVectorBytes == 16 && kRegisters == 32 ? 2 : 1;
constexpr int kMostSums = kRegisters * 3 / 4;
constexpr int kMostRows = 3, kMostColumns = 5;

struct Taps {
  int64_t next_row, next_column;  // of the gradient, in values
  int64_t row, column;            // of the sums, which are in the other order
};

// Adds to the sums of some taps the gradients of the outputs that n events reach by them. Sums of this tile alone keep
// the error of long ones small.
template <int Rows, int Columns, bool Valued>
void add_taps(const uint16_t* at, const float* values, int n, const float* grads, const Taps& taps, float value,
              float* sums) {
  V sum[Rows][Columns][kTapVectors];
  SNN_UNROLL for (int r = 0; r < Rows; ++r) {
    SNN_UNROLL for (int c = 0; c < Columns; ++c) {
      SNN_UNROLL for (int v = 0; v < kTapVectors; ++v) sum[r][c][v] = V(0);
    }
  }
  const int64_t next_row = taps.next_row;
  constexpr int kLanes = kTapVectors * V::kSize;
  for (int i = 0; i < n; ++i) {
    const auto* const from =
        reinterpret_cast<const float*>(reinterpret_cast<const char*>(grads) + size_t{at[i]} * kUnit);
    const V factor(Valued ? values[i] : 1.0f);
    SNN_UNROLL for (int r = 0; r < Rows; ++r) {
      SNN_UNROLL for (int c = 0; c < Columns; ++c) {
        SNN_UNROLL for (int v = 0; v < kTapVectors; ++v) {
          const V grad = V::load(from + r * next_row + c * kLanes + v * V::kSize);
          if constexpr (Valued) {
            sum[r][c][v] += factor * grad;
          } else {
            sum[r][c][v] += grad;
          }
        }
      }
    }
  }
  const V factor(Valued ? 1.0f : value);
  SNN_UNROLL for (int r = 0; r < Rows; ++r) {
    SNN_UNROLL for (int c = 0; c < Columns; ++c) {
      SNN_UNROLL for (int v = 0; v < kTapVectors; ++v) {
        float* const to = sums - r * taps.row - c * taps.column + v * V::kSize;
        (V::load(to) + factor * sum[r][c][v]).store(to);
      }
    }
  }
}

using AddTaps = void (*)(const uint16_t*, const float*, int, const float*, const Taps&, float, float*);

constexpr int rows_at_once(int columns) {
  const int fitting = kMostSums / (columns * kTapVectors);
  return fitting < 1 ? 1 : fitting < kMostRows ? fitting : kMostRows;
}

template <int Rows, int Columns, bool Valued>
SNN_HD AddTaps kernel_of(int rows, int columns) {
  if (rows == Rows && columns == Columns) return add_taps<Rows, Columns, Valued>;
  if constexpr (Rows < rows_at_once(Columns)) return kernel_of<Rows + 1, Columns, Valued>(rows, columns);
  if constexpr (Rows == rows_at_once(Columns) && Columns < kMostColumns) {
    return kernel_of<1, Columns + 1, Valued>(rows, columns);
  }
  return nullptr;
}

// Of a tile: images first to first + images - 1, and first outputs from (y0, x0) to (y1 - 1, x1 - 1).
struct Tile {
  int64_t first;
  int images, y0, y1, x0, x1;
  int rows(const Tiles& tiles) const { return y1 - y0 + tiles.taps_y - 1; }  // with those of further taps
  int columns(const Tiles& tiles) const { return x1 - x0 + tiles.taps_x - 1; }
};

// Lists the events of a tile that have the same first tap, channel by channel.
void list_class(const Convolution& p, const Tiles& tiles, const Tile& tile, const float* images, int tap_y, int tap_x,
                int number_of_class, float value, const TileLists& lists) {
  const int unit = tiles.lanes * static_cast<int>(sizeof(float)) / kUnit;
  int pixels = 0;
  for (int i = 0; i < tile.images; ++i) {
    for (int y = tile.y0; y < tile.y1; ++y) {
      const int in_y = y * p.stride_y + tap_y - p.padding_y;
      if (in_y < 0 || in_y >= p.H) continue;
      const int place = (i * tile.rows(tiles) + y - tile.y0) * tile.columns(tiles);
      const float* const row = images + ((tile.first + i) * p.H + in_y) * p.W * p.C;
      for (int x = tile.x0; x < tile.x1; ++x) {
        const int in_x = x * p.stride_x + tap_x - p.padding_x;
        if (in_x < 0 || in_x >= p.W) continue;
        lists.place[pixels] = static_cast<uint32_t>((place + x - tile.x0) * unit);
        lists.pixel[pixels++] = row + int64_t{in_x} * p.C;
      }
    }
  }
  const int64_t room = int64_t{tiles.places()} + kMoreEvents;
  const int groups = (p.C + 15) / 16;
  for (int group = 0; group < groups; ++group) {
    const int c = group * 16, channels = least(16, p.C - c);
    bool other = false;
    for (int i = 0; i < pixels; ++i) {
      const uint32_t events = events_among(lists.pixel[i] + c, channels);
      lists.masks[i] = static_cast<uint16_t>(events);
      other |= other_among(lists.pixel[i] + c, events, value);
    }
    const int64_t first = int64_t{number_of_class} * p.C + c;
    lists.valued[number_of_class * groups + group] = other;
    uint16_t* const at = lists.at + first * room;
    int32_t* const number = lists.number + first;
#if defined(__AVX512F__)
    if (!other) {
      for (int i = pixels; i % 32 != 0; ++i) lists.masks[i] = 0;
      uint16_t* next[16];
      for (int k = 0; k < channels; ++k) next[k] = at + k * room;
      for (int i = 0; i < pixels; i += 32) {
        const __m512i masks = _mm512_loadu_si512(lists.masks + i);
        const __m512i low = _mm512_loadu_si512(lists.place + i), high = _mm512_loadu_si512(lists.place + i + 16);
        const auto append = [](uint16_t*& to, __mmask16 some, __m512i places) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                              _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(some, places)));
          to += __builtin_popcount(some);
        };
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) {
          if (k == channels) break;
          const __mmask32 set = _mm512_test_epi16_mask(masks, _mm512_set1_epi16(static_cast<short>(1 << k)));
          append(next[k], static_cast<__mmask16>(set), low);
          append(next[k], static_cast<__mmask16>(set >> 16), high);
        }
      }
      for (int k = 0; k < channels; ++k) number[k] = static_cast<int32_t>(next[k] - (at + k * room));
      continue;
    }
#endif
    for (int k = 0; k < channels; ++k) number[k] = 0;
    for (int i = 0; i < pixels; ++i) {
      for (uint32_t rest = lists.masks[i]; rest != 0; rest &= rest - 1) {
        const int k = __builtin_ctz(rest);
        const int64_t event = k * room + number[k]++;
        at[event] = static_cast<uint16_t>(lists.place[i]);
        if (other) lists.value[first * room + event] = lists.pixel[i][c + k];
      }
    }
  }
}

// Loads the gradients of some outputs of a tile, with zeros around the images.
void load_grads(const Convolution& p, const Tiles& tiles, const Tile& tile, const float* grads, int output, float* to) {
  const int lanes = least(tiles.lanes, p.O - output);
  for (int i = 0; i < tile.images; ++i) {
    for (int r = 0; r < tile.rows(tiles); ++r) {
      const int y = tile.y0 - tiles.taps_y + 1 + r;
      const float* const row = grads + ((tile.first + i) * p.Y + y) * p.X * p.O + output;
      for (int c = 0; c < tile.columns(tiles); ++c, to += tiles.lanes) {
        const int x = tile.x0 - tiles.taps_x + 1 + c;
        const bool inside = y >= 0 && y < p.Y && x >= 0 && x < p.X;
        if (inside && lanes == tiles.lanes) {
          for (int v = 0; v < kTapVectors * V::kSize; v += V::kSize) V::load(row + int64_t{x} * p.O + v).store(to + v);
        } else {
          for (int v = 0; v < kTapVectors * V::kSize; v += V::kSize) V(0).store(to + v);
          if (inside) std::memcpy(to, row + int64_t{x} * p.O, sizeof(float) * lanes);
        }
      }
    }
  }
}

// Adds what the events of a class contribute to the gradient of a block of weights.
void add_class(const Convolution& p, const Tiles& tiles, const Tile& tile, int tap_y, int tap_x, int number_of_class,
               float value, const TileLists& lists, float* sums) {
  const int64_t room = int64_t{tiles.places()} + kMoreEvents, lanes = tiles.lanes, columns = tile.columns(tiles);
  const int taps_y = (p.kernel_y - 1 - tap_y) / p.stride_y + 1, taps_x = (p.kernel_x - 1 - tap_x) / p.stride_x + 1;
  const int groups = (p.C + 15) / 16;
  const Taps taps{columns * lanes, lanes, p.stride_y * p.kernel_x * lanes, p.stride_x * lanes};
  for (int c0 = 0, c1; c0 < taps_x; c0 = c1) {
    c1 = least(taps_x, c0 + kMostColumns);
    for (int r0 = 0, r1; r0 < taps_y; r0 = r1) {
      r1 = least(taps_y, r0 + rows_at_once(c1 - c0));
      const AddTaps add[] = {kernel_of<1, 1, false>(r1 - r0, c1 - c0), kernel_of<1, 1, true>(r1 - r0, c1 - c0)};
      const float* const from =
          lists.grads + ((tiles.taps_y - taps_y + r0) * columns + tiles.taps_x - taps_x + c0) * lanes;
      const int64_t last_tap =
          int64_t{tap_y + p.stride_y * (taps_y - 1 - r0)} * p.kernel_x + tap_x + p.stride_x * (taps_x - 1 - c0);
      float* to = sums + last_tap * lanes;
      for (int c = 0; c < p.C; ++c, to += int64_t{p.kernel_y} * p.kernel_x * lanes) {
        const int64_t list = int64_t{number_of_class} * p.C + c;
        if (lists.number[list] == 0) continue;
        add[lists.valued[number_of_class * groups + c / 16]](lists.at + list * room, lists.value + list * room,
                                                             lists.number[list], from, taps, value, to);
      }
    }
  }
}

void add_gradient(const Convolution& p, const Tiles& tiles, const float* images, const float* grads, int64_t first,
                  int64_t last, int first_output, int last_output, float value, const TileLists& lists, float* sums) {
  const int64_t of_block = int64_t{p.C} * p.kernel_y * p.kernel_x * tiles.lanes;
  const int classes_y = least(p.stride_y, p.kernel_y), classes_x = least(p.stride_x, p.kernel_x);
  const auto each_tile = [&](auto&& f) {
    for (int64_t n = first; n < last; n += tiles.images) {
      const int number = last - n < tiles.images ? static_cast<int>(last - n) : tiles.images;
      for (int y = tiles.first_row; y < tiles.last_row; y += tiles.rows) {
        for (int x = tiles.first_column; x < tiles.last_column; x += tiles.columns) {
          f(Tile{n, number, y, least(y + tiles.rows, tiles.last_row), x, least(x + tiles.columns, tiles.last_column)});
        }
      }
    }
  };
  const auto each_class = [&](auto&& f) {
    for (int y = 0; y < classes_y; ++y) {
      for (int x = 0; x < classes_x; ++x) f(y, x, y * classes_x + x);
    }
  };
  each_tile([&](const Tile& tile) {
    each_class([&](int y, int x, int number) { list_class(p, tiles, tile, images, y, x, number, value, lists); });
    for (int o = first_output; o < last_output; o += tiles.lanes) {
      load_grads(p, tiles, tile, grads, o, lists.grads);
      float* const to = sums + o / tiles.lanes * of_block;
      each_class([&](int y, int x, int number) { add_class(p, tiles, tile, y, x, number, value, lists, to); });
    }
  });
}

}  // namespace

const ConvolutionKernels& convolution_kernels() {
  static constexpr ConvolutionKernels kernels{2 * V::kSize, kTapVectors * V::kSize, forward, look_up, add_gradient};
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
