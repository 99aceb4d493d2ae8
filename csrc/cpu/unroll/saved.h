// Membranes that the forward pass saves in less than their own size, and what the backward pass makes of them.
//
// Part of kernels.cpp, whose rules hold here too.
#pragma once

#include "../convert.h"
#include "loops.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// Calls f with a function that gives the threshold of a neuron; a loop over a single one vectorises better.
template <typename A, typename F>
void with_threshold(const Lane<A>& threshold, F&& f) {
  if (threshold.mask == 0) {
    const A value = threshold.values[0];
    f([value](int) { return value; });
  } else {
    const A* const values = threshold.values;
    f([values](int i) { return values[i]; });
  }
}

// v - threshold, rounded. Its sign stays: the spikes, and so the resets, are told exactly.
template <typename A>
void save_membrane(int n, const A* mem, const Lane<A>& threshold, BFloat16* saved) {
  with_threshold(threshold, [=](auto threshold_of) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      const A z = mem[i] - threshold_of(i);
      BFloat16 rounded;
      narrow(static_cast<float>(z), rounded);
      saved[i].bits = save_side(z, rounded.bits);
    }
  });
}

template <typename A>
void from_membrane(int n, const BFloat16* saved, const Lane<A>& threshold, A* mem) {
  with_threshold(threshold, [=](auto threshold_of) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) mem[i] = membrane_at(static_cast<A>(widen(saved[i])), threshold_of(i));
  });
}

// By explicit vectors: g++ leaves a loop alone that compares wide numbers and writes bytes.
template <typename A>
void save_spikes(int n, const A* mem, const Lane<A>& threshold, int bit, uint8_t* saved) {
  using V = Vec<A>;
  int i = 0;
  for (; i + V::kSize <= n; i += V::kSize) {
    const auto spikes = V::load(mem + i) - V::load(threshold.values + (i & threshold.mask)) > V(0);
    put_bits<A>(spikes & 1, bit, saved + i);
  }
  const auto one = static_cast<uint8_t>(1 << bit), others = static_cast<uint8_t>(one - 1);
  for (; i < n; ++i) {
    const bool spike = mem[i] - threshold.values[i & threshold.mask] > A(0);
    saved[i] = static_cast<uint8_t>((saved[i] & others) | (spike ? one : 0));
  }
}

// Membranes that spike or not as the bits say.
template <typename A>
void from_spikes(int n, const uint8_t* saved, int bit, const Lane<A>& threshold, A* mem) {
  with_threshold(threshold, [=](auto threshold_of) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
      const A t = threshold_of(i), above = just_above(t);
      mem[i] = (saved[i] >> bit & 1) != 0 ? above : t;
    }
  });
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
