// Vectors, or single values, that belong to channels, and sums over them.
//
// Compiled once for each instruction set. The rules at the top of ../unroll/kernels.cpp hold here too.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../vec.h"
#include "channels.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename V, typename A>
V lanes_at(const A* from) {
  if constexpr (std::is_same_v<V, A>) {
    return *from;
  } else {
    return V::load(from);
  }
}

template <typename V, typename A>
void put_lanes(A* to, V value) {
  if constexpr (std::is_same_v<V, A>) {
    *to = value;
  } else {
    value.store(to);
  }
}

template <int N>
using Number = std::integral_constant<int, N>;

// Visits the lanes of a row in vectors, several of them at a time, or one by one where they fill none. The last vector
// may overlap the one before: it computes the same again.
template <typename A, typename Visit>
void each_vector(int lanes, Visit&& visit) {
  constexpr int kSize = Vec<A>::kSize;
  int i = 0;
  for (; i + 4 * kSize <= lanes; i += 4 * kSize) visit(Vec<A>(), Number<4>(), i);
  if (i + 3 * kSize <= lanes) visit(Vec<A>(), Number<3>(), i), i += 3 * kSize;
  if (i + 2 * kSize <= lanes) visit(Vec<A>(), Number<2>(), i), i += 2 * kSize;
  if (i + kSize <= lanes) visit(Vec<A>(), Number<1>(), i), i += kSize;
  if (i < lanes && lanes >= kSize) return visit(Vec<A>(), Number<1>(), lanes - kSize);
  for (; i < lanes; ++i) visit(A(), Number<1>(), i);
}

template <typename V, typename A>
constexpr int kWidth = sizeof(V) / sizeof(A);

constexpr int kFewChannels = 16;  // with fewer that lie innermost, a row of lanes has several samples
constexpr int kImageLanes = 16;   // of a channel with larger images, which have rows of their own
constexpr int kMostRows = 128;    // of a sum
constexpr int kFewRows = 16;      // that are added one by one; the rounding error of a long sum is larger

// The samples of a row in channels_last order: so many that it consists of whole vectors.
int samples_per_row(int64_t C) {
  int samples = 1;
  while (C < kFewChannels && samples * C % kFewChannels != 0) samples *= 2;
  return samples;
}

// Makes two sums for each of some lanes over some rows. `terms(row, lane, a, b)` gives two terms in vectors.
template <typename A, typename Terms>
void sum_rows(int lanes, int64_t rows, A* a, A* b, Terms&& terms) {
  each_vector<A>(lanes, [&]<typename V, int N>(V, Number<N>, int lane) {
    constexpr int kStep = kWidth<V, A>;
    V x[N], y[N];
    for (int j = 0; j < N; ++j) x[j] = y[j] = V(A(0));
    for (int64_t r = 0; r < rows;) {
      V few_x[N], few_y[N];
      for (int j = 0; j < N; ++j) few_x[j] = few_y[j] = V(A(0));
      for (const int64_t end = r + kFewRows < rows ? r + kFewRows : rows; r < end; ++r) {
        for (int j = 0; j < N; ++j) {
          V s, t;
          terms(r, lane + j * kStep, s, t);
          few_x[j] += s;
          few_y[j] += t;
        }
      }
      for (int j = 0; j < N; ++j) x[j] += few_x[j], y[j] += few_y[j];
    }
    for (int j = 0; j < N; ++j) {
      put_lanes(a + lane + j * kStep, x[j]);
      put_lanes(b + lane + j * kStep, y[j]);
    }
  });
}

// Calls visit(i, numbers) for n neurons from `first` on: with vectors of neurons, or single ones, and the numbers of
// their channels from some rows. `again`: neurons that fill no vector may be visited with others that come later again.
template <int Count, typename Visit>
void each_of_channels(const Channels& channels, const float* const (&rows)[Count], int64_t first, int n, bool again,
                      Visit&& visit) {
  using V = Vec<float>;
  V numbers[Count];
  float one[Count];
  if (channels.inner == 1) {
    const int64_t C = channels.C, step = V::kSize % C;
    int64_t c = first % C;
    int i = 0;
    for (; i + V::kSize <= n; i += V::kSize) {
      SNN_UNROLL for (int k = 0; k < Count; ++k) numbers[k] = V::load(rows[k] + c);
      visit(i, numbers);
      c += step;
      if (c >= C) c -= C;
    }
    for (; i < n; ++i) {
      SNN_UNROLL for (int k = 0; k < Count; ++k) one[k] = rows[k][c];
      visit(i, one);
      if (++c == C) c = 0;
    }
    return;
  }
  for (int i = 0; i < n;) {
    const int64_t at = first + i, c = at / channels.inner % channels.C, left = channels.inner - at % channels.inner;
    const int end = left < n - i ? i + static_cast<int>(left) : n;
    SNN_UNROLL for (int k = 0; k < Count; ++k) {
      one[k] = rows[k][c];
      numbers[k] = V(one[k]);
    }
    for (; i + V::kSize <= (again ? n : end) && i < end; i += V::kSize) visit(i, numbers);
    for (; i < end; ++i) visit(i, one);
    i = end;
  }
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
