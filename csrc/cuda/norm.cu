// Batch normalisation in training and the neuron behind it: kernels whose threads hold all steps of their neurons in
// registers. Neither the normalised input nor a membrane is written. Statistics read the input once; forward reads it
// once more and writes the spikes; backward reads input and gradient twice, to sum what the statistics of a channel
// take off its gradients, and to write these.
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

// The reset. Threads of a single node ask for it, because two kernels are not worth their size there.
template <typename Neuron, int V, Reset kReset>
__device__ __forceinline__ ResetRule rule_of(const Problem<Neuron>& p) {
  return {ResetsAtOnce<Neuron> && V == 1 ? p.rule.reset : kReset, true};
}

// Calls f. For threads of several nodes in float32 it has a copy of the code for each way to charge, which is a
// constant there: it takes a fourth of the instructions off, and half precision moves less for as many.
template <typename Neuron, typename S, int V, typename F>
__device__ __forceinline__ void with_charge(float (&parameters)[Neuron::kParameters], F&& f) {
  if constexpr (ResetsAtOnce<Neuron> && V > 1 && sizeof(S) == sizeof(float)) {
    if (parameters[2] > 1) {
      parameters[2] = 2;
      return f();
    }
    if (parameters[2] > 0) {
      parameters[2] = 1;
      return f();
    }
    parameters[2] = 0;
  }
  f();
}

template <typename P, typename S, int V, int kC, int kT>
__global__ void __launch_bounds__(kThreads) statistics_norm_kernel(const P p) {
  __shared__ double memory[2 * kT * kC][kThreads];
  const int T = kT == kNormFew ? kT : static_cast<int>(p.T);
  const Place<V, kC> place(p.norm);
  double own[2 * kT * kC] = {};
  if (place.there) {
    Raw<S, V> x[kT];
    request<S, V>(static_cast<const S*>(p.x) + place.first, p.N, T, x);
#pragma unroll
    for (int i = 0; i < kT * V; ++i) {
      float values[V];
      unpack(x[i / V], values);
      double* const sums = own + 2 * (i / V * kC + i % kC);
      const double value = values[i % V];
      sums[0] += value;
      sums[1] += value * value;
    }
  }
  const auto finish = [&](int64_t at, int64_t channel, double sum, double squares, double share) {
    const double mean = sum * share, apart = squares * share - mean * mean, variance = apart < 0 ? 0 : apart;
    const double inverse = 1 / std::sqrt(variance + p.eps);
    const double scale = p.weight != nullptr ? p.weight[channel] * inverse : inverse;
    const double shift = (p.bias != nullptr ? p.bias[channel] : 0) - mean * scale;
    store<kNormNumbers>(p.numbers + kNormNumbers * at, {scale, shift, mean, inverse});
    p.variance[at] = static_cast<float>(variance);
    return Pair{mean, variance / (1 - share)};
  };
  const auto average = [&](int64_t channel, int rows, auto&& of, double) { p.running.enter(channel, rows, of); };
  sum_channels<kC>(p.norm, T, own, 2 * kT * kC, memory, finish, average);
}

template <typename Neuron, typename S, int V, int kC, int kT, Reset kReset>
__global__ void __launch_bounds__(kThreads) forward_norm_kernel(const ForwardNorm<Neuron> p) {
  const int T = kT == kNormFew ? kT : static_cast<int>(p.T);
  const Place<V, kC> place(p.norm);
  if (!place.there) return;
  Raw<S, V> x[kT];
  Raw<float, 2> numbers[kC][kT];
  request<S, V>(static_cast<const S*>(p.x) + place.first, p.N, T, x);
  request(p.norm, p.channels, kNormNumbers, place.channel, T, numbers);
  plain::in_order();
  float parameters[Neuron::kParameters], state[V][Neuron::kStates];
  plain::load_numbers<S, V>(p, 0, parameters);
  initial_states<float, V>(p, place.first).to(state);
  const ResetRule rule = rule_of<Neuron, V, kReset>(p);
  S* spk = static_cast<S*>(p.spk) + place.first;
  with_charge<Neuron, S, V>(parameters, [&] {
#pragma unroll
    for (int k = 0; k < kT; ++k) {
      if (k >= T) break;
      float y[V], spikes[V];
      unpack(x[k], y);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float of[2];
        unpack(numbers[i % kC][k], of);
        spikes[i] = Neuron::step(rule, of[0] * y[i] + of[1], state[i], parameters).spk;
      }
      store<V>(spk, spikes);
      plain::advance(spk, p.N);
    }
  });
  for (int s = 0; s < Neuron::kStates; ++s) {
    if (p.last[s] != nullptr) store_row(static_cast<float*>(p.last[s]) + place.first, s, state);
  }
}

// The least number of blocks at once. With fewer the compiler takes a few registers too many for 16-bit elements.
template <typename S, int V, int kC>
constexpr int kLeastBlocks = sizeof(S) == 2 && V > 1 && kC == 1 ? 5 : 3;

// kWrite: the gradient of x is written; else the two sums of each channel are made that it needs.
template <typename Neuron, typename S, int V, int kC, int kT, Reset kReset, bool kWrite>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<S, V, kC>) backward_norm_kernel(const BackwardNorm<Neuron> p) {
  const ResetRule rule = rule_of<Neuron, V, kReset>(p);
  constexpr int kOfSteps = 2 * kT * kC, kOwn = kOfSteps + (kOpen<Neuron> ? kC : 0);
  __shared__ double memory[kWrite ? 1 : kOwn][kThreads];
  const int T = kT == kNormFew ? kT : static_cast<int>(p.T);
  const Place<V, kC> place(p.norm);
  float own[kOwn] = {};
  if (place.there) {
    Raw<S, V> x[kT], gradients[kT];
    Raw<float, kNormNumbers> numbers[kC][kT];
    [[maybe_unused]] Raw<float, 2> through[kC][kT];
    request<S, V>(static_cast<const S*>(p.x) + place.first, p.N, T, x);
    request<S, V>(static_cast<const S*>(p.grad_spk) + place.first, p.grad_spk_stride, T, gradients);
    request(p.norm, p.channels, kNormNumbers, place.channel, T, numbers);
    if constexpr (kWrite) request(p.norm, p.through, 2, place.channel, T, through);
    plain::in_order();
    float parameters[Neuron::kParameters], state[V][Neuron::kStates];
    float before[kT][V][Neuron::kStates], v[kT][V], carry[V][Neuron::kStates] = {};
    float of_parameters[kC][Neuron::kParameters] = {};
    plain::load_numbers<S, V>(p, 0, parameters);
    initial_states<float, V>(p, place.first).to(state);
    for (int s = 0; s < Neuron::kStates; ++s) {
      if (p.grad_last[s] != nullptr) load_row(static_cast<const float*>(p.grad_last[s]) + place.first, s, carry);
    }
    with_charge<Neuron, S, V>(parameters, [&] {
#pragma unroll
      for (int k = 0; k < kT; ++k) {
        float values[V];
        unpack(x[k], values);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          float of[kNormNumbers];
          unpack(numbers[i % kC][k], of);
          plain::copy(before[k][i], state[i]);
          v[k][i] = Neuron::step(rule, of[0] * values[i] + of[1], state[i], parameters).v;
        }
      }
      S* grad_x = plain::further(static_cast<S*>(p.grad_x), (T - 1) * p.N + place.first);
#pragma unroll
      for (int k = kT - 1; k >= 0; --k) {
        if (k >= T) continue;
        float values[V], spk[V], slope[V], dx[V], none[Neuron::kStates];
        fill(none, -0.0f);
        slopes<kOpen<Neuron>>(p.slope, v[k], parameters[p.kThreshold], slope);
        unpack(x[k], values);
        unpack(gradients[k], spk);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          float of[kNormNumbers];
          unpack(numbers[i % kC][k], of);
          const float apart = values[i] - of[2];
          const Given<float> given{spk[i], slope[i], true};
          float read = 0;  // what the sum of the first parameter reads
          if constexpr (kOpen<Neuron> && !kWrite) {
            read = Neuron::driven(of[0] * values[i] + of[1], before[k][i][0], parameters);
          }
          const float dy = Neuron::template adjoint<Fused>(rule, read, before[k][i], v[k][i], given, none, parameters,
                                                           carry[i], of_parameters[i % kC]);
          if constexpr (kWrite) {
            float line[2];
            unpack(through[i % kC][k], line);
            dx[i] = Fused::multiply_add(of[0], dy, Fused::multiply_add(line[1], apart, line[0]));
          } else {
            float* const sums = own + 2 * (k * kC + i % kC);
            sums[0] = i < kC ? dy : sums[0] + dy;
            sums[1] = Fused::multiply_add(dy, apart, sums[1]);
          }
        }
        if constexpr (kWrite) {
          store<V>(grad_x, dx);
          plain::advance(grad_x, -p.N);
        }
      }
    });
    for (int j = 0; kOpen<Neuron> && !kWrite && j < kC; ++j) own[kOfSteps + j] = of_parameters[j][0];
    for (int s = 0; kWrite && s < Neuron::kStates; ++s) {
      if (p.grad_initial[s] != nullptr) store_row(static_cast<float*>(p.grad_initial[s]) + place.first, s, carry);
    }
  }
  if constexpr (!kWrite) {
    const auto finish = [&](int64_t at, int64_t, double sum, double apart, double share) {
      float numbers[kNormNumbers];
      load<kNormNumbers>(p.channels + kNormNumbers * at, numbers);
      const double scale = numbers[0], inverse = numbers[3];
      store<2>(p.through + 2 * at, {-scale * sum * share, -scale * inverse * inverse * apart * share});
      return Pair{sum, apart * inverse};
    };
    const bool learns = kOpen<Neuron> && p.of_first != nullptr;
    const auto gradients = [&](int64_t channel, int rows, auto&& of, double first) {
      double of_bias = 0, of_weight = 0;
#pragma unroll 1
      for (int row = 0; row < rows; ++row) {
        const Pair sums = of(row);
        of_bias += sums.first;
        of_weight += sums.second;
      }
      p.sums[channel] = static_cast<float>(of_bias);
      p.sums[p.norm.C + channel] = static_cast<float>(of_weight);
      if (learns) p.of_first[channel] = first;
    };
    sum_channels<kC>(p.norm, T, own, learns ? kOwn : kOfSteps, memory, finish, gradients);
  }
}

template <int V, int kC, int kT, Reset kReset = Reset::kSubtract>
struct Of {};

// Calls f with an element, and with V, kC, kT and the reset of the kernel. The one for few steps is for no fewer.
template <bool kMayClear, typename P, typename F>
int visit(const P& p, F&& f) {
  return visit_element<false>(p.dtype, [&](auto element) {
    const bool last = p.norm.channels_last;
    if (p.T > 8) return f(element, Of<1, 1, kMostNormSteps>{});
    if (!p.norm.vectors) return f(element, Of<1, 1, 8>{});
    if constexpr (kMayClear) {
      constexpr Reset kZero = Reset::kZero;
      if (p.rule.reset == kZero && last) return f(element, Of<4, 4, kNormFew, kZero>{});
      if (p.rule.reset == kZero) return f(element, Of<4, 1, kNormFew, kZero>{});
    }
    return last ? f(element, Of<4, 4, kNormFew>{}) : f(element, Of<4, 1, kNormFew>{});
  });
}

template <typename P>
int launch_norm(void (*kernel)(P), bool sums, void* stream, const P& p) {
  const int error = sums ? clear(p.norm.partial_sums, p.norm.groups.by * sizeof(double), stream) : 0;
  return error != 0 ? error : launch_blocks(kernel, int64_t{p.norm.blocks} * p.norm.groups.by, kThreads, stream, p);
}

}  // namespace
}  // namespace norm

bool norm_wants_vectors(int64_t neurons, std::initializer_list<const void*> rows) {
  return wants_vectors(Pass::kBackward, neurons, 4) &&
         std::ranges::all_of(rows, [](auto row) { return is_aligned(row); });
}

int norm_statistics(const Statistics& p, void* stream) {
  return norm::visit<false>(p, [&]<typename S, int V, int kC, int kT>(S, norm::Of<V, kC, kT>) {
    return norm::launch_norm(norm::statistics_norm_kernel<Statistics, S, V, kC, kT>, true, stream, p);
  });
}

template <typename Neuron>
int norm_forward(ForwardNorm<Neuron> p, void* stream) {
  plain::set_numbers(p);
  const auto run = [&]<typename S, int V, int kC, int kT, Reset kReset>(S, norm::Of<V, kC, kT, kReset>) {
    return norm::launch_norm(norm::forward_norm_kernel<Neuron, S, V, kC, kT, kReset>, false, stream, p);
  };
  return norm::visit<norm_resets<Neuron>(Reset::kZero)>(p, run);
}

template <typename Neuron>
int norm_backward(BackwardNorm<Neuron> p, void* stream) {
  plain::set_numbers(p);
  p.slope = Slope::of(p.surrogate, p.coefficients);
  const auto run = [&]<typename S, int V, int kC, int kT, Reset kReset>(S, norm::Of<V, kC, kT, kReset>) {
    constexpr auto kSums = norm::backward_norm_kernel<Neuron, S, V, kC, kT, kReset, false>;
    constexpr auto kWrites = norm::backward_norm_kernel<Neuron, S, V, kC, kT, kReset, true>;
    const int error = norm::launch_norm(kSums, true, stream, p);
    return error != 0 || p.grad_x == nullptr ? error : norm::launch_norm(kWrites, false, stream, p);
  };
  return norm::visit<norm_resets<Neuron>(Reset::kZero)>(p, run);
}

template int norm_forward<Leaky>(ForwardNorm<Leaky>, void*);
template int norm_backward<Leaky>(BackwardNorm<Leaky>, void*);
template int norm_forward<IFNode>(ForwardNorm<IFNode>, void*);
template int norm_backward<IFNode>(BackwardNorm<IFNode>, void*);

}  // namespace snnfast::cuda
