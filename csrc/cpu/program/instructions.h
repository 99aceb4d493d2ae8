// The instructions of programs, each a loop over one block. snnfast/_program/instructions.py has the same list.
//
// Part of kernels.cpp, whose rules hold here too. Arithmetic rounds as PyTorch's operators do: each operation by
// itself, also where one instruction does two.
#pragma once

#include <iterator>

#include "../vec.h"
#include "program.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

template <typename A>
using Run = void (*)(int n, A* to, const A* a, const A* b, const A* c, const A* d);

// ---- of vectors

template <typename A>
SNN_HD Vec<A> truth(typename Vec<A>::Mask mask) {
  return Vec<A>(mask ? Vec<A>(A(1)).r : typename Vec<A>::Value{});
}

#define SNN_BINARY(Name, expression)              \
  struct Name {                                   \
    template <typename A>                         \
    static SNN_HD Vec<A> of(Vec<A> a, Vec<A> b) { \
      return expression;                          \
    }                                             \
  };
SNN_BINARY(Add, a + b)
SNN_BINARY(Sub, a - b)
SNN_BINARY(Mul, a* b)
SNN_BINARY(Div, a / b)
SNN_BINARY(ReverseSub, b - a)
SNN_BINARY(ReverseDiv, b / a)
SNN_BINARY(Greater, truth<A>(a.r > b.r))
SNN_BINARY(GreaterEqual, truth<A>(a.r >= b.r))
SNN_BINARY(Less, truth<A>(a.r < b.r))
SNN_BINARY(LessEqual, truth<A>(a.r <= b.r))
SNN_BINARY(Equal, truth<A>(a.r == b.r))
SNN_BINARY(NotEqual, truth<A>(a.r != b.r))
// NaN is larger, and smaller, than any number; of equal ones the second is taken, as by PyTorch's vectors.
SNN_BINARY(Maximum, Vec<A>(((a.r > b.r) | (a.r != a.r)) ? a.r : b.r))
SNN_BINARY(Minimum, Vec<A>(((a.r < b.r) | (a.r != a.r)) ? a.r : b.r))
#undef SNN_BINARY

// exp(x): 2^n exp(r), of x > 0 with half the power, which overflows where the result does.
template <typename A>
SNN_HD Vec<A> exponential(Vec<A> x) {
  using Traits = ExpTraits<A>;
  const Vec<A> lowest(Traits::kLowest), highest(A(-1.03) * Traits::kLowest), round(Traits::kRound);
  const Vec<A> above = select(x < lowest, lowest, x), clamped = select(above > highest, highest, above);
  const Vec<A> shifted = clamped * Vec<A>(A(1.44269504088896340736)) + round;
  const Vec<A> n = shifted - round;
  const Vec<A> r = (clamped - n * Vec<A>(Traits::kLn2High)) - n * Vec<A>(Traits::kLn2Low);
  const Vec<A> one(A(1));
  Vec<A> polynomial = one;
  for (int k = Traits::kDegree; k > 0; --k) polynomial = one + polynomial * r * Vec<A>(A(1) / A(k));
  const Vec<A> large = polynomial * power_of_two(shifted - one) * Vec<A>(A(2));
  return select(x < lowest, Vec<A>(A(0)), select(x > Vec<A>(A(0)), large, polynomial * power_of_two(shifted)));
}

template <typename A>
SNN_HD Vec<A> logistic(Vec<A> x) {
  const Vec<A> one(A(1)), e = exp_of_nonpositive(-magnitude(x));
  return select(x >= Vec<A>(A(0)), one, e) / (one + e);
}

// tanh(x): of small x by a rational function or a polynomial (S. L. Moshier, Cephes), of others by exp.
template <typename A>
SNN_HD Vec<A> hyperbolic_tangent(Vec<A> x) {
  const Vec<A> one(A(1)), size = magnitude(x), e = exp_of_nonpositive(-(size + size)), s = x * x;
  Vec<A> small;
  if constexpr (sizeof(A) == sizeof(float)) {
    small = Vec<A>(A(-5.70498872745e-3));
    for (const double c : {2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1}) {
      small = small * s + Vec<A>(A(c));
    }
  } else {
    const Vec<A> above = (Vec<A>(A(-9.64399179425052238628e-1)) * s + Vec<A>(A(-9.92877231001918586564e1))) * s +
                         Vec<A>(A(-1.61468768441708447952e3));
    const Vec<A> below = ((s + Vec<A>(A(1.12811678491632931402e2))) * s + Vec<A>(A(2.23548839060100448583e3))) * s +
                         Vec<A>(A(4.84406305325125486048e3));
    small = above / below;
  }
  const Vec<A> large = (one - e) / (one + e);
  const Vec<A> negative = select(x < Vec<A>(A(0)), -large, large);
  return select(size < Vec<A>(A(0.625)), x + x * (s * small), negative);
}

// ---- of blocks

template <typename A, typename F>
SNN_HD void each_vector(int n, A* to, F&& f) {
#pragma GCC unroll 4
  for (int i = 0; i < n; i += Vec<A>::kSize) f(i).store(to + i);
}

template <typename Op, typename A>
void binary(int n, A* to, const A* a, const A* b, const A*, const A*) {
  each_vector(n, to, [=](int i) { return Op::of(Vec<A>::load(a + i), Vec<A>::load(b + i)); });
}

template <typename First, typename Second, typename A>
void pair(int n, A* to, const A* a, const A* b, const A* c, const A*) {
  each_vector(n, to, [=](int i) {
    return Second::of(First::of(Vec<A>::load(a + i), Vec<A>::load(b + i)), Vec<A>::load(c + i));
  });
}

template <typename Compare, typename A>
void choose(int n, A* to, const A* a, const A* b, const A* c, const A* d) {
  each_vector(n, to, [=](int i) {
    const auto condition = Compare::of(Vec<A>::load(a + i), Vec<A>::load(b + i)).r != 0;
    return select(condition, Vec<A>::load(c + i), Vec<A>::load(d + i));
  });
}

template <typename A>
void where(int n, A* to, const A* a, const A* b, const A* c, const A*) {
  each_vector(n, to,
              [=](int i) { return select(Vec<A>::load(a + i).r != 0, Vec<A>::load(b + i), Vec<A>::load(c + i)); });
}

template <typename A>
void move(int n, A* to, const A* a, const A*, const A*, const A*) {
  each_vector(n, to, [=](int i) { return Vec<A>::load(a + i); });
}
template <typename A>
void negate(int n, A* to, const A* a, const A*, const A*, const A*) {
  each_vector(n, to, [=](int i) { return -Vec<A>::load(a + i); });
}
template <typename A>
void magnitude_of(int n, A* to, const A* a, const A*, const A*, const A*) {
  each_vector(n, to, [=](int i) { return magnitude(Vec<A>::load(a + i)); });
}
template <typename A>
void exponentials(int n, A* to, const A* a, const A*, const A*, const A*) {
  each_vector(n, to, [=](int i) { return exponential(Vec<A>::load(a + i)); });
}
template <typename A>
void tangents(int n, A* to, const A* a, const A*, const A*, const A*) {
  each_vector(n, to, [=](int i) { return hyperbolic_tangent(Vec<A>::load(a + i)); });
}
template <typename A>
void logistics(int n, A* to, const A* a, const A*, const A*, const A*) {
  each_vector(n, to, [=](int i) { return logistic(Vec<A>::load(a + i)); });
}

// Functions of the C library, or instructions where there is one: GCC takes vectors of them.
#define SNN_SCALAR(name, single, wide, ...)                                                                 \
  template <typename A>                                                                                     \
  void name(int n, A* to, const A* a, [[maybe_unused]] const A* b, [[maybe_unused]] const A* c, const A*) { \
    for (int i = 0; i < n; ++i) {                                                                           \
      if constexpr (sizeof(A) == sizeof(float)) {                                                           \
        to[i] = single(__VA_ARGS__);                                                                        \
      } else {                                                                                              \
        to[i] = wide(__VA_ARGS__);                                                                          \
      }                                                                                                     \
    }                                                                                                       \
  }
SNN_SCALAR(root, __builtin_sqrtf, __builtin_sqrt, a[i])
SNN_SCALAR(floors, __builtin_floorf, __builtin_floor, a[i])
SNN_SCALAR(ceilings, __builtin_ceilf, __builtin_ceil, a[i])
SNN_SCALAR(rounded, __builtin_rintf, __builtin_rint, a[i])
SNN_SCALAR(truncated, __builtin_truncf, __builtin_trunc, a[i])
SNN_SCALAR(logarithms, __builtin_logf, __builtin_log, a[i])
SNN_SCALAR(powers, __builtin_powf, __builtin_pow, a[i], b[i])
SNN_SCALAR(fused, __builtin_fmaf, __builtin_fma, a[i], b[i], c[i])
#undef SNN_SCALAR

#define SNN_SECONDS(First)                                                                                        \
  pair<First, Add, A>, pair<First, Sub, A>, pair<First, ReverseSub, A>, pair<First, Mul, A>, pair<First, Div, A>, \
      pair<First, ReverseDiv, A>, pair<First, Greater, A>

template <typename A>
constexpr Run<A> kInstructions[] = {
    move<A>,
    binary<Add, A>,
    binary<Sub, A>,
    binary<Mul, A>,
    binary<Div, A>,
    binary<Greater, A>,
    binary<GreaterEqual, A>,
    binary<Less, A>,
    binary<LessEqual, A>,
    binary<Equal, A>,
    binary<NotEqual, A>,
    binary<Maximum, A>,
    binary<Minimum, A>,
    where<A>,
    fused<A>,
    negate<A>,
    magnitude_of<A>,
    root<A>,
    floors<A>,
    ceilings<A>,
    rounded<A>,
    truncated<A>,
    exponentials<A>,
    logarithms<A>,
    logistics<A>,
    tangents<A>,
    powers<A>,
    SNN_SECONDS(Add),
    SNN_SECONDS(Sub),
    SNN_SECONDS(Mul),
    SNN_SECONDS(Div),
    SNN_SECONDS(Greater),
    SNN_SECONDS(GreaterEqual),
    SNN_SECONDS(Less),
    SNN_SECONDS(LessEqual),
    choose<Greater, A>,
    choose<GreaterEqual, A>,
    choose<Less, A>,
    choose<LessEqual, A>,
};
#undef SNN_SECONDS

constexpr int kOperations = static_cast<int>(std::size(kInstructions<float>));

template <typename A>
void run(const program::Section& section, A* const* registers, int n) {
  for (int k = 0; k < section.count; ++k) {
    const program::Instruction& i = section.instructions[k];
    kInstructions<A>[i.op](n, registers[i.to], registers[i.from[0]], registers[i.from[1]], registers[i.from[2]],
                           registers[i.from[3]]);
  }
}

}  // namespace
}  // namespace snnfast::cpu::SNN_ISA
