// The kernels of SNN_NEURONS without torch, over a grid of shapes and options: for ThreadSanitizer, which would have to
// watch all of Python and torch as well. Every output must be written; a sanitizer says the rest. `driver 8` runs each
// case with eight seeds, in place of one.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "../../csrc/op/norm.h"
#include "../../csrc/op/problem.h"
#include "emulator.h"
#include "poison.h"

namespace {

using snnfast::Backward;
using snnfast::DType;
using snnfast::Forward;
using snnfast::Number;
using snnfast::Problem;
using snnfast::Saved;

size_t size_of(DType type) { return static_cast<size_t>(snnfast::element_size(type)); }
DType opmath_of(DType type) { return type == DType::kDouble ? type : DType::kFloat; }

// A tensor to the byte, so that AddressSanitizer watches its ends.
class Memory {
 public:
  Memory(DType type, int64_t count)
      : type_(type), count_(count), size_(size_of(type)), bytes_(static_cast<size_t>(count) * size_) {
    emulator::poison(bytes_.data(), bytes_.size());
  }

  // Numbers between -0.5 and 1.5, as of a current that makes some neurons spike.
  static Memory input(DType type, int64_t count) {
    Memory memory(type, count);
    for (int64_t i = 0; i < count; ++i) memory.set(i, static_cast<double>(i * 37 % 101) / 50 - 0.5);
    return memory;
  }

  void* data() { return bytes_.data(); }

  void expect_written(const char* name) const {
    const int64_t at = emulator::first_poisoned(bytes_.data(), count_, size_);
    if (at == count_) return;
    std::fprintf(stderr, "driver: %s: element %d was not written\n", name, static_cast<int>(at));
    std::exit(1);
  }

 private:
  void set(int64_t i, double value) {
    void* const at = bytes_.data() + static_cast<size_t>(i) * size_of(type_);
    switch (type_) {
      case DType::kDouble: *static_cast<double*>(at) = value; break;
      case DType::kFloat: *static_cast<float*>(at) = static_cast<float>(value); break;
      case DType::kHalf: *static_cast<__half*>(at) = __double2half(value); break;
      case DType::kBFloat16: *static_cast<__nv_bfloat16*>(at) = __double2bfloat16(value); break;
    }
  }

  DType type_;
  int64_t count_;
  size_t size_;  // of an element
  std::vector<char> bytes_;
};

void expect_success(int error) {
  if (error == 0) return;
  std::fprintf(stderr, "driver: %s\n", snnfast::cuda::error_string(error));
  std::exit(1);
}

// One tensor for each state, or parameter, and its pointers in a problem.
template <typename Pointer, size_t n>
std::vector<Memory> each(Pointer (&pointers)[n], const Memory& memory) {
  std::vector<Memory> memories(n, memory);
  for (size_t i = 0; i < n; ++i) pointers[i] = memories[i].data();
  return memories;
}

void expect_written(const std::vector<Memory>& memories, const char* name) {
  for (const Memory& memory : memories) memory.expect_written(name);
}

template <typename Neuron>
void forward_and_backward(Problem<Neuron> problem, bool record) {
  using P = Problem<Neuron>;
  const DType type = problem.dtype, opmath = opmath_of(type);
  const int64_t T = problem.T, N = problem.N;
  const int64_t x_count = problem.x_repeats ? N : T * N, spk_count = problem.reduce ? N : T * N;
  Memory x = Memory::input(type, x_count), decay = Memory::input(opmath, N);
  problem.x = x.data();
  const auto initial = each(problem.initial, Memory::input(opmath, N));
  const auto opmath_number = opmath == DType::kDouble ? Number::kDouble : Number::kFloat;
  for (int k = 0; k < P::kThreshold; ++k) problem.parameters[k] = {decay.data(), 0, 1, N, opmath_number};
  problem.parameters[P::kThreshold].value = 0.5;
  const int64_t one = 1;
  problem.parameters[P::kGraded] = {&one, 0, 1, 1, Number::kLong};

  const int64_t checkpoints = snnfast::saved_rows(Saved::kCheckpoints, T);
  Memory spk(type, spk_count), deciding(opmath, T * N), rows(opmath, checkpoints * P::kStates * N);
  Forward<Neuron> forward{};
  static_cast<P&>(forward) = problem;
  forward.spk = spk.data();
  const auto states = record ? each(forward.record, Memory(type, T * N)) : each(forward.last, Memory(opmath, N));
  forward.saved = Saved::kCheckpoints;
  if (checkpoints > 0) forward.rows = rows.data();
  expect_success(snnfast::cuda::forward(forward, nullptr));
  spk.expect_written("spk");
  expect_written(states, "the states");
  rows.expect_written("what is saved");
  if (record) {
    forward.deciding = deciding.data();
    expect_success(snnfast::cuda::forward(forward, nullptr));
    deciding.expect_written("the deciding membranes");
  }

  Memory grad_spk = Memory::input(type, spk_count), grad_x(type, x_count);
  Backward<Neuron> backward{};
  static_cast<P&>(backward) = problem;
  if (Neuron::kRecordedMembraneSuffices && record && problem.rule.delay && type == opmath) {
    backward.mem_rec = forward.record[P::kMem];
  } else {
    backward.saved = Saved::kCheckpoints;
    backward.rows = forward.rows;
  }
  backward.grad_spk = grad_spk.data();
  backward.grad_spk_stride = problem.reduce ? 0 : N;
  std::ranges::fill(backward.grad_record_stride, N);
  const auto grad_states = record ? each(backward.grad_record, Memory::input(type, T * N))
                                  : each(backward.grad_last, Memory::input(opmath, N));
  backward.derivative = forward.deciding;
  backward.surrogate = snnfast::SurrogateKind::kATan;
  backward.coefficients =
      snnfast::visit_surrogate(backward.surrogate, [](auto kind) { return decltype(kind)::coefficients(2.0, 0.0); });
  (problem.x_repeats ? backward.grad_x_sum : backward.grad_x) = grad_x.data();
  const auto grad_initial = each(backward.grad_initial, Memory(opmath, N));
  const auto grad_parameters = each(backward.grad_parameters, Memory(opmath, N));
  expect_success(snnfast::cuda::backward(backward, nullptr));
  if (record) {  // an ordinary call, which takes a plain kernel
    backward.derivative = nullptr;
    std::ranges::fill(backward.grad_record, nullptr);
    expect_success(snnfast::cuda::backward(backward, nullptr));
  }
  grad_x.expect_written("the gradient of x");
  expect_written(grad_initial, "a gradient of a state");
  for (int k = 0; k < P::kParameters; ++k) {
    if (backward.grad_parameters[k] != nullptr) grad_parameters[k].expect_written("a gradient of a parameter");
  }
}

// Batch normalisation and the neurons behind it.
template <typename Neuron>
void norm_forward_and_backward(DType type, int64_t T, snnfast::Norm norm, snnfast::Reset reset) {
  const int64_t N = norm.B * norm.C * norm.S, rows = norm.rows_of(T), channels = rows * norm.C;
  Memory x = Memory::input(type, T * N), numbers(DType::kFloat, channels * snnfast::kNormNumbers);
  Memory variance(DType::kFloat, channels), weight = Memory::input(DType::kFloat, norm.C);
  Memory sums(DType::kDouble, norm.plan(T, norm.fits_vectors(), snnfast::cuda::norm_blocks()));
  norm.partial_sums = sums.data();
  snnfast::Statistics statistics{};
  statistics.dtype = type;
  statistics.T = T;
  statistics.N = N;
  statistics.x = x.data();
  statistics.weight = static_cast<const float*>(weight.data());
  statistics.eps = 1e-5;
  statistics.numbers = static_cast<float*>(numbers.data());
  statistics.variance = static_cast<float*>(variance.data());
  statistics.norm = norm;
  expect_success(snnfast::cuda::norm_statistics(statistics, nullptr));
  numbers.expect_written("the numbers of the channels");
  variance.expect_written("the variance");

  Problem<Neuron> problem{};
  problem.dtype = type;
  problem.rule = {reset, true};
  problem.T = T;
  problem.N = N;
  problem.x = x.data();
  for (auto& parameter : problem.parameters) parameter.value = 0.5;
  Memory spk(type, T * N), grad_spk = Memory::input(type, T * N), grad_x(type, T * N);
  snnfast::ForwardNorm<Neuron> forward{};
  static_cast<Problem<Neuron>&>(forward) = problem;
  forward.norm = norm;
  forward.channels = statistics.numbers;
  forward.spk = spk.data();
  expect_success(snnfast::cuda::norm_forward(forward, nullptr));
  spk.expect_written("spk");

  Memory of_channels(DType::kFloat, 2 * norm.C), through(DType::kFloat, 2 * channels);
  Memory of_first(DType::kDouble, norm.C);
  constexpr bool kLearns = snnfast::ResetsAtOnce<Neuron>;
  snnfast::BackwardNorm<Neuron> backward{};
  static_cast<Problem<Neuron>&>(backward) = problem;
  backward.norm = norm;
  backward.channels = statistics.numbers;
  backward.grad_spk = grad_spk.data();
  backward.grad_spk_stride = N;
  backward.surrogate = snnfast::SurrogateKind::kATan;
  backward.coefficients = snnfast::ATan::coefficients(2.0, 0.0);
  backward.grad_x = grad_x.data();
  backward.sums = static_cast<float*>(of_channels.data());
  backward.through = static_cast<float*>(through.data());
  if (kLearns) backward.of_first = static_cast<double*>(of_first.data());
  expect_success(snnfast::cuda::norm_backward(backward, nullptr));
  of_channels.expect_written("the gradients of the weight and the bias");
  if (kLearns) of_first.expect_written("the gradient of the first parameter");
  grad_x.expect_written("the gradient of x");
}

// Full vectors in several blocks, single neurons, and the tail of a block; steps on both sides of a chunk. Backward
// with time shared out among warps: a block of one neuron beside a full one, warps without a chunk, and with several.
struct Shape {
  int64_t N, T;
  bool chunked;
};
constexpr Shape kShapes[] = {
    {1, 5, false}, {7, 5, false}, {264, 33, false}, {1040, 5, false}, {33, 50, true},
};

constexpr unsigned kSeeds = 8;

template <typename Neuron>
int run(unsigned seed, unsigned seeds) {
  int cases = 0;
  for (const DType dtype : {DType::kFloat, DType::kDouble, DType::kHalf, DType::kBFloat16}) {
    for (const snnfast::Reset reset : {snnfast::Reset::kSubtract, snnfast::Reset::kZero, snnfast::Reset::kNone}) {
      for (unsigned options = 0; options < 16; ++options) {
        for (const auto& [N, T, chunked] : kShapes) {
          if ((options + seed) % kSeeds >= seeds) continue;
          Problem<Neuron> problem{};
          problem.dtype = dtype;
          problem.rule = {reset, (options & 1) != 0};
          problem.x_repeats = options & 2;
          problem.reduce = options & 4;
          problem.T = T;
          problem.N = N;
          snnfast::cuda::set_chunked_limits(chunked ? 0 : T + 1, N);
          forward_and_backward(problem, options & 8);
          ++cases;
        }
      }
    }
  }
  return cases;
}

// Vectors of a channel and of a pixel, single neurons, several blocks to a channel, and groups of channels in blocks.
struct NormShape {
  int64_t B, C, S;
  bool channels_last, over_time;
};
constexpr NormShape kNorms[] = {
    {3, 8, 400, false, false},
    {3, 150, 30, true, false},
    {3, 5, 49, false, true},
    {200, 3, 1, true, true},
};

int run_norms(unsigned seed) {
  int cases = 0;
  snnfast::cuda::set_norm_blocks(seed % 2 == 0 ? 1024 : 1);  // which sum a tile each, or several
  for (const DType dtype : {DType::kFloat, DType::kHalf, DType::kBFloat16}) {
    for (const auto& [B, C, S, channels_last, over_time] : kNorms) {
      snnfast::Norm norm{};
      norm.B = B;
      norm.C = C;
      norm.S = S;
      norm.channels_last = channels_last;
      norm.over_time = over_time;
      for (const int64_t T : {3, 4, 11}) {
        norm_forward_and_backward<snnfast::Leaky>(dtype, T, norm, snnfast::Reset::kSubtract);
        norm_forward_and_backward<snnfast::IFNode>(dtype, T, norm, snnfast::Reset::kSubtract);
        norm_forward_and_backward<snnfast::IFNode>(dtype, T, norm, snnfast::Reset::kZero);
        cases += 3;
      }
    }
  }
  return cases;
}

template <typename... Neurons>
int run_all(unsigned seed, unsigned seeds) {
  return (run<Neurons>(seed, seeds) + ...);
}

}  // namespace

int main(int count, char** arguments) {
  const unsigned seeds = count > 1 ? static_cast<unsigned>(std::atoi(arguments[1])) : 1;
  int cases = 0;
  snnfast::cuda::set_vector_minimum(1);
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    cases += run_all<SNN_NEURONS>(seed, seeds);
    if (seed < seeds) cases += run_norms(seed);
  }
  std::printf("driver: %d forward and backward passes\n", cases);
}
