// Compiled once for each instruction set. The rules at the top of kernels.cpp hold here too.
#include "pooling.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "../vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// Vectors of so many channels of one pixel. They fit a register: GCC takes the numbers of wider ones one by one.
template <int Lanes>
struct Channels {
  typedef float Floats __attribute__((vector_size(Lanes * 4)));
  typedef int32_t Ints __attribute__((vector_size(Lanes * 4)));
  typedef uint8_t Bytes __attribute__((vector_size(Lanes)));
};

template <typename Vector>
void load(Vector& v, const void* from) {
  std::memcpy(&v, from, sizeof v);
}

template <int Lanes>
using Lane = std::integral_constant<int, Lanes>;

// Visits the places of a window by their number and their offset. Side: that of the kernel, or 0 to take it from p.
template <int Side, typename Visit>
void each_place(const Pooling& p, Visit&& visit) {
  const int rows = Side > 0 ? Side : p.kernel_y, columns = Side > 0 ? Side : p.kernel_x;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) visit(i * columns + j, (int64_t{i} * p.W + j) * p.C);
  }
}

// Visits so many channels, or windows of a row, in vectors. The last one may overlap the one before.
template <typename Visit>
void each_vector(int count, Visit&& visit) {
  constexpr int kMost = kVectorBytes / 4;
  int i = 0;
  for (; i + kMost <= count; i += kMost) visit(Lane<kMost>(), i);
  if (kMost > 8 && i + 8 <= count) visit(Lane<8>(), i), i += 8;
  if (kMost > 4 && i + 4 <= count) visit(Lane<4>(), i), i += 4;
  if (i < count && count >= 4) return visit(Lane<4>(), count - 4);
  for (; i < count; ++i) visit(Lane<1>(), i);
}

// Visits the channels of all windows of an image, in vectors, by their offset in the input and in the output.
template <typename Visit>
void each_window(const Pooling& p, Visit&& visit) {
  int64_t output = 0;
  for (int y = 0; y < p.Y; ++y) {
    for (int x = 0; x < p.X; ++x, output += p.C) {
      const int64_t input = (int64_t{y} * p.stride_y * p.W + int64_t{x} * p.stride_x) * p.C;
      each_vector(p.C, [&](auto lanes, int c) { visit(lanes, input + c, output + c); });
    }
  }
}

// As in PyTorch, a NaN is larger than any number. The last of several NaN counts, and the first of equal numbers.
template <typename Floats, typename Ints>
void take(const Floats& value, int k, Floats& most, Ints& place) {
  const Ints taken = (value > most) | (value != value);
  most = taken ? value : most;
  place = taken ? k - Ints{} : place;
}

template <int Lanes>
void store_results(const typename Channels<Lanes>::Floats& most, const typename Channels<Lanes>::Ints& place,
                   float* largest, uint8_t* places) {
  typename Channels<Lanes>::Bytes bytes;
  resize(place, bytes);
  std::memcpy(largest, &most, sizeof most);
  std::memcpy(places, &bytes, sizeof bytes);
}

template <int Lanes>
void load_places(typename Channels<Lanes>::Ints& place, const uint8_t* places) {
  typename Channels<Lanes>::Bytes bytes;
  load(bytes, places);
  resize(bytes, place);
}

template <int Lanes, int Side>
void forward_lanes(const Pooling& p, const float* window, float* largest, uint8_t* places) {
  using C = Channels<Lanes>;
  typename C::Floats most, value;
  typename C::Ints place{};
  load(most, window);
  each_place<Side>(p, [&](int k, int64_t offset) {
    load(value, window + offset);
    take(value, k, most, place);
  });
  store_results<Lanes>(most, place, largest, places);
}

template <int Lanes, int Side>
void backward_lanes(const Pooling& p, const float* grad, const uint8_t* places, float* window) {
  using C = Channels<Lanes>;
  typename C::Floats g;
  typename C::Ints place;
  load(g, grad);
  load_places<Lanes>(place, places);
  each_place<Side>(p, [&](int k, int64_t offset) {
    const typename C::Floats value = place == k ? g : typename C::Floats{};
    std::memcpy(window + offset, &value, sizeof value);
  });
}

// PyTorch's order of the sum.
template <int Lanes, int Side>
void average_lanes(const Pooling& p, const float* window, float* mean) {
  typename Channels<Lanes>::Floats sum{}, value;
  each_place<Side>(p, [&](int, int64_t offset) {
    load(value, window + offset);
    sum += value;
  });
  sum /= static_cast<float>(p.kernel_y * p.kernel_x);
  std::memcpy(mean, &sum, sizeof sum);
}

template <int Lanes, int Side>
void average_backward_lanes(const Pooling& p, const float* grad, float* window) {
  typename Channels<Lanes>::Floats g;
  load(g, grad);
  g /= static_cast<float>(p.kernel_y * p.kernel_x);
  each_place<Side>(p, [&](int, int64_t offset) { std::memcpy(window + offset, &g, sizeof g); });
}

// ---- windows of two by two side by side, of an image of one channel: a vector has one place of several windows

bool has_pairs(const Pooling& p) { return p.C == 1 && p.kernel_y == 2 && p.kernel_x == 2 && p.stride_x == 2; }

template <typename Visit>
void each_pair(const Pooling& p, Visit&& visit) {
  for (int y = 0; y < p.Y; ++y) {
    const int64_t input = int64_t{y} * p.stride_y * p.W, output = int64_t{y} * p.X;
    each_vector(p.X, [&](auto lanes, int x) { visit(lanes, input + 2 * x, output + x); });
  }
}

template <int Lanes, int... I>
void forward_pairs(const Pooling& p, const float* windows, float* largest, uint8_t* places,
                   std::integer_sequence<int, I...>) {
  using C = Channels<Lanes>;
  typename C::Floats most, low, high;
  typename C::Ints place{};
  for (int row = 0; row < 2; ++row) {
    load(low, windows + row * p.W);
    load(high, windows + row * p.W + Lanes);
    const typename C::Floats even = __builtin_shufflevector(low, high, 2 * I...);
    const typename C::Floats odd = __builtin_shufflevector(low, high, 2 * I + 1 ...);
    if (row == 0) most = even;
    take(even, 2 * row, most, place);
    take(odd, 2 * row + 1, most, place);
  }
  store_results<Lanes>(most, place, largest, places);
}

template <int Lanes, int... I>
void backward_pairs(const Pooling& p, const float* grad, const uint8_t* places, float* windows,
                    std::integer_sequence<int, I...>) {
  using C = Channels<Lanes>;
  typename C::Floats g;
  typename C::Ints place;
  load(g, grad);
  load_places<Lanes>(place, places);
  for (int row = 0; row < 2; ++row) {
    const typename C::Floats even = place == 2 * row ? g : typename C::Floats{};
    const typename C::Floats odd = place == 2 * row + 1 ? g : typename C::Floats{};
    const typename C::Floats low = __builtin_shufflevector(even, odd, I / 2 + I % 2 * Lanes...);
    const typename C::Floats high = __builtin_shufflevector(even, odd, (Lanes + I) / 2 + I % 2 * Lanes...);
    std::memcpy(windows + row * p.W, &low, sizeof low);
    std::memcpy(windows + row * p.W + Lanes, &high, sizeof high);
  }
}

// Calls f with the side of a common square kernel as a constant, or with 0.
template <typename F>
void with_side(const Pooling& p, F&& f) {
  if (p.kernel_y == 2 && p.kernel_x == 2) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 0>{});
}

// Zeros where no window is.
void clear_rest(const Pooling& p, float* of_image) {
  if (!p.covers_image()) std::memset(of_image, 0, static_cast<size_t>(p.inputs()) * sizeof(float));
}

void forward(const Pooling& p, const float* image, float* largest, uint8_t* places) {
  if (has_pairs(p)) {
    return each_pair(p, [&]<int Lanes>(Lane<Lanes>, int64_t in, int64_t out) {
      if constexpr (Lanes == 1) {
        forward_lanes<1, 2>(p, image + in, largest + out, places + out);
      } else {
        forward_pairs<Lanes>(p, image + in, largest + out, places + out, std::make_integer_sequence<int, Lanes>());
      }
    });
  }
  with_side(p, [&]<int Side>(std::integral_constant<int, Side>) {
    each_window(p, [&]<int Lanes>(Lane<Lanes>, int64_t in, int64_t out) {
      forward_lanes<Lanes, Side>(p, image + in, largest + out, places + out);
    });
  });
}

void backward(const Pooling& p, const float* grad, const uint8_t* places, float* of_image) {
  clear_rest(p, of_image);
  if (has_pairs(p)) {
    return each_pair(p, [&]<int Lanes>(Lane<Lanes>, int64_t in, int64_t out) {
      if constexpr (Lanes == 1) {
        backward_lanes<1, 2>(p, grad + out, places + out, of_image + in);
      } else {
        backward_pairs<Lanes>(p, grad + out, places + out, of_image + in, std::make_integer_sequence<int, Lanes>());
      }
    });
  }
  with_side(p, [&]<int Side>(std::integral_constant<int, Side>) {
    each_window(p, [&]<int Lanes>(Lane<Lanes>, int64_t in, int64_t out) {
      backward_lanes<Lanes, Side>(p, grad + out, places + out, of_image + in);
    });
  });
}

void average(const Pooling& p, const float* image, float* means) {
  with_side(p, [&]<int Side>(std::integral_constant<int, Side>) {
    each_window(p, [&]<int Lanes>(Lane<Lanes>, int64_t in, int64_t out) {
      average_lanes<Lanes, Side>(p, image + in, means + out);
    });
  });
}

void average_backward(const Pooling& p, const float* grad, float* of_image) {
  clear_rest(p, of_image);
  with_side(p, [&]<int Side>(std::integral_constant<int, Side>) {
    each_window(p, [&]<int Lanes>(Lane<Lanes>, int64_t in, int64_t out) {
      average_backward_lanes<Lanes, Side>(p, grad + out, of_image + in);
    });
  });
}

}  // namespace

const PoolingKernels& pooling_kernels() {
  static constexpr PoolingKernels kernels{forward, backward, average, average_backward};
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
