// Compiled once for each instruction set. The rules at the top of ../unroll/kernels.cpp hold here too.
//
// Sums stay in registers while events are added to them. The order of a sum is the same for all instruction sets, which
// also excludes multiply_add.
#include "convolution.h"

#include <type_traits>

#include "../vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

using V = Vec<float>;

// Bytes of the outputs that wait in the L1 cache while the weights of one row of the kernel are used.
constexpr int kBandBytes = 16 << 10;

// Vectors of sums that leave registers for operands.
constexpr int kMostSums = kVectorBytes == 64 ? 24 : 12;

void find(const float* image, int64_t pixels, int C, int32_t* at, float* value, int32_t* first_of_pixel) {
  int32_t found = 0;
  for (int64_t pixel = 0; pixel < pixels; ++pixel, image += C) {
    first_of_pixel[pixel] = found;
    const int32_t first = static_cast<int32_t>(pixel) * C;
#if defined(__AVX512F__)
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int c = 0; c < C; c += 16) {
      const auto some = static_cast<__mmask16>(C - c >= 16 ? 0xffff : (1 << (C - c)) - 1);
      const __m512 values = _mm512_maskz_loadu_ps(some, image + c);
      const __mmask16 events = _mm512_mask_cmp_ps_mask(some, values, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(first + c));
      _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(events, values));
      _mm512_storeu_si512(at + found, _mm512_maskz_compress_epi32(events, places));
      found += __builtin_popcount(events);
    }
#else
    for (int c = 0; c < C; ++c) {  // a branch would be mispredicted at every event
      at[found] = first + c;
      value[found] = image[c];
      found += image[c] != 0;
    }
#endif
  }
  first_of_pixel[pixels] = found;
}

// ---- few channels: for each event, the outputs that it reaches

// The outputs that an event reaches along one dimension: n of them, beginning with `output`, through `tap` of the
// kernel. The next output is one nearer to the origin, and its tap is a stride further.
struct Reach {
  int tap, output, n;
};

SNN_HD Reach reach(int i, int outputs, int kernel, int stride, int padding) {
  const int past = (i + padding) / stride, output = past < outputs ? past : outputs - 1;
  const int tap = i + padding - output * stride, taps = (kernel - 1 - tap + stride) / stride;
  return {tap, output, tap >= kernel ? 0 : taps <= output ? taps : output + 1};
}

// Calls f with the value of each event, each of its taps, and the output that it reaches by it.
template <typename F>
SNN_HD void each_tap(const Convolution& p, const Events& events, F&& f) {
  const int32_t* first = events.pixels;
  const int64_t next_tap = int64_t{p.stride_x} * p.C, next_row = int64_t{p.stride_y} * p.kernel_x * p.C;
  for (int i = 0; i < p.H; ++i) {
    const Reach y = reach(i, p.Y, p.kernel_y, p.stride_y, p.padding_y);
    for (int j = 0; j < p.W; ++j, ++first) {
      if (first[0] == first[1]) continue;
      const Reach x = reach(j, p.X, p.kernel_x, p.stride_x, p.padding_x);
      const int64_t tap = (int64_t{y.tap} * p.kernel_x + x.tap - (int64_t{i} * p.W + j)) * p.C;
      const int64_t output = int64_t{y.output} * p.X + x.output;
      for (int32_t event = first[0]; event < first[1]; ++event) {
        const float value = events.value[event];
        int64_t from = tap + events.at[event], to = output;
        for (int a = 0; a < y.n; ++a, from += next_row, to -= p.X) {
          for (int b = 0; b < x.n; ++b) f(value, from + b * next_tap, to - b);
        }
      }
    }
  }
}

template <int Lanes>
SNN_HD void add_row(float value, const float* from, float* to) {
  const V factor(value);
  V sum[Lanes / V::kSize];
  for (int v = 0; v < Lanes / V::kSize; ++v)
    sum[v] = V::load(to + v * V::kSize) + factor * V::load(from + v * V::kSize);
  for (int v = 0; v < Lanes / V::kSize; ++v) sum[v].store(to + v * V::kSize);
}

template <int Lanes>
void add_events_of(const Convolution& p, const Events& events, const float* grads, int64_t stride, float* sums) {
  each_tap(p, events, [&](float value, int64_t tap, int64_t output) {
    add_row<Lanes>(value, grads + output * stride, sums + tap * Lanes);
  });
}

void add_events(const Convolution& p, const Events& events, const float* grads, int64_t stride, float* sums) {
  const auto add = p.lanes == 16 ? add_events_of<16> : p.lanes == 32 ? add_events_of<32> : add_events_of<kMostLanes>;
  add(p, events, grads, stride, sums);
}

// ---- many channels: for each output, or each tap, the events

template <int Vectors>
SNN_HD void add(V (&sums)[Vectors], float value, const float* from) {
  const V factor(value);
  for (int v = 0; v < Vectors; ++v) sums[v] += factor * V::load(from + v * V::kSize);
}

// Adds `value` times rows of the weights, `place` lanes before `weights`, to a row of the output. Several sums, so that
// an addition need not wait for the one before.
template <int Lanes>
void gather(const int32_t* at, const float* value, int64_t events, const float* weights, int64_t place, float* out) {
  constexpr int kVectors = Lanes / V::kSize, kChains = kMostLanes / Lanes;
  V sums[kChains][kVectors];
  for (int v = 0; v < kVectors; ++v) sums[0][v] = V::load(out + v * V::kSize);
  for (int k = 1; k < kChains; ++k) {
    for (int v = 0; v < kVectors; ++v) sums[k][v] = V(0);
  }
  int64_t i = 0;
  for (; i + kChains <= events; i += kChains) {
    for (int k = 0; k < kChains; ++k) {
      add(sums[k], value[i + k], weights + (at[i + k] - place) * Lanes);
    }
  }
  for (; i < events; ++i) add(sums[0], value[i], weights + (at[i] - place) * Lanes);
  for (int step = kChains / 2; step > 0; step /= 2) {
    for (int k = 0; k < step; ++k) {
      for (int v = 0; v < kVectors; ++v) sums[k][v] += sums[k + step][v];
    }
  }
  for (int v = 0; v < kVectors; ++v) sums[0][v].store(out + v * V::kSize);
}

template <int Lanes>
void forward_block(const Convolution& p, const Events& events, const float* weights, const float* bias, float* out,
                   int64_t stride) {
  const auto fill = [&](int first, int last) {
    for (int64_t i = int64_t{first} * p.X; i < int64_t{last} * p.X; ++i) {
      for (int v = 0; v < Lanes; v += V::kSize) V::load(bias + v).store(out + i * stride + v);
    }
  };
  if (p.few_channels()) {
    fill(0, p.Y);
    return each_tap(p, events, [&](float value, int64_t tap, int64_t output) {
      add_row<Lanes>(value, weights + tap * Lanes, out + output * stride);
    });
  }
  const int fitting = kBandBytes / static_cast<int>(sizeof(float)) / Lanes / p.X, rows = fitting > 0 ? fitting : 1;
  for (int y0 = 0, y1; y0 < p.Y; y0 = y1) {
    y1 = p.Y - y0 > rows ? y0 + rows : p.Y;
    fill(y0, y1);
    for (int ky = 0; ky < p.kernel_y; ++ky) {
      const float* const row = weights + int64_t{ky} * p.kernel_x * p.C * Lanes;
      for (int y = y0; y < y1; ++y) {
        const int64_t in = int64_t{y} * p.stride_y + ky - p.padding_y;
        if (in < 0 || in >= p.H) continue;
        for (int x = 0; x < p.X; ++x) {
          // The pixels under a row of the kernel are neighbours in memory, and so are their events.
          const int64_t left = int64_t{x} * p.stride_x - p.padding_x, right = left + p.kernel_x;
          const int64_t from = left > 0 ? left : 0, to = right < p.W ? right : p.W;
          if (from >= to) continue;
          const int64_t first = events.pixels[in * p.W + from], last = events.pixels[in * p.W + to];
          gather<Lanes>(events.at + first, events.value + first, last - first, row, (in * p.W + left) * p.C,
                        out + (int64_t{y} * p.X + x) * stride);
        }
      }
    }
  }
}

void forward(const Convolution& p, const Events& events, const float* weights, const float* bias, float* out,
             int64_t stride) {
  const auto block = p.lanes == 16 ? forward_block<16> : p.lanes == 32 ? forward_block<32> : forward_block<kMostLanes>;
  block(p, events, weights, bias, out, stride);
}

template <int Lanes, int Taps>
void add_some_taps(const int32_t* at, const float* value, int64_t events, const float* grads, float* sums,
                   int64_t tap) {
  constexpr int kVectors = Lanes / V::kSize;
  V sum[Taps][kVectors];
  for (int k = 0; k < Taps; ++k) {
    for (int v = 0; v < kVectors; ++v) sum[k][v] = V::load(sums + k * tap + v * V::kSize);
  }
  for (int64_t i = 0; i < events; ++i) {
    const float* const from = grads + int64_t{at[i]} * Lanes;
    for (int k = 0; k < Taps; ++k) add(sum[k], value[i], from - k * Lanes);
  }
  for (int k = 0; k < Taps; ++k) {
    for (int v = 0; v < kVectors; ++v) sum[k][v].store(sums + k * tap + v * V::kSize);
  }
}

// As many taps as there are registers for, and then the rest.
template <int Lanes, int Taps = kMostSums * V::kSize / Lanes>
void add_taps_of(int taps, const int32_t* at, const float* value, int64_t events, const float* grads, float* sums,
                 int64_t tap) {
  if constexpr (Taps > 6) return add_taps_of<Lanes, 6>(taps, at, value, events, grads, sums, tap);
  for (; taps >= Taps; taps -= Taps, grads -= Taps * Lanes, sums += Taps * tap) {
    add_some_taps<Lanes, Taps>(at, value, events, grads, sums, tap);
  }
  if constexpr (Taps > 1) {
    if (taps > 0) add_taps_of<Lanes, Taps - 1>(taps, at, value, events, grads, sums, tap);
  }
}

void add_taps(int lanes, int taps, const int32_t* at, const float* value, int64_t events, const float* grads,
              float* sums, int64_t tap) {
  (lanes == 16 ? add_taps_of<16> : add_taps_of<kMostLanesOfTaps>)(taps, at, value, events, grads, sums, tap);
}

}  // namespace

const ConvolutionKernels& convolution_kernels() {
  static constexpr ConvolutionKernels kernels{find, forward, add_events, add_taps};
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
