// Compiled once for each instruction set. The rules at the top of ../unroll/kernels.cpp hold here too.
//
// The samples of a channel are rows of lanes. A lane sums over the rows of a block in the opmath dtype, a few rows at a
// time; blocks and lanes are then added in double. Units, parts, lanes and blocks depend on the shape only, so no sum
// depends on the number of threads or on the instruction set.
#include <type_traits>

#include "../convert.h"
#include "batch_norm.h"
#include "lanes.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

constexpr int kMostLanes = 512;   // of a unit
constexpr int kChannels = 256;    // the least of a unit in channels_last order, if there are so many
constexpr int kSmallImage = 128;  // the most samples of an image that is a part of a row in contiguous order
constexpr int kUnits = 8;         // the least of a call in contiguous order, if there are so many channels
constexpr int kParts = 16;        // the most of a call
constexpr int kPartRows = 1024;   // the least of a part
constexpr int kBlock = 16384;     // the most elements of a block

template <typename T>
T least(T a, T b) {
  return a < b ? a : b;
}

// ---- how a call is divided

// Some channels of a step; in channels_last order perhaps one of several parts of the rows.
struct Unit {
  int64_t step, first;
  int channels;
  int64_t part = 0, parts = 1;
};

// Rows of lanes in memory, and the number of the first lane in its unit.
struct Rows {
  int64_t at, count, stride;
  int lanes, first;
};

// Whether a row has samples of all channels of a unit. In contiguous order, these are whole images.
bool has_shared_rows(const BatchNorm& p) { return p.channels_last || p.S <= kSmallImage; }

int lanes_of_channel(const BatchNorm& p) {
  if (p.channels_last) return samples_per_row(p.C);
  return has_shared_rows(p) ? static_cast<int>(p.S) : kImageLanes;
}

int channels_per_unit(const BatchNorm& p) {
  if (!p.channels_last) {
    const int64_t fair = p.T * p.C / kUnits, most = least<int64_t>(p.C, kMostLanes / lanes_of_channel(p));
    return static_cast<int>(fair < 1 ? 1 : least(fair, most));
  }
  const int64_t parts = p.C < kChannels ? 1 : p.C / kChannels;
  return static_cast<int>((p.C + parts - 1) / parts);
}

int64_t units_per_step(const BatchNorm& p) {
  const int64_t channels = channels_per_unit(p);
  return (p.C + channels - 1) / channels;
}

int64_t units(const BatchNorm& p) { return p.T * units_per_step(p); }

Unit unit(const BatchNorm& p, int64_t number) {
  const int64_t per_step = units_per_step(p), channels = channels_per_unit(p), first = number % per_step * channels;
  return {number / per_step, first, static_cast<int>(least(channels, p.C - first))};
}

int64_t parts(const BatchNorm& p) {
  const int64_t found = p.channels_last ? p.samples() / samples_per_row(p.C) / kPartRows : 1;
  return found < 1 ? 1 : least<int64_t>(found, kParts);
}

Unit part(const BatchNorm& p, int64_t number) { return {0, 0, static_cast<int>(p.C), number, parts(p)}; }

template <typename Visit>
void each_block(const Rows& rows, Visit&& visit) {
  if (rows.lanes == 0) return;
  const int64_t most = least(kMostRows, kBlock / rows.lanes);
  for (int64_t i = 0; i < rows.count; i += most) {
    visit(Rows{rows.at + i * rows.stride, least(most, rows.count - i), rows.stride, rows.lanes, rows.first});
  }
}

// Visits the blocks of a unit.
template <typename Visit>
void each_block(const BatchNorm& p, const Unit& u, Visit&& visit) {
  const int64_t step = u.step * p.C * p.samples();
  if (p.channels_last) {
    const int samples = samples_per_row(p.C);
    const int64_t rows = p.samples() / samples, rest = p.samples() % samples, row = p.C * samples;
    const int64_t begin = rows * u.part / u.parts, end = rows * (u.part + 1) / u.parts;
    each_block(Rows{step + u.first + begin * row, end - begin, row, u.channels * samples, 0}, visit);
    if (u.part + 1 == u.parts) each_block(Rows{step + u.first + rows * row, rest, p.C, u.channels, 0}, visit);
    return;
  }
  if (has_shared_rows(p)) {
    each_block(Rows{step + u.first * p.S, p.B, p.C * p.S, static_cast<int>(u.channels * p.S), 0}, visit);
    return;
  }
  const int64_t rows = p.S / kImageLanes, rest = p.S % kImageLanes;
  for (int64_t b = 0; b < p.B; ++b) {
    for (int c = 0; c < u.channels; ++c) {
      const int64_t image = step + (b * p.C + u.first + c) * p.S;
      each_block(Rows{image, rows, kImageLanes, kImageLanes, c * kImageLanes}, visit);
      each_block(Rows{image + rows * kImageLanes, 1, 0, static_cast<int>(rest), c * kImageLanes}, visit);
    }
  }
}

// Calls `f(lane, channel)` for each lane of a unit.
template <typename F>
void each_lane(const BatchNorm& p, const Unit& u, F&& f) {
  const int repeats = lanes_of_channel(p);
  for (int c = 0; c < u.channels; ++c) {
    for (int i = 0; i < repeats; ++i) f(p.channels_last ? i * u.channels + c : c * repeats + i, c);
  }
}

// ---- blocks in the opmath dtype

template <typename A>
struct Block {
  A* at;
  int64_t stride;
};

template <typename S, typename A = Opmath<S>>
Block<const A> load(const void* from, const Rows& rows, A* scratch) {
  const S* const at = static_cast<const S*>(from) + rows.at;
  if constexpr (std::is_same_v<S, A>) {
    return {at, rows.stride};
  } else {
    for (int64_t r = 0; r < rows.count; ++r) load_row(at + r * rows.stride, rows.lanes, scratch + r * rows.lanes);
    return {scratch, rows.lanes};
  }
}

// Where a block is computed that `store` writes.
template <typename S, typename A = Opmath<S>>
Block<A> open(void* to, const Rows& rows, A* scratch) {
  if constexpr (std::is_same_v<S, A>) {
    return {static_cast<S*>(to) + rows.at, rows.stride};
  } else {
    return {scratch, rows.lanes};
  }
}

template <typename S, typename A = Opmath<S>>
void store(void* to, const Rows& rows, const A* scratch) {
  if constexpr (!std::is_same_v<S, A>) {
    S* const at = static_cast<S*>(to) + rows.at;
    for (int64_t r = 0; r < rows.count; ++r) store_row(at + r * rows.stride, rows.lanes, scratch + r * rows.lanes);
  }
}

// Two sums for each lane of a unit.
struct Sums {
  double first[kMostLanes] = {}, second[kMostLanes] = {};

  // Adds the sums over a block.
  template <typename A, typename Terms>
  void add(const Rows& rows, Terms&& terms) {
    A a[kMostLanes], b[kMostLanes];
    sum_rows<A>(rows.lanes, rows.count, a, b, terms);
    for (int i = 0; i < rows.lanes; ++i) {
      first[rows.first + i] += static_cast<double>(a[i]);
      second[rows.first + i] += static_cast<double>(b[i]);
    }
  }
};

// The same for each channel.
struct ChannelSums {
  double first[kMostLanes] = {}, second[kMostLanes] = {};

  ChannelSums(const BatchNorm& p, const Unit& u, const Sums& sums) {
    each_lane(p, u, [&](int lane, int channel) {
      first[channel] += sums.first[lane];
      second[channel] += sums.second[lane];
    });
  }

  // Of all parts of a call.
  explicit ChannelSums(const BatchNorm& p) {
    for (int64_t i = 0; i < parts(p); ++i) {
      const double* const sums = p.sums + i * 2 * p.C;
      for (int c = 0; c < p.C; ++c) first[c] += sums[c], second[c] += sums[p.C + c];
    }
  }

  // Keeps those of one part.
  void keep(const BatchNorm& p, int64_t number) const {
    double* const sums = p.sums + number * 2 * p.C;
    for (int c = 0; c < p.C; ++c) sums[c] = first[c], sums[p.C + c] = second[c];
  }
};

// Calls `make(row, lane)` for all vectors of a block, and stores the results.
template <typename A, typename Make>
void write(const Rows& rows, const Block<A>& to, Make&& make) {
  each_vector<A>(rows.lanes, [&]<typename V, int N>(V, Number<N>, int lane) {
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int j = 0; j < N; ++j) {
        const int i = lane + j * kWidth<V, A>;
        put_lanes(to.at + r * to.stride + i, make(V(), r, i));
      }
    }
  });
}

// ---- forward

// Constants of lanes: each has that of its channel.
template <typename A>
struct Lanes {
  A at[kMostLanes];

  Lanes(const BatchNorm& p, const Unit& u, const A* of_channels) {
    each_lane(p, u, [&](int lane, int channel) { at[lane] = of_channels[channel]; });
  }
};

// Where a call has the parameters of the channels of a unit.
template <typename A>
const A* parameter(const void* data, bool varies, const BatchNorm& p, const Unit& u) {
  return data == nullptr ? nullptr : static_cast<const A*>(data) + (varies ? u.step * p.C : 0) + u.first;
}

// Adds x - shift and its square.
template <typename S, typename A = Opmath<S>>
void add_block(const BatchNorm& p, const Rows& rows, const A* shift, A* scratch, Sums& sums) {
  const Block<const A> x = load<S>(p.x, rows, scratch);
  sums.add<A>(rows, [&]<typename V>(int64_t r, int lane, V& s, V& t) {
    s = lanes_at<V>(x.at + r * x.stride + lane) - lanes_at<V>(shift + rows.first + lane);
    t = s * s;
  });
}

template <typename S>
constexpr int kScratch = std::is_same_v<S, Opmath<S>> ? 1 : kBlock;

// The sum of squares loses no digits if the samples are taken from near their mean: from that of the first sample, or
// of the first block. All parts of a unit have the same.
template <typename S, typename A = Opmath<S>>
struct Shift {
  A at[kMostLanes] = {};

  Shift(const BatchNorm& p, Unit u) {
    u.part = 0, u.parts = 1;
    A scratch[kScratch<S>];
    const A zeros[kMostLanes] = {};
    Sums first;
    int64_t seen = 0, before = -1;
    each_block(p, u, [&](const Rows& rows) {
      if (rows.first <= before) return;
      before = rows.first;
      add_block<S>(p, rows, zeros, scratch, first);
      seen = rows.count * rows.lanes / (has_shared_rows(p) ? u.channels : 1);
    });
    const ChannelSums sums(p, u, first);
    for (int c = 0; c < u.channels; ++c) at[c] = static_cast<A>(sums.first[c] / static_cast<double>(seen));
  }
};

template <typename S, typename A = Opmath<S>>
ChannelSums add(const BatchNormForward& p, const Unit& u, const Shift<S>& shift) {
  A scratch[kScratch<S>];
  Sums all;
  const Lanes<A> shifts(p, u, shift.at);
  each_block(p, u, [&](const Rows& rows) { add_block<S>(p, rows, shifts.at, scratch, all); });
  return {p, u, all};
}

template <typename S, typename A = Opmath<S>>
void write_output(const BatchNormForward& p, const Unit& u, const Shift<S>& shift, const ChannelSums& sums) {
  A scratch[kScratch<S>], made[kScratch<S>];
  const double n = static_cast<double>(p.samples());
  const A* const weight = parameter<A>(p.weight, p.weight_varies, p, u);
  const A* const bias = parameter<A>(p.bias, p.bias_varies, p, u);
  A mean[kMostLanes], scale[kMostLanes];
  for (int c = 0; c < u.channels; ++c) {
    const double from_shift = sums.first[c] / n, found = sums.second[c] / n - from_shift * from_shift;
    const double variance = found < 0 ? 0 : found;  // NaN stays
    const double inverse = 1 / __builtin_sqrt(variance + p.eps);
    mean[c] = static_cast<A>(static_cast<double>(shift.at[c]) + from_shift);
    scale[c] = static_cast<A>(weight == nullptr ? inverse : inverse * static_cast<double>(weight[c]));
    if (u.part > 0) continue;
    const int64_t at = u.step * p.C + u.first + c;
    static_cast<A*>(p.variance)[at] = static_cast<A>(variance);
    if (p.mean != nullptr) static_cast<A*>(p.mean)[at] = mean[c];
    if (p.numbers == nullptr) continue;
    const A numbers[] = {scale[c], bias == nullptr ? A(0) : bias[c], mean[c], static_cast<A>(inverse)};
    for (int k = 0; k < kNormNumbers; ++k) static_cast<A*>(p.numbers)[at * kNormNumbers + k] = numbers[k];
  }
  if (p.y == nullptr) return;

  const A zeros[kMostLanes] = {};
  const Lanes<A> means(p, u, mean), scales(p, u, scale), biases(p, u, bias == nullptr ? zeros : bias);
  each_block(p, u, [&](const Rows& rows) {
    const Block<const A> x = load<S>(p.x, rows, scratch);
    write<A>(rows, open<S>(p.y, rows, made), [&]<typename V>(V, int64_t r, int lane) {
      const int i = rows.first + lane;
      const V from_mean = lanes_at<V>(x.at + r * x.stride + lane) - lanes_at<V>(means.at + i);
      return from_mean * lanes_at<V>(scales.at + i) + lanes_at<V>(biases.at + i);
    });
    store<S>(p.y, rows, made);
  });
}

template <typename S>
void forward(const BatchNormForward& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const Unit u = unit(p, i);
    const Shift<S> shift(p, u);
    write_output(p, u, shift, add(p, u, shift));
  }
}

template <typename S>
void forward_add_parts(const BatchNormForward& p, int64_t first, int64_t last) {
  const Shift<S> shift(p, part(p, first));
  for (int64_t i = first; i < last; ++i) add(p, part(p, i), shift).keep(p, i);
}

template <typename S>
void forward_write_parts(const BatchNormForward& p, int64_t first, int64_t last) {
  const Shift<S> shift(p, part(p, first));
  const ChannelSums sums(p);
  for (int64_t i = first; i < last; ++i) write_output(p, part(p, i), shift, sums);
}

// ---- backward

// With g the gradient of the output, and m and s the mean and 1 / sqrt(variance + eps):
//   weight * s * (g - mean(g) - (x - m) * s^2 * mean(g * (x - m)))
template <typename S, typename A = Opmath<S>>
ChannelSums add(const BatchNormBackward& p, const Unit& u) {
  A of_x[kScratch<S>], of_grad[kScratch<S>];
  const Lanes<A> means(p, u, static_cast<const A*>(p.mean) + u.step * p.C + u.first);
  Sums all;
  each_block(p, u, [&](const Rows& rows) {
    const Block<const A> x = load<S>(p.x, rows, of_x), grad = load<S>(p.grad, rows, of_grad);
    all.add<A>(rows, [&]<typename V>(int64_t r, int lane, V& s, V& t) {
      s = lanes_at<V>(grad.at + r * grad.stride + lane);
      t = s * (lanes_at<V>(x.at + r * x.stride + lane) - lanes_at<V>(means.at + rows.first + lane));
    });
  });
  return {p, u, all};
}

template <typename S, typename A = Opmath<S>>
void write_gradients(const BatchNormBackward& p, const Unit& u, const ChannelSums& sums) {
  A of_x[kScratch<S>], of_grad[kScratch<S>], made[kScratch<S>];
  const int64_t at = u.step * p.C + u.first;
  const double n = static_cast<double>(p.samples());
  const A* const weight = parameter<A>(p.weight, p.weight_varies, p, u);
  const A* const variances = static_cast<const A*>(p.variance) + at;
  A scale[kMostLanes], constant[kMostLanes], slope[kMostLanes];
  for (int c = 0; c < u.channels; ++c) {
    const double variance = static_cast<double>(variances[c]) + p.eps, inverse = 1 / __builtin_sqrt(variance);
    scale[c] = static_cast<A>(weight == nullptr ? inverse : inverse * static_cast<double>(weight[c]));
    constant[c] = static_cast<A>(sums.first[c] / n);
    slope[c] = static_cast<A>(sums.second[c] / n / variance);
    if (u.part > 0) continue;
    p.grad_bias[at + c] = sums.first[c];
    p.grad_weight[at + c] = sums.second[c] * inverse;
  }

  const Lanes<A> means(p, u, static_cast<const A*>(p.mean) + at), scales(p, u, scale), constants(p, u, constant),
      slopes(p, u, slope);
  each_block(p, u, [&](const Rows& rows) {
    const Block<const A> x = load<S>(p.x, rows, of_x), grad = load<S>(p.grad, rows, of_grad);
    write<A>(rows, open<S>(p.grad_x, rows, made), [&]<typename V>(V, int64_t r, int lane) {
      const int i = rows.first + lane;
      const V from_mean = lanes_at<V>(x.at + r * x.stride + lane) - lanes_at<V>(means.at + i);
      const V rest = lanes_at<V>(grad.at + r * grad.stride + lane) - lanes_at<V>(constants.at + i);
      return (rest - from_mean * lanes_at<V>(slopes.at + i)) * lanes_at<V>(scales.at + i);
    });
    store<S>(p.grad_x, rows, made);
  });
}

template <typename S>
void backward(const BatchNormBackward& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const Unit u = unit(p, i);
    write_gradients<S>(p, u, add<S>(p, u));
  }
}

template <typename S>
void backward_add_parts(const BatchNormBackward& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) add<S>(p, part(p, i)).keep(p, i);
}

template <typename S>
void backward_write_parts(const BatchNormBackward& p, int64_t first, int64_t last) {
  const ChannelSums sums(p);
  for (int64_t i = first; i < last; ++i) write_gradients<S>(p, part(p, i), sums);
}

// ---- the gradient through a normalisation whose result only neurons read

template <typename S, typename A = Opmath<S>>
void write_step(const NormedGradients& p, int64_t t, int64_t row, int64_t first, int64_t last) {
  using P = NormedGradients;
  const float* const of[] = {p.norm.row(t, P::kMean), p.norm.row(t, P::kConstant), p.norm.row(t, P::kSlope),
                             p.norm.row(t, P::kScale)};
  constexpr int kSome = 1024;
  A of_x[kScratch<S>], made[kScratch<S>];
  for (int64_t i = first; i < last; i += kSome) {
    const Rows rows{row * p.N + i, 1, 0, static_cast<int>(least<int64_t>(kSome, last - i)), 0};
    const A* const x = load<S>(p.x, rows, of_x).at;
    A* const grad = const_cast<A*>(load<S>(p.grad, rows, made).at);
    each_of_channels(p.norm.channels, of, i, rows.lanes, false, [&]<typename V>(int j, const V(&n)[4]) {
      const V from_mean = lanes_at<V>(x + j) - n[0], rest = lanes_at<V>(grad + j) - n[1];
      put_lanes(grad + j, (rest - from_mean * n[2]) * n[3]);
    });
    store<S>(p.grad, rows, made);
  }
}

template <typename S>
constexpr BatchNormPass<BatchNormForward> kForward{forward<S>, forward_add_parts<S>, forward_write_parts<S>};

template <typename S>
constexpr BatchNormPass<BatchNormBackward> kBackward{backward<S>, backward_add_parts<S>, backward_write_parts<S>};

}  // namespace

const BatchNormKernels& batch_norm_kernels() {
  static constexpr BatchNormKernels kernels{
      units,
      parts,
      {kForward<float>, kForward<double>, kForward<Half>, kForward<BFloat16>},
      {kBackward<float>, kBackward<double>, kBackward<Half>, kBackward<BFloat16>},
      {write_step<float>, nullptr, write_step<Half>, write_step<BFloat16>},
  };
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
