// Surrogate derivatives of the step H(z), z = mem - threshold, as compile-time functors.
//
// Each functor turns the user's parameters into at most two coefficients, once per call, and computes the derivative
// from them. The formulas are those of snntorch.surrogate 1.0.0. snnfast/surrogate has them in PyTorch, with their
// sources.
#pragma once

#include <cmath>

#include "exponential.h"
#include "scalar.h"

namespace snnfast {

// The one list of surrogates: the functors below and their names. The decorators in snnfast/surrogate/__init__.py have
// the same names in the same order, and the two lists are compared when the package is imported. `none`, through which
// no gradient passes, follows as the last.
#define SNN_SURROGATES(X)                          \
  X(ATan, "atan")                                  \
  X(FastSigmoid, "fast_sigmoid")                   \
  X(Sigmoid, "sigmoid")                            \
  X(StraightThrough, "straight_through_estimator") \
  X(Heaviside, "heaviside")                        \
  X(Triangular, "triangular")                      \
  X(SpikeRateEscape, "spike_rate_escape")          \
  X(SFS, "SFS")                                    \
  X(LSO, "LSO")

#define SNN_KIND(kind, name) k##kind,
#define SNN_NAME(kind, name) name,
enum class SurrogateKind : int { SNN_SURROGATES(SNN_KIND) kNone };
inline constexpr const char* kSurrogateNames[] = {SNN_SURROGATES(SNN_NAME) "none"};
#undef SNN_KIND
#undef SNN_NAME
inline constexpr int kSurrogateKinds = static_cast<int>(SurrogateKind::kNone) + 1;

struct Coefficients {
  double a = 0, b = 0;
};

struct AsGiven {  // the coefficients are the parameters; some functors use one of them, or none
  static Coefficients coefficients(double first, double second) { return {first, second}; }
};

struct ATan {  // alpha
  static Coefficients coefficients(double alpha, double) { return {1.57079632679489661923 * alpha, alpha / 2}; }
  template <typename T>
  static SNN_HD T derivative(T z, T a, T b) {
    const T y = a * z;
    return b / (y * y + T(1));
  }
};

struct FastSigmoid : AsGiven {  // slope
  template <typename T>
  static SNN_HD T derivative(T z, T a, T) {
    const T y = a * magnitude(z) + T(1);
    return T(1) / (y * y);
  }
};

struct Sigmoid : AsGiven {  // slope
  template <typename T>
  static SNN_HD T derivative(T z, T a, T) {  // even in z, so that an exponential of a non-positive number suffices
    const T e = exp_of_nonpositive(-magnitude(a * z));
    const T y = T(1) + e;
    return a * e / (y * y);
  }
};

// ATan and FastSigmoid as one formula, for kernels that use the same instructions for either:
// 1 / ((a |z| + shift)^2 + rest). Or Sigmoid: e / (rest (1 + e))^2, e = 2^(-a |z|). The numbers are arguments of the
// kernel.
struct Slope {
  float a = 0, shift = 0, rest = 0;
  bool exponential = false;

  // Whether there is one. Its reciprocals are of numbers far from 0 and infinity.
  static bool fits(SurrogateKind kind, const Coefficients& given) {
    constexpr double kLeast = 1e-6, kMost = 1e6;
    if (kind == SurrogateKind::kFastSigmoid) return given.a >= 0;
    const bool other = kind == SurrogateKind::kATan || kind == SurrogateKind::kSigmoid;
    return other && given.a >= kLeast && given.a <= kMost;
  }

  static Slope of(SurrogateKind kind, const Coefficients& given) {
    constexpr double kLog2E = 1.44269504088896340736;
    const auto make = [](double a, double shift, double rest, bool exponential) {
      return Slope{static_cast<float>(a), static_cast<float>(shift), static_cast<float>(rest), exponential};
    };
    if (kind == SurrogateKind::kSigmoid) return make(given.a * kLog2E, 0, 1 / std::sqrt(given.a), true);
    if (kind == SurrogateKind::kATan) return make(given.a / std::sqrt(given.b), 0, 1 / given.b, false);
    return make(given.a, 1, 0, false);
  }
};

struct StraightThrough : AsGiven {
  template <typename T>
  static SNN_HD T derivative(T, T, T) {
    return T(1);
  }
};

struct Heaviside : AsGiven {
  template <typename T>
  static SNN_HD T derivative(T z, T, T) {
    return heaviside(z);
  }
};

struct Triangular : AsGiven {  // threshold
  template <typename T>
  static SNN_HD T derivative(T z, T a, T) {
    return select(z >= T(0), -a, a);
  }
};

struct SpikeRateEscape : AsGiven {  // beta, slope; for beta < 0 the function grows and needs the general exponential
  template <typename T>
  static SNN_HD T derivative(T z, T a, T b) {
    const T x = -a * magnitude(z - T(1));
    const T e = exp_of_nonpositive(-magnitude(x));
    return b * select(x > T(0), T(1) / e, e);
  }
};

struct SFS : AsGiven {  // slope, B
  template <typename T>
  static SNN_HD T derivative(T z, T a, T b) {
    const T y = a * magnitude(z) + T(1);
    return heaviside(z - b) / (y * y);
  }
};

struct LSO : AsGiven {  // slope
  template <typename T>
  static SNN_HD T derivative(T z, T a, T) {
    return select(z > T(0), T(1), a);
  }
};

struct NoSurrogate : AsGiven {
  template <typename T>
  static SNN_HD T derivative(T, T, T) {
    return T(0);
  }
};

// Calls f with the functor of a kind; folds away where the kind is a constant.
template <typename F>
SNN_HD auto visit_surrogate(SurrogateKind kind, F&& f) {
  switch (kind) {
#define SNN_CASE(kind, name) \
  case SurrogateKind::k##kind: return f(kind{});
    SNN_SURROGATES(SNN_CASE)
#undef SNN_CASE
    case SurrogateKind::kNone: break;
  }
  return f(NoSurrogate{});
}

}  // namespace snnfast
