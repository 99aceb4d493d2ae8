// Stages the tensors and parameters of a problem for the loops over a block of neurons, and writes results back.
//
// Part of kernels.cpp. The rules at its top hold here too.
#pragma once

#include <cstring>
#include <type_traits>

#include "../convert.h"
#include "loops.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// ---- parameters

template <typename A>
void fill(int64_t first, int n, const Parameter& parameter, A* out) {
  const A* data = static_cast<const A*>(parameter.data);
  if (parameter.uniform()) {
    // On the CPU, a parameter without dimensions is a value, so data is always in the opmath dtype.
    const A value = data == nullptr ? static_cast<A>(parameter.value) : data[0];
    for (int i = 0; i < n; ++i) out[i] = value;
    return;
  }
  int64_t element = first / parameter.inner % parameter.size, within = first % parameter.inner;
  for (int i = 0; i < n; ++i) {
    out[i] = data[element];
    if (++within == parameter.inner) {
      within = 0;
      if (++element == parameter.size) element = 0;
    }
  }
}

// Sets the values behind n to 0, up to a whole column. They stay 0 through all steps. Values left by an earlier block
// would decay to denormal numbers, with which a processor is many times slower.
template <typename A>
void pad(int n, A* row) {
  for (int i = n; i % kColumn<A> != 0; ++i) row[i] = A(0);
}

template <typename A, int Size, int Block>
void pad_all(int n, A (&rows)[Size][Block]) {
  for (A* const row : rows) pad(n, row);
}

// Returns how many values were written. `next`: the lane holds the values of another block of the same problem.
template <typename A>
int open_lane(int64_t first, int n, const Parameter& parameter, bool next, Lane<A>& lane) {
  lane.mask = parameter.uniform() ? 0 : -1;
  if (next && parameter.uniform()) return 0;
  const int count = parameter.uniform() ? kColumn<A> : n;
  fill(first, count, parameter, lane.values);
  pad(count, lane.values);
  return count;
}

template <typename Neuron, typename A>
void open_lanes(int64_t first, int n, const Problem<Neuron>& p, bool next, Lanes<A, Neuron::kParameters>& lanes) {
  for (int j = 0; j < Neuron::kParameters; ++j) {
    A* const values = lanes.of[j].values;
    const int count = open_lane(first, n, p.parameters[j], next, lanes.of[j]);
    for (int i = 0; i < count && Neuron::kClamped[j]; ++i) values[i] = clamp_unit(values[i]);
  }
}

// ---- rows of tensors as the loops want them

// Returns row t of a tensor [T, N] at neuron `first`; nullptr stays nullptr.
template <typename S, typename V>
S* row_of(V* tensor, int64_t t, int64_t N, int64_t first) {
  return tensor == nullptr ? nullptr : static_cast<S*>(tensor) + t * N + first;
}

// Whether the loops can work on the tensor itself: it is in the opmath dtype, and n are whole columns.
template <typename S, typename A>
constexpr bool in_place(int n) {
  return std::is_same_v<std::remove_const_t<S>, A> && n % kColumn<A> == 0;
}

template <typename S, typename A>
const A* open_for_reading(const S* row, int n, A* scratch) {
  if (row == nullptr) return nullptr;
  if constexpr (std::is_same_v<S, A>) {
    if (in_place<S, A>(n)) return row;
  }
  load_row(row, n, scratch);
  return scratch;
}

template <typename S, typename A>
A* open_for_writing(S* row, int n, A* scratch) {
  if constexpr (std::is_same_v<S, A>) {
    if (in_place<S, A>(n)) return row;
  }
  return row == nullptr ? nullptr : scratch;
}

template <typename S, typename A>
void close(S* row, int n, const A* opened, bool non_temporal = false) {
  if (row != nullptr && !in_place<S, A>(n)) store_row(row, n, opened, non_temporal);
}

// The same for rows of several steps, `stride` elements apart; at most as many as `scratch` has.
template <typename S, typename A, int Size, int Block>
Rows<const A> open_for_reading(const S* row, int64_t stride, int steps, int n, A (&scratch)[Size][Block]) {
  if (row == nullptr) return {nullptr, 0};
  if (in_place<S, A>(n)) return {open_for_reading(row, n, scratch[0]), stride};
  for (int k = 0; k < (stride == 0 ? 1 : steps); ++k) load_row(row + k * stride, n, scratch[k]);
  return {scratch[0], stride == 0 ? 0 : Block};
}

template <typename S, typename A, int Size, int Block>
Rows<A> open_for_writing(S* row, int64_t stride, int n, A (&scratch)[Size][Block]) {
  if (row == nullptr || !in_place<S, A>(n)) return {scratch[0], Block};
  return {open_for_writing(row, n, scratch[0]), stride};
}

// Writes a row that no loop computes. `non_temporal`: the row begins on a cache line.
template <typename S, typename A>
void put_row(S* row, int n, const A* from, bool non_temporal) {
  if constexpr (std::is_same_v<S, A>) {
    int i = 0;
    for (; non_temporal && i + Vec<A>::kSize <= n; i += Vec<A>::kSize) stream(row + i, Vec<A>::load(from + i));
    std::memcpy(row + i, from + i, static_cast<size_t>(n - i) * sizeof *row);
  } else {
    store_row(row, n, from, non_temporal);
  }
}

template <typename S>
void put_zeros(S* row, int n, bool non_temporal) {
  constexpr int kSize = kVectorBytes / static_cast<int>(sizeof(S));
  int i = 0;
  for (; non_temporal && i + kSize <= n; i += kSize) stream(reinterpret_cast<float*>(row + i), Vec<float>(0));
  std::memset(row + i, 0, static_cast<size_t>(n - i) * sizeof *row);
}

template <typename S, typename A>
void close(S* row, int64_t stride, int steps, int n, const Rows<A>& opened, bool non_temporal) {
  for (int k = 0; k < steps && row != nullptr; ++k) close(row + k * stride, n, opened[k], non_temporal);
}

// ---- spikes that forward saves as bits

// Saves whether each membrane spikes. g++ would not vectorise a loop that compares wide numbers and writes bytes.
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

// Makes membranes that spike or not, as the bits say.
template <typename A>
void from_spikes(int n, const uint8_t* saved, int bit, const Lane<A>& threshold, A* mem) {
  const auto fill_membranes = [=](auto threshold_of) {
    SNN_INDEPENDENT
    for (int i = 0; i < n; ++i) {
      const A t = threshold_of(i), above = just_above(t);
      mem[i] = (saved[i] >> bit & 1) != 0 ? above : t;
    }
  };
  const A* const values = threshold.values;
  if (threshold.mask != 0) return fill_membranes([values](int i) { return values[i]; });
  fill_membranes([value = values[0]](int) { return value; });  // a loop of its own vectorises better
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
