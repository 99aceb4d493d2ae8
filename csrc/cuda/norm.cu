// Batch normalisation in training and the neuron behind it. Neither the normalised input nor a membrane is written.
// Statistics read the input once; forward reads it once more and writes the spikes; backward reads input and gradient
// twice, to sum what the statistics of a channel take off its gradients, and to write these. Threads take the steps in
// chunks, whose rows they request before they compute.
#include "norm.cuh"

#include <algorithm>

#include "../neurons/ifnode.h"
#include "../neurons/leaky.h"
#include "fused.cuh"

namespace snnfast::cuda {
namespace norm {
namespace {

// Whether a call may learn the first parameter of its neurons, and have the sigmoid as their surrogate.
template <typename Neuron>
constexpr bool kOpen = ResetsAtOnce<Neuron>;

// The reset. It is a constant where there is one chunk; other kernels of nodes ask for it, because two of each are not
// worth their size there.
template <typename Neuron, bool kOnce, Reset kReset>
__device__ __forceinline__ ResetRule rule_of(const Problem<Neuron>& p) {
  return {ResetsAtOnce<Neuron> && !kOnce ? p.rule.reset : kReset, true};
}

// Calls f with the parameters. For threads of several nodes in float32 it has a copy of the code for each way to
// charge, which is a constant there: it takes a fourth of the instructions off, and half precision moves less for as
// many.
template <typename Neuron, typename S, int V, typename F>
__device__ __forceinline__ void with_charge(const float (&parameters)[Neuron::kParameters], F&& f) {
  if constexpr (ResetsAtOnce<Neuron> && V > 1 && sizeof(S) == sizeof(float)) {
    float of[Neuron::kParameters];
    plain::copy(of, parameters);
    if (parameters[2] > 1) {
      of[2] = 2;
      f(of);
    } else if (parameters[2] > 0) {
      of[2] = 1;
      f(of);
    } else {
      of[2] = 0;
      f(of);
    }
  } else {
    f(parameters);
  }
}

// The mean of the first four numbers of each channel of a thread, or of one channel. Around it, sums of squares keep
// their digits in float32.
template <bool kRow, int kC, typename S>
__device__ __forceinline__ void begin(const Norm& q, const S* step, int64_t channel, float (&to)[kC]) {
  const int64_t beside = q.channels_last ? q.C : 1, most = (q.channels_last ? q.B * q.S : q.S) - 1;
  const S* const row = step + (q.channels_last ? channel : channel * q.S);
  float of[kC][4];
  if constexpr (kRow) {  // adjacent ones
    load<4>(row, of[0]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float values[kC];
      load<kC>(row + (k < most ? k : most) * beside, values);
#pragma unroll
      for (int j = 0; j < kC; ++j) of[j][k] = values[j];
    }
  }
#pragma unroll
  for (int j = 0; j < kC; ++j) to[j] = 0.25f * ((of[j][0] + of[j][1]) + (of[j][2] + of[j][3]));
}

template <typename P, typename S, int V, int kC>
__global__ void __launch_bounds__(kThreads) statistics_norm_kernel(const P p) {
  __shared__ Sums<V, kC> sums;
  const auto* const x = static_cast<const S*>(p.x);
  const int T = static_cast<int>(p.T);
  const auto step = [&](int t) { return x + (p.norm.over_time ? 0 : t * p.N); };
  const int64_t bytes = bytes_of<S>(p.N);
  Place<V, kC> place(p.norm);
  sums.clear();
#pragma unroll 1
  for (int t = 0; t < T; t += kSteps<V>) {
    float own[2 * kSteps<V> * kC] = {}, beginnings[kSteps<V>][kC];
    if (place.column < p.norm.columns) {
#pragma unroll
      for (int k = 0; k < kSteps<V>; ++k)
        begin<V == 4 && kC == 1>(p.norm, step(t + k < T ? t + k : t), place.channel, beginnings[k]);
    }
#pragma unroll 1
    for (unsigned i = 0; i < p.norm.each; ++i) {
      if (!place.move_to(p.norm, place.block * p.norm.each + i)) break;
      Raw<S, V> rows[kSteps<V>];
      const S* row = x + t * p.N + place.first;
      request(row, bytes, T - t, rows);
#pragma unroll
      for (int k = 0; k < kSteps<V>; ++k) {
        if (t + k >= T) break;
        float values[V];
        unpack(rows[k], values);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const float apart = values[v] - beginnings[k][v % kC];
          own[2 * k * kC + v % kC] += apart;
          own[(2 * k + 1) * kC + v % kC] += apart * apart;
        }
      }
    }
    sums.add(p.norm, 2 * t * kC, own);
  }
  if (!sums.add_blocks(p.norm, place, 2 * T * kC)) return;
  const auto numbers = [&](int row, int64_t channel, double sum, double squares, double share) {
    float beginning[1];
    begin<V == 4 && kC == 1>(p.norm, step(row), channel, beginning);
    const double beside = sum * share, mean = beginning[0] + beside;
    const double apart = squares * share - beside * beside, variance = apart < 0 ? 0 : apart;
    const double inverse = 1 / std::sqrt(variance + p.eps);
    const double scale = p.weight != nullptr ? p.weight[channel] * inverse : inverse;
    const double shift = (p.bias != nullptr ? p.bias[channel] : 0) - mean * scale;
    const int64_t at = row * p.norm.C + channel;
    store<kNormNumbers>(p.numbers + kNormNumbers * at, {scale, shift, mean, inverse});
    p.variance[at] = static_cast<float>(variance);
    return Pair{mean, variance / (1 - share)};
  };
  const auto average = [&](int64_t channel, int rows, auto&& of, double) { p.running.enter(channel, rows, of); };
  sums.finish(p.norm, place, T, false, numbers, average);
}

// Kernels that sum nothing take the tiles from the last one on: of what the kernel before has read, the end is still in
// the L2 cache.
template <int V, int kC>
__device__ __forceinline__ bool move_from_the_end(const Norm& q, Place<V, kC>& place) {
  return place.move_to(q, q.tiles - 1 - place.block);
}

// kOnce: there is one chunk, which is whole.
template <typename Neuron, typename S, int V, int kC, Reset kReset, bool kOnce>
__global__ void __launch_bounds__(kThreads) forward_norm_kernel(const ForwardNorm<Neuron> p) {
  Place<V, kC> place(p.norm);
  if (!move_from_the_end(p.norm, place)) return;
  const ResetRule rule = rule_of<Neuron, kOnce, kReset>(p);
  const int T = kOnce ? kSteps<V> : static_cast<int>(p.T);
  float given[Neuron::kParameters], state[V][Neuron::kStates];
  plain::load_numbers<S, V>(p, 0, given);
  initial_states<float, V>(p, place.first).to(state);
  const int64_t bytes = bytes_of<S>(p.N), to_numbers = bytes_of<float>(p.norm.over_time ? 0 : kNormNumbers * p.norm.C);
  const S* x = static_cast<const S*>(p.x) + place.first;
  const float* of_channels = p.channels + int64_t{place.channel} * kNormNumbers;
  S* spk = static_cast<S*>(p.spk) + place.first;
#pragma unroll 1
  for (int t = 0; t < T; t += kSteps<V>) {
    Raw<S, V> rows[kSteps<V>];
    Raw<float, 2> numbers[kSteps<V>][kC];
    request(x, bytes, T - t, rows);
    request<kNormNumbers>(of_channels, to_numbers, T - t, numbers);
    plain::in_order();
    with_charge<Neuron, S, V>(given, [&](const float (&parameters)[Neuron::kParameters]) {
#pragma unroll
      for (int k = 0; k < kSteps<V>; ++k) {
        if (t + k >= T) break;
        float values[V], spikes[V];
        unpack(rows[k], values);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          float of[2];
          unpack(numbers[k][i % kC], of);
          spikes[i] = Neuron::step(rule, of[0] * values[i] + of[1], state[i], parameters).spk;
        }
        store<V>(spk, spikes);
        move(spk, bytes);
      }
    });
  }
  for (int s = 0; s < Neuron::kStates; ++s) {
    if (p.last[s] != nullptr) store_row(static_cast<float*>(p.last[s]) + place.first, s, state);
  }
}

struct Nothing {};

// What drives the membranes of a node by their leak in a step, of these currents. The state before it follows from the
// membranes that decided the spikes of the one before.
template <int V, typename F>
__device__ __forceinline__ void driven(const BackwardNorm<IFNode>& p, ResetRule rule, unsigned first, int t,
                                       F&& membranes, const float (&parameters)[IFNode::kParameters],
                                       float (&currents)[V]) {
  float before[V][IFNode::kStates], v[V];
  if (t == 0) {
    initial_states<float, V>(p, first).to(before);
  } else {
    unpack(membranes(t - 1), v);
#pragma unroll
    for (int i = 0; i < V; ++i) before[i][0] = IFNode::after(rule, v[i], parameters);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) currents[i] = IFNode::driven(currents[i], before[i][0], parameters);
}

// The least number of blocks at once. Without it, the compiler takes too few registers for sums of one chunk.
template <bool kSumsOnce>
constexpr int kLeastBlocks = kSumsOnce ? 6 : 0;

// kWrite: the gradient of x is written; else the two sums of each channel are made that it needs. The membranes that
// decide the spikes wait for the way back, in shared memory where there are several chunks. There x is read again, but
// for the last chunk.
template <typename Neuron, typename S, int V, int kC, Reset kReset, bool kOnce, bool kWrite>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<kOnce && !kWrite>)
    backward_norm_kernel(const BackwardNorm<Neuron> p) {
  __shared__ Raw<float, V> waiting[kOnce ? 1 : kMostNormSteps][kThreads];
  Raw<float, V> near[kSteps<V>];
  const auto membranes = [&](int t) -> Raw<float, V>& {
    if constexpr (kOnce) return near[t];
    return waiting[t][threadIdx.x];
  };
  __shared__ std::conditional_t<kWrite, Nothing, Sums<V, kC>> sums;
  const ResetRule rule = rule_of<Neuron, kOnce, kReset>(p);
  const int T = kOnce ? kSteps<V> : static_cast<int>(p.T), last = (T - 1) / kSteps<V> * kSteps<V>;
  const bool learns = kOpen<Neuron> && !kWrite && p.of_first != nullptr;
  Place<V, kC> place(p.norm);
  float given[Neuron::kParameters];
  plain::load_numbers<S, V>(p, 0, given);
  if constexpr (!kWrite) sums.clear();
  const int64_t bytes = bytes_of<S>(p.N), of_gradients = bytes_of<S>(p.grad_spk_stride);
  const int64_t to_numbers = bytes_of<float>(p.norm.over_time ? 0 : kNormNumbers * p.norm.C);
  [[maybe_unused]] const int64_t to_through = bytes_of<float>(p.norm.over_time ? 0 : 2 * p.norm.C);
#pragma unroll 1
  for (unsigned i = 0; i < (kWrite ? 1 : p.norm.each); ++i) {
    bool there;
    if constexpr (kWrite) {
      there = move_from_the_end(p.norm, place);
      if (!there) return;
    } else {
      there = place.move_to(p.norm, place.block * p.norm.each + i);
    }
    const S *x = static_cast<const S*>(p.x) + place.first, *grad_spk = static_cast<const S*>(p.grad_spk) + place.first;
    S* grad_x = plain::further(static_cast<S*>(p.grad_x), place.first);
    move(grad_x, (T - 1) * bytes);
    const float* of_channels = p.channels + int64_t{place.channel} * kNormNumbers;
    [[maybe_unused]] const float* of_through = p.through + int64_t{place.channel} * 2;
    Raw<S, V> rows[kSteps<V>], gradients[kSteps<V>];
    float state[V][Neuron::kStates], carry[V][Neuron::kStates] = {}, of_parameters[kC][Neuron::kParameters] = {};
    if (there) {
      move(grad_spk, last * of_gradients);
      if (kWrite) move(of_through, last * to_through);
      request(grad_spk, of_gradients, T - last, gradients);
      initial_states<float, V>(p, place.first).to(state);
      for (int s = 0; s < Neuron::kStates; ++s) {
        if (p.grad_last[s] != nullptr) load_row(static_cast<const float*>(p.grad_last[s]) + place.first, s, carry);
      }
#pragma unroll 1
      for (int t = 0; t < T; t += kSteps<V>) {
        Raw<float, 2> numbers[kSteps<V>][kC];
        request(x, bytes, T - t, rows);
        request<kNormNumbers>(of_channels, to_numbers, T - t, numbers);
        plain::in_order();
        with_charge<Neuron, S, V>(given, [&](const float (&parameters)[Neuron::kParameters]) {
#pragma unroll
          for (int k = 0; k < kSteps<V>; ++k) {
            if (t + k >= T) break;
            float values[V], v[V];
            unpack(rows[k], values);
#pragma unroll
            for (int j = 0; j < V; ++j) {
              float of[2];
              unpack(numbers[k][j % kC], of);
              v[j] = Neuron::step(rule, of[0] * values[j] + of[1], state[j], parameters).v;
            }
            membranes(t + k) = raw_of(v);
          }
        });
      }
    }
    move(of_channels, -kSteps<V> * to_numbers);
#pragma unroll 1
    for (int t = last; t >= 0; t -= kSteps<V>) {
      float own[2 * kSteps<V> * kC] = {};
      if (there) {
        Raw<float, kNormNumbers> numbers[kSteps<V>][kC];
        [[maybe_unused]] Raw<float, 2> through[kSteps<V>][kC];
        request<kNormNumbers>(of_channels, to_numbers, T - t, numbers);
        move(of_channels, -2 * kSteps<V> * to_numbers);
        if constexpr (kWrite) {
          request<2>(of_through, to_through, T - t, through);
          move(of_through, -2 * kSteps<V> * to_through);
        }
        with_charge<Neuron, S, V>(given, [&](const float (&parameters)[Neuron::kParameters]) {
#pragma unroll
          for (int k = kSteps<V> - 1; k >= 0; --k) {
            if (t + k >= T) continue;
            float values[V], v[V], spk[V], slope[V], dx[V], none[Neuron::kStates];
            float read[V] = {};  // what the sum of the first parameter reads
            fill(none, -0.0f);
            unpack(membranes(t + k), v);
            slopes<kOpen<Neuron>>(p.slope, v, parameters[p.kThreshold], slope);
            unpack(rows[k], values);
            unpack(gradients[k], spk);
            if constexpr (kOpen<Neuron> && !kWrite) {
              if (learns) {
#pragma unroll
                for (int j = 0; j < V; ++j) {
                  float of[kNormNumbers];
                  unpack(numbers[k][j % kC], of);
                  read[j] = of[0] * values[j] + of[1];
                }
                driven<V>(p, rule, place.first, t + k, membranes, parameters, read);
              }
            }
#pragma unroll
            for (int j = 0; j < V; ++j) {
              float of[kNormNumbers];
              unpack(numbers[k][j % kC], of);
              const float apart = values[j] - of[2];
              const Given<float> of_spike{spk[j], slope[j], true};
              const float dy = Neuron::template adjoint<Fused>(rule, read[j], none, v[j], of_spike, none, parameters,
                                                               carry[j], of_parameters[j % kC]);
              if constexpr (kWrite) {
                float line[2];
                unpack(through[k][j % kC], line);
                dx[j] = Fused::multiply_add(of[0], dy, Fused::multiply_add(line[1], apart, line[0]));
              } else {
                float* const of_step = own + 2 * k * kC + j % kC;
                of_step[0] = j < kC ? dy : of_step[0] + dy;
                of_step[kC] = Fused::multiply_add(dy, apart, of_step[kC]);
              }
            }
            if constexpr (kWrite) {
              store<V>(grad_x, dx);
              move(grad_x, -bytes);
            }
          }
        });
        if (t > 0) {
          move(x, -2 * kSteps<V> * bytes);
          move(grad_spk, -2 * kSteps<V> * of_gradients);
          request(x, bytes, kSteps<V>, rows);
          request(grad_spk, of_gradients, kSteps<V>, gradients);
        }
      }
      if constexpr (!kWrite) sums.add(p.norm, (learns + 2 * t) * kC, own);
    }
    if constexpr (kWrite) {
      for (int s = 0; s < Neuron::kStates; ++s) {
        if (p.grad_initial[s] != nullptr) store_row(static_cast<float*>(p.grad_initial[s]) + place.first, s, carry);
      }
    } else if (learns) {
      float own[kC];
#pragma unroll
      for (int j = 0; j < kC; ++j) own[j] = of_parameters[j][0];
      sums.add(p.norm, 0, own);
    }
  }
  if constexpr (!kWrite) {
    if (!sums.add_blocks(p.norm, place, (learns + 2 * T) * kC)) return;
    const auto lines = [&](int row, int64_t channel, double sum, double apart, double share) {
      const int64_t at = row * p.norm.C + channel;
      float numbers[kNormNumbers];
      load<kNormNumbers>(p.channels + kNormNumbers * at, numbers);
      const double scale = numbers[0], inverse = numbers[3];
      store<2>(p.through + 2 * at, {-scale * sum * share, -scale * inverse * inverse * apart * share});
      return Pair{sum, apart * inverse};
    };
    const auto gradients = [&](int64_t channel, int rows, auto&& of, double first) {
      double of_bias = 0, of_weight = 0;
#pragma unroll 1
      for (int row = 0; row < rows; ++row) {
        const Pair found = of(row);
        of_bias += found.first;
        of_weight += found.second;
      }
      p.sums[channel] = static_cast<float>(of_bias);
      p.sums[p.norm.C + channel] = static_cast<float>(of_weight);
      if (learns) p.of_first[channel] = first;
    };
    sums.finish(p.norm, place, T, learns, lines, gradients);
  }
}

template <int V, int kC, Reset kReset = Reset::kSubtract, bool kOnce = false>
struct Of {};

// Calls f with an element, and with the template arguments of the kernel behind it.
template <typename Neuron, typename P, typename F>
int visit_steps(const P& p, F&& f) {
  return visit_element<false>(p.dtype, [&]<typename S>(S element) {
    const bool by_pixel = p.norm.channels_last;
    if (!p.norm.vectors) return f(element, Of<1, 1>{});
    if (p.T != kSteps<4>) return by_pixel ? f(element, Of<4, 4>{}) : f(element, Of<4, 1>{});
    const auto once = [&]<Reset kReset>(std::integral_constant<Reset, kReset>) {
      return by_pixel ? f(element, Of<4, 4, kReset, true>{}) : f(element, Of<4, 1, kReset, true>{});
    };
    if constexpr (norm_resets<Neuron>(Reset::kZero)) {
      if (p.rule.reset == Reset::kZero) return once(std::integral_constant<Reset, Reset::kZero>{});
    }
    return once(std::integral_constant<Reset, Reset::kSubtract>{});
  });
}

template <typename P>
int launch_norm(void (*kernel)(P), bool sums, void* stream, const P& p) {
  const int error = sums ? clear(p.norm.partial_sums, p.norm.groups.by * sizeof(double), stream) : 0;
  const int64_t blocks = int64_t{sums ? p.norm.blocks : p.norm.tiles} * p.norm.groups.by;
  return error != 0 ? error : launch_blocks(kernel, blocks, kThreads, stream, p);
}

}  // namespace
}  // namespace norm

bool norm_wants_vectors(int64_t neurons, std::initializer_list<const void*> rows) {
  return wants_vectors(Pass::kBackward, neurons, 4) &&
         std::ranges::all_of(rows, [](auto row) { return is_aligned(row); });
}

int norm_statistics(const Statistics& p, void* stream) {
  return visit_element<false>(p.dtype, [&]<typename S>(S) {
    const auto run = [&](auto kernel) { return norm::launch_norm(kernel, true, stream, p); };
    if (!p.norm.vectors) return run(norm::statistics_norm_kernel<Statistics, S, 1, 1>);
    if (p.norm.channels_last) return run(norm::statistics_norm_kernel<Statistics, S, 4, 4>);
    return run(norm::statistics_norm_kernel<Statistics, S, 4, 1>);
  });
}

template <typename Neuron>
int norm_forward(ForwardNorm<Neuron> p, void* stream) {
  plain::set_numbers(p);
  const auto run = [&]<typename S, int V, int kC, Reset kReset, bool kOnce>(S, norm::Of<V, kC, kReset, kOnce>) {
    return norm::launch_norm(norm::forward_norm_kernel<Neuron, S, V, kC, kReset, kOnce>, false, stream, p);
  };
  return norm::visit_steps<Neuron>(p, run);
}

template <typename Neuron>
int norm_backward(BackwardNorm<Neuron> p, void* stream) {
  plain::set_numbers(p);
  p.slope = Slope::of(p.surrogate, p.coefficients);
  const auto run = [&]<typename S, int V, int kC, Reset kReset, bool kOnce>(S, norm::Of<V, kC, kReset, kOnce>) {
    constexpr auto kSums = norm::backward_norm_kernel<Neuron, S, V, kC, kReset, kOnce, false>;
    constexpr auto kWrites = norm::backward_norm_kernel<Neuron, S, V, kC, kReset, kOnce, true>;
    const int error = norm::launch_norm(kSums, true, stream, p);
    return error != 0 || p.grad_x == nullptr ? error : norm::launch_norm(kWrites, false, stream, p);
  };
  return norm::visit_steps<Neuron>(p, run);
}

template int norm_forward<Leaky>(ForwardNorm<Leaky>, void*);
template int norm_backward<Leaky>(BackwardNorm<Leaky>, void*);
template int norm_forward<IFNode>(ForwardNorm<IFNode>, void*);
template int norm_backward<IFNode>(BackwardNorm<IFNode>, void*);

}  // namespace snnfast::cuda
