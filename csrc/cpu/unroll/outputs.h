// The gradient of spikes that went through a Linear, for a few neurons and steps at a time.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include "loops.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// Computes grad [Steps, outputs] * weight [outputs, n] for n neurons of one sample, column by column. The last column
// overlaps the one before. Rows of `to` have room for one column.
template <typename A, int Steps>
void multiply(const A* grad, int64_t grad_stride, const A* weight, int64_t weight_stride, int64_t outputs, int n, A* to,
              int64_t to_stride) {
  const auto column = [&](int i, const auto& load) {
    Column<A> sums[Steps], w;
    SNN_UNROLL for (int k = 0; k < Steps; ++k) sums[k].fill(A(0));
    for (int64_t o = 0; o < outputs; ++o) {
      load(weight + o * weight_stride + i, w);
      SNN_UNROLL for (int k = 0; k < Steps; ++k) {
        const Vec<A> g(grad[k * grad_stride + o]);
        SNN_UNROLL for (int v = 0; v < kVectors; ++v) sums[k][v] = multiply_add(g, w[v], sums[k][v]);
      }
    }
    SNN_UNROLL for (int k = 0; k < Steps; ++k) sums[k].store(to + k * to_stride + i);
  };
  const auto whole = [](const A* from, Column<A>& w) { w.load(from); };
  int i = 0;
  for (; i + kColumn<A> <= n; i += kColumn<A>) column(i, whole);
  if (i == n) return;
  if (n >= kColumn<A>) return column(n - kColumn<A>, whole);
  column(0, [n](const A* from, Column<A>& w) {
    alignas(64) A some[kColumn<A>] = {};
    for (int j = 0; j < n; ++j) some[j] = from[j];
    w.load(some);
  });
}

// Computes the rows of several steps for neurons first to first + n - 1 of the N of a step. A row has room for a vector
// behind them.
template <typename A, int Size, int Block>
void through_weight(const Outputs& p, int64_t N, int64_t t, int steps, int64_t first, int n, A (&to)[Size][Block]) {
  const A* const weight = static_cast<const A*>(p.weight);
  const int64_t stride = N / p.columns * p.size;
  for (int i = 0; i < n;) {
    const int64_t sample = (first + i) / p.columns, column = (first + i) % p.columns;
    const int count = static_cast<int>(p.columns - column < n - i ? p.columns - column : n - i);
    const A* const grad = static_cast<const A*>(p.grad) + t * stride + sample * p.size;
    if (steps == kSteps<A>) {
      multiply<A, kSteps<A>>(grad, stride, weight + column, p.columns, p.size, count, to[0] + i, Block);
    } else {
      for (int k = 0; k < steps; ++k) {
        multiply<A, 1>(grad + k * stride, stride, weight + column, p.columns, p.size, count, to[k] + i, Block);
      }
    }
    i += count;
  }
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
