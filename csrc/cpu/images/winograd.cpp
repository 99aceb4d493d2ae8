// Compiled once for each instruction set. The rules at the top of ../unroll/kernels.cpp hold here too.
//
// Sums are cut into runs of channels, whose order is the same for all instruction sets. They are multiply_add's, so
// their bits depend on whether that rounds once.
#include "winograd.h"

#include <cstring>
#include <type_traits>

#include "../vec.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

using V = Vec<float>;
using D = Vec<double>;
typedef float Floats __attribute__((vector_size(D::kSize * 4)));  // as many as doubles fit a register

constexpr int kGroup = kWinogradGroup;
constexpr int kMostVectors = kRegisters == 32 ? 4 : 2;  // of output channels in a block

// The tiles whose sums are in registers at a time. Two vectors more hold a row of the weights and an input.
constexpr int rows_of(int vectors) { return vectors == kMostVectors ? 6 : 8; }

// ---- the transforms along one dimension

template <int Side>
struct Transform;

// F(2, 3) with the points 0, 1, -1 and infinity.
template <>
struct Transform<2> {
  static SNN_HD void input(const V (&d)[4], V (&to)[4]) {
    to[0] = d[0] - d[2];
    to[1] = d[1] + d[2];
    to[2] = d[2] - d[1];
    to[3] = d[1] - d[3];
  }

  static SNN_HD void weight(const D (&g)[3], D (&to)[4]) {
    const D half(0.5), even = (g[0] + g[2]) * half, odd = g[1] * half;
    to[0] = g[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = g[2];
  }

  static SNN_HD void output(const V (&m)[4], V (&to)[2]) {
    to[0] = m[0] + m[1] + m[2];
    to[1] = m[1] - m[2] - m[3];
  }
};

// F(4, 3) with the points 0, a, -a, b, -b and infinity. With the usual ones, 1 and 2, errors are three times as large.
// Those of all points near these are alike. Powers of these have few bits, so that every factor is exact.
template <>
struct Transform<4> {
  static constexpr double kA = 21.0 / 32, kB = 3.0 / 2, kA2 = kA * kA, kB2 = kB * kB;

  static SNN_HD V constant(double value) { return V(static_cast<float>(value)); }

  static SNN_HD void input(const V (&d)[6], V (&to)[6]) {
    const V a = constant(kA), b = constant(kB), a2 = constant(-kA2), b2 = constant(-kB2);
    const V sum = constant(-kA2 - kB2), product = constant(kA2 * kB2);
    to[0] = multiply_add(product, d[0], multiply_add(sum, d[2], d[4]));
    const V even_a = multiply_add(b2, d[2], d[4]), odd_a = multiply_add(b2, d[1], d[3]);
    to[1] = multiply_add(a, odd_a, even_a);
    to[2] = multiply_add(-a, odd_a, even_a);
    const V even_b = multiply_add(a2, d[2], d[4]), odd_b = multiply_add(a2, d[1], d[3]);
    to[3] = multiply_add(b, odd_b, even_b);
    to[4] = multiply_add(-b, odd_b, even_b);
    to[5] = multiply_add(product, d[1], multiply_add(sum, d[3], d[5]));
  }

  static SNN_HD void weight(const D (&g)[3], D (&to)[6]) {
    constexpr double kOfA = 1 / (2 * kA2 * (kA2 - kB2)), kOfB = 1 / (2 * kB2 * (kB2 - kA2));
    const D even_a = (g[0] + g[2] * D(kA2)) * D(kOfA), odd_a = g[1] * D(kA * kOfA);
    const D even_b = (g[0] + g[2] * D(kB2)) * D(kOfB), odd_b = g[1] * D(kB * kOfB);
    to[0] = g[0] * D(1 / (kA2 * kB2));
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = g[2];
  }

  static SNN_HD void output(const V (&m)[6], V (&to)[4]) {
    const V a = constant(kA), b = constant(kB), a2 = constant(kA2), b2 = constant(kB2);
    const V sum_a = m[1] + m[2], of_a = m[1] - m[2], sum_b = m[3] + m[4], of_b = m[3] - m[4];
    to[0] = m[0] + (sum_a + sum_b);
    to[1] = multiply_add(a, of_a, b * of_b);
    to[2] = multiply_add(a2, sum_a, b2 * sum_b);
    to[3] = multiply_add(constant(kA2 * kA), of_a, constant(kB2 * kB) * of_b) + m[5];
  }
};

// ---- the transforms of images

// Where a tile is: its image, and its first output.
struct Place {
  int64_t n;
  int y, x;

  Place(const Winograd& p, int64_t tile) {
    const int64_t row = tile / p.tiles_x();
    n = row / p.tiles_y();
    y = static_cast<int>(row % p.tiles_y()) * p.side;
    x = static_cast<int>(tile % p.tiles_x()) * p.side;
  }
};

// Transforms a group of channels. `next` is the distance of two places of the transformed tile.
template <int Side, int Size = Side + 2>
SNN_HD void transform_group(const float* const (&from)[Size][Size], int64_t channel, float* to, int64_t next) {
  for (int lane = 0; lane < kGroup; lane += V::kSize) {
    V columns[Size][Size];  // transformed along y
    SNN_UNROLL
    for (int x = 0; x < Size; ++x) {
      V d[Size];
      SNN_UNROLL
      for (int y = 0; y < Size; ++y) d[y] = V::load(from[y][x] + channel + lane);
      Transform<Side>::input(d, columns[x]);
    }
    SNN_UNROLL
    for (int y = 0; y < Size; ++y) {
      V d[Size], row[Size];
      SNN_UNROLL
      for (int x = 0; x < Size; ++x) d[x] = columns[x][y];
      Transform<Side>::input(d, row);
      SNN_UNROLL
      for (int x = 0; x < Size; ++x) row[x].store(to + (y * Size + x) * next + lane);
    }
  }
}

// Transforms the inputs of a tile, or zeros where there is none.
template <int Side>
void transform_tile(const Winograd& p, const float* images, const float* zeros, int64_t tile, bool is_there,
                    float* to) {
  constexpr int kSize = Side + 2;
  const float* from[kSize][kSize];
  const Place at(p, tile);
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) {
      const int y = at.y - p.padding_y + i, x = at.x - p.padding_x + j;
      const bool inside = is_there && y >= 0 && y < p.H && x >= 0 && x < p.W;
      from[i][j] = inside ? images + ((at.n * p.H + y) * p.W + x) * p.C : zeros;
    }
  }
  const int64_t next_group = int64_t{p.rows()} * kGroup;
  for (int g = 0; g < p.groups(); ++g) {
    transform_group<Side>(from, p.first_input(g), to + g * next_group, p.next_input());
  }
}

// Transforms the products of a tile to the outputs of a block. Adds 0 to `zero`, or NaN where one is not finite.
template <int Side>
void transform_outputs(const Winograd& p, const float* products, const float* bias, int64_t tile, float* outputs,
                       V& zero) {
  constexpr int kSize = Side + 2;
  const Place at(p, tile);
  const int64_t next = p.next_product();
  float* const to = outputs + ((at.n * p.Y + at.y) * p.X + at.x) * p.O;
  const int height = p.Y - at.y, width = p.X - at.x;
  for (int lane = 0; lane < p.lanes; lane += V::kSize) {
    V columns[kSize][Side];  // transformed along y
    SNN_UNROLL
    for (int x = 0; x < kSize; ++x) {
      V m[kSize];
      SNN_UNROLL
      for (int y = 0; y < kSize; ++y) m[y] = V::load(products + (y * kSize + x) * next + lane);
      Transform<Side>::output(m, columns[x]);
    }
    const V added = bias == nullptr ? V(0) : V::load(bias + lane);
    SNN_UNROLL
    for (int y = 0; y < Side; ++y) {
      V m[kSize], row[Side];
      SNN_UNROLL
      for (int x = 0; x < kSize; ++x) m[x] = columns[x][y];
      Transform<Side>::output(m, row);
      if (y >= height) break;
      SNN_UNROLL
      for (int x = 0; x < Side; ++x) {
        if (x >= width) break;
        const V sum = row[x] + added;
        zero = multiply_add(sum, V(0), zero);
        sum.store(to + (int64_t{y} * p.X + x) * p.O + lane);
      }
    }
  }
}

// ---- the products

// Adds the products of all channels of some groups, or writes them.
template <int Vectors, int Groups, int Rows = rows_of(Vectors)>
SNN_HD void multiply_rows(const float* inputs, int64_t next_group, const float* weights, float* products, bool add) {
  constexpr int kLanes = Vectors * V::kSize;
  V sums[Rows][Vectors];
  SNN_UNROLL
  for (int r = 0; r < Rows; ++r) {
    SNN_UNROLL
    for (int v = 0; v < Vectors; ++v) sums[r][v] = V(0);
  }
  for (int g = 0; g < Groups; ++g, inputs += next_group) {
    for (int c = 0; c < kGroup; ++c, weights += kLanes) {
      V row[Vectors];
      SNN_UNROLL
      for (int v = 0; v < Vectors; ++v) row[v] = V::load(weights + v * V::kSize);
      SNN_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const V input(inputs[r * kGroup + c]);
        SNN_UNROLL
        for (int v = 0; v < Vectors; ++v) sums[r][v] = multiply_add(input, row[v], sums[r][v]);
      }
    }
  }
  SNN_UNROLL
  for (int r = 0; r < Rows; ++r) {
    SNN_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      float* const to = products + r * kLanes + v * V::kSize;
      (add ? sums[r][v] + V::load(to) : sums[r][v]).store(to);
    }
  }
}

// Multiplies the inputs of all tiles with the weights of a block, at one place. The weights of a few groups stay in the
// L1 cache while all tiles pass, and those of the next ones are on their way there.
template <int Vectors, int Groups>
void multiply_groups(const Winograd& p, const float* inputs, const float* weights, float* products, int tiles) {
  constexpr int kRows = rows_of(Vectors), kLanes = Vectors * V::kSize, kWeights = Groups * kGroup * kLanes;
  constexpr int kLine = 16;
  const int64_t next_group = int64_t{p.rows()} * kGroup;
  const int calls = (tiles + kRows - 1) / kRows, lines = (kWeights / kLine + calls - 1) / calls;
  for (int group = 0; group < p.groups(); group += Groups, inputs += Groups * next_group, weights += kWeights) {
    const auto multiply = group + Groups <= p.groups() ? multiply_rows<Vectors, Groups> : multiply_rows<Vectors, 1>;
    const float* next = weights + kWeights;
    for (int t = 0; t < tiles; t += kRows) {
      for (int i = 0; i < lines; ++i, next += kLine) __builtin_prefetch(next);
      multiply(inputs + t * kGroup, next_group, weights, products + t * kLanes, group > 0);
    }
  }
}

// The longer a sum, the more it is rounded. With sums of 32 channels, F(2x2) is more exact than the usual convolution.
// F(4x4) needs shorter ones.
template <int Vectors>
void multiply(const Winograd& p, const float* inputs, const float* weights, float* products, int tiles) {
  (p.side == 2 ? multiply_groups<Vectors, 2> : multiply_groups<Vectors, 1>)(p, inputs, weights, products, tiles);
}

// ---- what the threads call

// As many vectors as leave the fewest output channels that are computed twice.
int lanes(int outputs) {
  int best = V::kSize, least = (outputs + best - 1) / best * best;
  for (int vectors = 2; vectors <= kMostVectors && vectors * V::kSize <= outputs; ++vectors) {
    const int size = vectors * V::kSize, all = (outputs + size - 1) / size * size;
    if (all <= least) best = size, least = all;
  }
  return best;
}

template <int Side>
void transform_weights(const Winograd& p, const WinogradWeights& from, int block, int group, float* to) {
  constexpr int kSize = Side + 2;
  const int64_t next = int64_t{p.channels()} * p.lanes;
  to += block * kSize * kSize * next + int64_t{group} * kGroup * p.lanes;
  for (int c = 0; c < kGroup; ++c, to += p.lanes) {
    const int channel = p.first_input(group) + c;
    for (int lane = 0; lane < p.lanes; lane += D::kSize) {
      float taps[3][3][D::kSize] = {};
      if (channel >= group * kGroup) {
        const float* const first = from.data + (p.first_output(block) + lane) * from.output + channel * from.input;
        for (int l = 0; l < D::kSize; ++l) {
          SNN_UNROLL
          for (int k = 0; k < 9; ++k) taps[k / 3][k % 3][l] = first[l * from.output + k / 3 * from.y + k % 3 * from.x];
        }
      }
      D columns[3][kSize];  // transformed along y
      SNN_UNROLL
      for (int x = 0; x < 3; ++x) {
        D g[3];
        SNN_UNROLL
        for (int y = 0; y < 3; ++y) {
          Floats values;
          std::memcpy(&values, taps[y][x], sizeof values);
          resize(values, g[y].r);
        }
        Transform<Side>::weight(g, columns[x]);
      }
      SNN_UNROLL
      for (int y = 0; y < kSize; ++y) {
        const D g[3] = {columns[0][y], columns[1][y], columns[2][y]};
        D row[kSize];
        Transform<Side>::weight(g, row);
        SNN_UNROLL
        for (int x = 0; x < kSize; ++x) {
          Floats values;
          resize(row[x].r, values);
          std::memcpy(to + (y * kSize + x) * next + lane, &values, sizeof values);
        }
      }
    }
  }
}

void transform(const Winograd& p, const WinogradWeights& from, int block, int group, float* to) {
  (p.side == 2 ? transform_weights<2> : transform_weights<4>)(p, from, block, group, to);
}

template <int Side>
bool run_tiles(const Winograd& p, const float* images, const float* weights, const float* bias, const float* zeros,
               float* scratch, int64_t first, int64_t last, float* outputs) {
  float* const inputs = scratch;
  float* const products = scratch + p.places() * p.next_input();
  const int tiles = static_cast<int>(last - first), rows = rows_of(p.lanes / V::kSize);
  for (int t = 0; t < (tiles + rows - 1) / rows * rows; ++t) {
    transform_tile<Side>(p, images, zeros, first + t, t < tiles, inputs + t * kGroup);
  }
  const auto multiply_block = [&] {
    if constexpr (kMostVectors > 2) {
      if (p.lanes == 4 * V::kSize) return multiply<4>;
      if (p.lanes == 3 * V::kSize) return multiply<3>;
    }
    return p.lanes == V::kSize ? multiply<1> : multiply<2>;
  }();
  V zero(0);
  for (int block = 0; block < p.blocks; ++block) {
    for (int place = 0; place < p.places(); ++place, weights += int64_t{p.channels()} * p.lanes) {
      multiply_block(p, inputs + place * p.next_input(), weights, products + place * p.next_product(), tiles);
    }
    const int output = p.first_output(block);
    for (int t = 0; t < tiles; ++t) {
      transform_outputs<Side>(p, products + int64_t{t} * p.lanes, bias == nullptr ? nullptr : bias + output, first + t,
                              outputs + output, zero);
    }
  }
  bool finite = true;
  for (int lane = 0; lane < V::kSize; ++lane) finite &= zero.r[lane] == 0;
  return finite;
}

bool run(const Winograd& p, const float* images, const float* weights, const float* bias, const float* zeros,
         float* scratch, int64_t first, int64_t last, float* outputs) {
  return (p.side == 2 ? run_tiles<2> : run_tiles<4>)(p, images, weights, bias, zeros, scratch, first, last, outputs);
}

}  // namespace

const WinogradKernels& winograd_kernels() {
  static constexpr WinogradKernels kernels{lanes, transform, run};
  return kernels;
}

}  // namespace snnfast::cpu::SNN_ISA
