// The ops of programs: elementwise instructions that run for all steps, and back through them. snnfast/_program makes
// their code; the checks here keep it from touching memory that is not its own, whatever it says.
//
// Code is int32. Forward: the numbers of series, states, parameters, constants, outputs, temporaries, instructions;
// then the registers of the outputs and of the new states; then the instructions. Backward: the numbers of series,
// states, parameters, constants, gradients of outputs, saved values, temporaries, instructions of the first and of the
// second section; then the registers of the new states (or -1), the saved values, the carries, the gradients of series
// and of parameters (or -1); then both sections.
#include "../cpu/program/program.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../cpu/parallel.h"
#include "tensors.h"

namespace snnfast {
namespace {

using cpu::program::Backward;
using cpu::program::Forward;
using cpu::program::Instruction;
using cpu::program::Kernels;
using cpu::program::Parameter;
using cpu::program::Program;
using cpu::program::Section;
using cpu::program::Series;
using cpu::program::Workspace;

constexpr int32_t kMost = 1 << 15;                 // of anything that code counts
constexpr int64_t kMostValues = int64_t{1} << 43;  // so that no size in bytes overflows
constexpr int64_t kGrain = 1 << 18;                // instructions, of a neuron each, that are worth a thread

const Kernels& kernels() { SNN_RETURN_OF_CURRENT_ISA(program_kernels()) }

// Code, from its beginning to its end.
class Words {
 public:
  explicit Words(const Tensor& code) {
    STD_TORCH_CHECK(code.is_cpu() && code.scalar_type() == ScalarType::Int && code.dim() == 1 && code.is_contiguous(),
                    "code: expected contiguous int32 [*] on the CPU");
    next_ = static_cast<const int32_t*>(code.const_data_ptr());
    left_ = code.numel();
  }

  const int32_t* take(int64_t count) {
    STD_TORCH_CHECK(count <= left_, "code: too short");
    const int32_t* const found = next_;
    next_ += count;
    left_ -= count;
    return found;
  }

  int count(size_t expected) {
    const int found = count();
    STD_TORCH_CHECK(static_cast<size_t>(found) == expected, "code: made for other tensors");
    return found;
  }
  int count() {
    const int32_t found = *take(1);
    STD_TORCH_CHECK(found >= 0 && found <= kMost, "code: expected 0 to ", kMost, " of anything");
    return found;
  }

  // Registers from `first` to `end` - 1; `distinct`: no two the same; `missing`: or -1.
  const int32_t* registers(int count, int first, int end, bool missing, std::set<int32_t>* distinct = nullptr) {
    const int32_t* const found = take(count);
    for (int i = 0; i < count; ++i) {
      if (missing && found[i] == -1) continue;
      STD_TORCH_CHECK(found[i] >= first && found[i] < end, "code: no such register");
      STD_TORCH_CHECK(distinct == nullptr || distinct->insert(found[i]).second, "code: a register is used twice");
    }
    return found;
  }

  Section section(int count, int first, int end) {
    static_assert(sizeof(Instruction) == 6 * sizeof(int32_t));
    const auto* const found = reinterpret_cast<const Instruction*>(take(int64_t{6} * count));
    for (int k = 0; k < count; ++k) {
      STD_TORCH_CHECK(found[k].op >= 0 && found[k].op < kernels().operations, "code: no such instruction");
      STD_TORCH_CHECK(found[k].to >= first && found[k].to < end, "code: no temporary");
      for (const int32_t r : found[k].from) STD_TORCH_CHECK(r >= 0 && r < end, "code: no such register");
    }
    return {found, count};
  }

  void end() const { STD_TORCH_CHECK(left_ == 0, "code: too long"); }

 private:
  const int32_t* next_;
  int64_t left_;
};

// The tensors of a call, checked; a problem holds pointers into this.
class Operands {
 public:
  Operands(const Tensor& like, int64_t T, int64_t N)
      : like_(like), T_(T), N_(N), opmath_(opmath_of(like.scalar_type())) {
    STD_TORCH_CHECK(T >= 0 && N >= 0, "expected sizes of 0 or more");
    STD_TORCH_CHECK(T <= kMostValues / (N > 0 ? N : 1), "expected less than 2**43 values");
    CpuBackend::check_device(like);
    dtype_of(like, "like");
  }

  ScalarType opmath() const { return opmath_; }

  const void* read(const Tensor& t, const char* name, ScalarType dtype, int64_t rows) const {
    STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == dtype, name,
                    ": expected a contiguous tensor on the CPU of the dtype of the call");
    const bool fits =
        rows == kNoRows ? t.dim() == 1 && t.size(0) == N_ : t.dim() == 2 && t.size(0) == rows && t.size(1) == N_;
    STD_TORCH_CHECK(fits, name, ": wrong shape");
    return t.const_data_ptr();
  }

  // Rows of all steps, or one that is that of each.
  Series read_series(const Tensor& t, const char* name) const {
    const bool one = t.dim() == 2 && t.size(0) == 1;
    return {read(t, name, like_.scalar_type(), one ? 1 : T_), one ? 0 : N_, nullptr};
  }

  // Numbers, [N], or, where they repeat, [period] of which N is a multiple.
  std::vector<Parameter> read_values(const std::vector<Tensor>& tensors, const char* name, bool repeat) const {
    std::vector<Parameter> found;
    for (const Tensor& t : tensors) {
      STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == opmath_, name,
                      ": expected contiguous tensors on the CPU of the opmath dtype");
      const void* const data = t.const_data_ptr();
      if (t.dim() == 0) {
        const bool wide = opmath_ == ScalarType::Double;
        found.push_back({nullptr, wide ? *static_cast<const double*>(data) : *static_cast<const float*>(data), 0});
        continue;
      }
      const int64_t size = t.size(0);
      STD_TORCH_CHECK(t.dim() == 1 && (size == N_ || (repeat && size > 0 && N_ % size == 0)), name, ": wrong shape");
      found.push_back({data, 0, size});
    }
    return found;
  }

  void* make(ScalarType dtype, int64_t rows) {
    Shape shape;
    if (rows != kNoRows) shape.push_back(rows);
    shape.push_back(N_);
    results.push_back(CpuBackend::empty(like_, shape, contiguous_strides(shape), dtype));
    return results.back().mutable_data_ptr();
  }
  double* make_numbers(int64_t count) {
    Shape shape;
    shape.push_back(count);
    results.push_back(empty_strided(like_, shape, contiguous_strides(shape), ScalarType::Double));
    return static_cast<double*>(results.back().mutable_data_ptr());
  }

  void describe(Program& p, Words& words, const std::vector<Tensor>& series, size_t states,
                const std::vector<Tensor>& parameters, const Tensor& constants) {
    p.dtype = dtype_of(like_, "like");
    p.T = T_;
    p.N = N_;
    p.series = words.count(series.size());
    p.states = words.count(states);
    p.parameters = words.count(parameters.size());
    STD_TORCH_CHECK(constants.is_cpu() && constants.scalar_type() == ScalarType::Double && constants.dim() == 1 &&
                        constants.is_contiguous(),
                    "constants: expected contiguous float64 [*] on the CPU");
    p.constants = words.count(static_cast<size_t>(constants.numel()));
    p.constant = static_cast<const double*>(constants.const_data_ptr());
    for (const Tensor& t : series) {
      if (t.dim() == 1) {  // numbers: one for each step
        STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Double && t.is_contiguous() && t.size(0) == T_,
                        "series: expected float64 [T] or [T, N]");
        series_.push_back({nullptr, 0, static_cast<const double*>(t.const_data_ptr())});
      } else {
        series_.push_back(read_series(t, "series"));
      }
    }
    parameters_ = read_values(parameters, "parameters", /*repeat=*/true);
    p.in = series_.data();
    p.parameter = parameters_.data();
  }

  std::vector<Tensor> results;

 private:
  const Tensor& like_;
  int64_t T_, N_;
  ScalarType opmath_;
  std::vector<Series> series_;
  std::vector<Parameter> parameters_;
};

// Blocks of neurons, which the threads share. What a block computes does not depend on its thread.
template <typename Problem>
void run(const Problem& p, void (*kernel)(const Problem&, int64_t, int64_t, const Workspace&)) {
  const int64_t size = cpu::program::block_size(p.dtype), blocks = (p.N + size - 1) / size;
  const int64_t work = size * std::max<int64_t>(p.T, 1) * std::max<int64_t>(p.instructions(), 1);
  const int64_t least = std::max<int64_t>(1, kGrain / work);
  cpu::in_parallel(0, blocks, least, [&](int64_t begin, int64_t end) {
    constexpr size_t kLine = 64;
    std::vector<char> memory(static_cast<size_t>(p.rows() * cpu::program::kRowBytes) + kLine);
    std::vector<void*> registers(static_cast<size_t>(p.registers()));
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    kernel(p, begin, end, {memory.data() + (kLine - address % kLine) % kLine, registers.data()});
  });
}

// Which registers can lie in the rows of results: temporaries, each in one row.
std::unique_ptr<bool[]> in_place(const int32_t* at, int count, int first, std::set<int32_t> taken) {
  std::unique_ptr<bool[]> found(new bool[static_cast<size_t>(count) + 1]);
  for (int i = 0; i < count; ++i) found[i] = at[i] >= first && taken.insert(at[i]).second;
  return found;
}

bool streams(const Program& p, int rows, const std::vector<void*>& written) {
  for (const void* t : written) {
    if (!cpu::streams(p.dtype, p.T, p.N, rows, {t})) return false;
  }
  return p.dtype == DType::kFloat || p.dtype == DType::kDouble;
}

// Reads the rest of the code of all steps, behind its series, states, parameters and constants.
void read_code(Forward& p, Words& words) {
  p.outputs = words.count();
  p.temporaries = words.count();
  const int count = words.count(), all = p.registers(), first = all - p.temporaries;
  p.output_at = words.registers(p.outputs, 0, all, false);
  std::set<int32_t> distinct;
  p.state_at = words.registers(p.states, first, all, false, &distinct);
  p.step = words.section(count, first, all);
  words.end();
}

// Likewise, of the derivative. Returns the registers that hold what the first section makes for the second.
std::set<int32_t> read_code(Backward& p, Words& words, size_t grads) {
  p.outputs = words.count(grads);
  p.saved = words.count();
  p.temporaries = words.count();
  const int again = words.count(), derivative = words.count(), all = p.registers(), first = all - p.temporaries;
  std::set<int32_t> tape, carries;
  p.state_at = words.registers(p.states, first, all, true, &tape);
  p.saved_at = words.registers(p.saved, first, all, false, &tape);
  p.carry_at = words.registers(p.states, first, all, false, &carries);
  p.series_at = words.registers(p.series, 0, all, true);
  p.parameter_at = words.registers(p.parameters, 0, all, true);
  p.again = words.section(again, first, all);
  p.derivative = words.section(derivative, first, all);
  words.end();
  for (const int32_t r : tape) STD_TORCH_CHECK(carries.count(r) == 0, "code: a register is used twice");
  for (int k = 0; k < p.series; ++k) {
    STD_TORCH_CHECK(p.series_at[k] < 0 || p.in[k].numbers == nullptr, "code: numbers have no gradient");
  }
  return tape;
}

// To the outputs [T, N], of which one may be bits [ceil(T / 8), N], the states after the last step, and, if they are to
// be kept, those of every 16th step.
std::vector<Tensor> program_forward(const Tensor& like, const std::vector<Tensor>& series,
                                    const std::vector<Tensor>& states, const std::vector<Tensor>& parameters,
                                    const Tensor& code, const Tensor& constants, int64_t steps, int64_t neurons,
                                    bool keep, int64_t bits) {
  Operands operands(like, steps, neurons);
  Words words(code);
  Forward p{};
  operands.describe(p, words, series, states.size(), parameters, constants);
  read_code(p, words);
  const std::vector<Parameter> initial = operands.read_values(states, "states", /*repeat=*/false);
  std::vector<void*> output, last;
  STD_TORCH_CHECK(bits >= -1 && bits < p.outputs, "bits: expected an output, or -1");
  p.bits = static_cast<int>(bits);
  for (int o = 0; o < p.outputs; ++o) {
    output.push_back(o == bits ? operands.make(ScalarType::Byte, (steps + 7) / 8)
                               : operands.make(like.scalar_type(), steps));
  }
  for (int s = 0; s < p.states; ++s) last.push_back(operands.make(operands.opmath(), kNoRows));
  const int64_t kept = (steps + cpu::program::kCheckpoint - 1) / cpu::program::kCheckpoint * p.states;
  if (keep) p.checkpoints = operands.make(operands.opmath(), kept);
  p.initial = initial.data();
  p.output = output.data();
  p.last = last.data();
  const auto where = in_place(p.output_at, p.outputs, p.registers() - p.temporaries, {});
  p.in_place = where.get();
  std::vector<void*> rows;
  for (int o = 0; o < p.outputs; ++o) {
    if (o != bits) rows.push_back(output[static_cast<size_t>(o)]);
  }
  if (bits >= 0) where[static_cast<size_t>(bits)] = false;
  p.stream = !rows.empty() && streams(p, p.series + static_cast<int>(rows.size()), rows);
  run(p, kernels().forward[static_cast<int>(p.dtype)]);
  return std::move(operands.results);
}

// Sums the gradients of numbers, one for each block, in the order of the blocks, whatever threads there were.
void sum_numbers(const Tensor& like, std::vector<Tensor>& results, const std::vector<size_t>& numbers, int64_t blocks) {
  for (const size_t result : numbers) {
    const Tensor parts = results[result];
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += static_cast<const double*>(parts.const_data_ptr())[b];
    Shape none;
    Tensor total = empty_strided(like, none, none, ScalarType::Double);
    *static_cast<double*>(total.mutable_data_ptr()) = sum;
    results[result] = total;
  }
}

// To the gradients: of those series that the code has one for, of all states before the first step, of those
// parameters that the code has one for, as float64 [N] or, of a number, []. One gradient of an output may be that of a
// Linear behind it, [T, R, O], with the weight [O, N / R].
std::vector<Tensor> program_backward(const Tensor& like, const std::vector<Tensor>& series,
                                     const std::vector<Tensor>& parameters, const Tensor& checkpoints,
                                     const std::vector<Tensor>& grad_outputs, const std::vector<Tensor>& grad_last,
                                     const MaybeTensor& weight, const Tensor& code, const Tensor& constants,
                                     int64_t steps, int64_t neurons) {
  Operands operands(like, steps, neurons);
  Words words(code);
  Backward p{};
  operands.describe(p, words, series, grad_last.size(), parameters, constants);
  const std::set<int32_t> tape = read_code(p, words, grad_outputs.size());
  const int64_t kept = (steps + cpu::program::kCheckpoint - 1) / cpu::program::kCheckpoint * p.states;
  p.checkpoints = operands.read(checkpoints, "checkpoints", operands.opmath(), kept);
  std::vector<Series> grads;
  p.spikes = -1;
  for (const Tensor& t : grad_outputs) {
    if (t.dim() != 3) {
      grads.push_back(operands.read_series(t, "gradients of outputs"));
      continue;
    }
    STD_TORCH_CHECK(weight.has_value() && weight->dim() == 2 && p.spikes == -1,
                    "weight: expected [O, N] for [T, R, O]");
    const ScalarType type = operands.opmath();
    STD_TORCH_CHECK(like.scalar_type() == type, "weight: only in float32 and float64");
    for (const Tensor* given : {&t, &*weight}) {
      STD_TORCH_CHECK(given->is_cpu() && given->is_contiguous() && given->scalar_type() == type,
                      "weight: expected contiguous tensors on the CPU of the dtype of the call");
    }
    const int64_t O = weight->size(0), columns = weight->size(1);
    STD_TORCH_CHECK(
        columns > 0 && neurons % columns == 0 && t.size(0) == steps && t.size(1) == neurons / columns && t.size(2) == O,
        "weight: expected [O, N] and the gradient of [T, R, O]");
    p.linear = {t.const_data_ptr(), weight->const_data_ptr(), O, columns};
    p.spikes = static_cast<int>(grads.size());
    grads.push_back({});
  }
  const auto last = operands.read_values(grad_last, "gradients of states", /*repeat=*/false);
  p.grad_output = grads.data();
  p.grad_last = last.data();
  std::vector<void*> of_series, of_states, written;
  std::vector<double*> of_parameters;
  for (int k = 0; k < p.series; ++k) {
    of_series.push_back(p.series_at[k] < 0 ? nullptr : operands.make(like.scalar_type(), steps));
    if (p.series_at[k] >= 0) written.push_back(of_series.back());
  }
  for (int s = 0; s < p.states; ++s) of_states.push_back(operands.make(operands.opmath(), kNoRows));
  const int64_t size = cpu::program::block_size(p.dtype), blocks = (neurons + size - 1) / size;
  std::vector<size_t> numbers;  // results that are still one for each block
  for (int j = 0; j < p.parameters; ++j) {
    const bool number = p.parameter[j].data == nullptr;
    of_parameters.push_back(p.parameter_at[j] < 0 ? nullptr : operands.make_numbers(number ? blocks : neurons));
    if (p.parameter_at[j] >= 0 && number) numbers.push_back(operands.results.size() - 1);
  }
  p.grad_series = of_series.data();
  p.grad_initial = of_states.data();
  p.grad_parameter = of_parameters.data();
  const auto where = in_place(p.series_at, p.series, p.registers() - p.temporaries, tape);
  p.in_place = where.get();
  p.stream = streams(p, p.series + p.outputs + static_cast<int>(written.size()), written);
  run(p, kernels().backward[static_cast<int>(p.dtype)]);
  sum_numbers(like, operands.results, numbers, blocks);
  return std::move(operands.results);
}

// ---- products between the steps

// Products of states before each step, by PyTorch: the series behind the others. A step has rows of C neurons. Weights
// are as in PyTorch's calls: [C, C] for linear, which has a bias, and for mm, [1, C, C] for bmm.
class Products {
 public:
  Products(const Tensor& like, int64_t neurons, size_t states, const std::vector<Tensor>& weights,
           const std::vector<int64_t>& of_states, int64_t columns)
      : like_(like), N_(neurons), columns_(columns), weights_(weights), of_states_(of_states) {
    const ScalarType type = like.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "like: products are in float32 and float64 alone");
    STD_TORCH_CHECK(weights.size() == of_states.size(), "of_states: expected one for each weight");
    STD_TORCH_CHECK(columns > 0 && neurons % columns == 0, "columns: expected the last dimension of a step");
    for (size_t k = 0; k < weights.size(); ++k) {
      const Tensor& w = weights[k];
      const bool fits = (w.dim() == 2 || (w.dim() == 3 && w.size(0) == 1)) && w.size(w.dim() - 1) == columns &&
                        w.size(w.dim() - 2) == columns;
      STD_TORCH_CHECK(fits && w.is_cpu() && w.scalar_type() == type,
                      "weights: expected square matrices on the CPU of the dtype of the call");
      STD_TORCH_CHECK(of_states[k] >= 0 && of_states[k] < static_cast<int64_t>(states), "of_states: no such state");
    }
    aligned_ = N_ * element() % kLine == 0;
    if (!aligned_) {
      for (Tensor* t : {&from_, &to_}) {
        Shape shape;
        shape.push_back(N_);
        *t = CpuBackend::empty(like, shape, contiguous_strides(shape), type);
      }
    }
  }

  size_t count() const { return weights_.size(); }
  int64_t state(size_t k) const { return of_states_[k]; }
  int64_t element() const { return like_.scalar_type() == ScalarType::Double ? 8 : 4; }

  // The order of the sums in a product may depend on where memory begins: rows begin where tensors do.
  void multiply(size_t k, const char* name, const void* state, const MaybeTensor* bias, void* to) {
    const size_t bytes = static_cast<size_t>(N_ * element());
    const void* const from = aligned_ ? state : std::memcpy(from_.mutable_data_ptr(), state, bytes);
    void* const result = aligned_ ? to : to_.mutable_data_ptr();
    const bool batch = weights_[k].dim() == 3;
    const Tensor rows = matrix(from, batch), made = matrix(result, batch);
    bias == nullptr ? call_out(name, rows, weights_[k], made) : call_out(name, rows, weights_[k], *bias, made);
    if (!aligned_) std::memcpy(to, result, bytes);
  }

 private:
  static constexpr int64_t kLine = 64;

  Tensor matrix(const void* data, bool batch) const {
    const int64_t sizes[] = {1, N_ / columns_, columns_}, strides[] = {N_, columns_, 1};
    const size_t first = batch ? 0 : 1;
    return torch::stable::from_blob(const_cast<void*>(data), {sizes + first, 3 - first}, {strides + first, 3 - first},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), like_.scalar_type());
  }

  const Tensor& like_;
  int64_t N_, columns_;
  const std::vector<Tensor>& weights_;
  const std::vector<int64_t>& of_states_;
  bool aligned_;
  Tensor from_, to_;
};

// Series of which a problem has one step.
class OneStep {
 public:
  OneStep(const Series* series, int count, int64_t element)
      : all_(series, series + count), now_(all_), bytes_(element) {}

  const Series* at(int64_t t) {
    for (size_t k = 0; k < all_.size(); ++k) {
      now_[k].data = static_cast<const char*>(all_[k].data) + t * all_[k].stride * bytes_;
      if (all_[k].numbers != nullptr) now_[k] = {nullptr, 0, all_[k].numbers + t};
    }
    return now_.data();
  }

 private:
  std::vector<Series> all_, now_;
  int64_t bytes_;
};

// program_forward with products before each step. The states before each step are kept, [T * states, N], and
// behind these the results of the products, [T, N].
std::vector<Tensor> program_between_forward(const Tensor& like, const std::vector<Tensor>& series,
                                            const std::vector<Tensor>& states, const std::vector<Tensor>& parameters,
                                            const std::vector<Tensor>& weights, const std::vector<MaybeTensor>& biases,
                                            const std::vector<int64_t>& of_states, int64_t columns, const Tensor& code,
                                            const Tensor& constants, int64_t steps, int64_t neurons, bool keep) {
  Operands operands(like, steps, neurons);
  Products products(like, neurons, states.size(), weights, of_states, columns);
  STD_TORCH_CHECK(biases.size() == products.count(), "biases: expected one for each weight, or none in its place");
  const int64_t row = neurons * products.element(), count = static_cast<int64_t>(states.size());
  std::vector<Tensor> made, every(series);
  for (size_t k = 0; k < products.count(); ++k) {
    Shape shape;
    shape.push_back(keep ? steps : 1);
    shape.push_back(neurons);
    made.push_back(CpuBackend::empty(like, shape, contiguous_strides(shape), like.scalar_type()));
    every.push_back(made.back());
  }
  Words words(code);
  Forward p{};
  operands.describe(p, words, every, states.size(), parameters, constants);
  read_code(p, words);
  p.bits = -1;
  std::vector<char*> output, last;
  for (int o = 0; o < p.outputs; ++o) output.push_back(static_cast<char*>(operands.make(like.scalar_type(), steps)));
  for (int s = 0; s < p.states; ++s) last.push_back(static_cast<char*>(operands.make(operands.opmath(), kNoRows)));
  char* const tape = static_cast<char*>(operands.make(operands.opmath(), (keep ? steps : 2) * count));
  const auto before = [&](int64_t t, int64_t s) { return tape + ((keep ? t : t % 2) * count + s) * row; };
  const std::vector<Parameter> given = operands.read_values(states, "states", /*repeat=*/false);
  for (int64_t s = 0; s < count; ++s) {
    const void* const from = given[static_cast<size_t>(s)].data;
    STD_TORCH_CHECK(from != nullptr, "states: expected [N]");
    std::memcpy(steps > 0 ? before(0, s) : last[static_cast<size_t>(s)], from, static_cast<size_t>(row));
  }
  const auto where = in_place(p.output_at, p.outputs, p.registers() - p.temporaries, {});
  p.in_place = where.get();
  OneStep rows(p.in, p.series, products.element());
  std::vector<void*> to(output.size()), after(last.size());
  std::vector<Parameter> now(given);
  p.initial = now.data();
  p.output = to.data();
  p.last = after.data();
  p.T = 1;
  for (int64_t t = 0; t < steps; ++t) {
    for (size_t k = 0; k < products.count(); ++k) {
      char* const result = static_cast<char*>(made[k].mutable_data_ptr()) + (keep ? t * row : 0);
      const char* const name = weights[k].dim() == 3   ? "aten::bmm"
                               : biases[k].has_value() ? "aten::linear"
                                                       : "aten::mm";
      products.multiply(k, name, before(t, products.state(k)), biases[k].has_value() ? &biases[k] : nullptr, result);
    }
    for (size_t o = 0; o < to.size(); ++o) to[o] = output[o] + t * row;
    for (size_t s = 0; s < after.size(); ++s) {
      now[s].data = before(t, static_cast<int64_t>(s));
      after[s] = t + 1 < steps ? before(t + 1, static_cast<int64_t>(s)) : last[s];
    }
    p.in = rows.at(t);
    run(p, kernels().forward[static_cast<int>(p.dtype)]);
  }
  if (!keep) operands.results.pop_back();
  if (keep) operands.results.insert(operands.results.end(), made.begin(), made.end());
  return std::move(operands.results);
}

template <typename A>
void add(const void* from, void* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) static_cast<A*>(to)[i] += static_cast<const A*>(from)[i];
}

// The backward pass of program_between_forward. Weights are [outputs, inputs].
std::vector<Tensor> program_between_backward(const Tensor& like, const std::vector<Tensor>& series,
                                             const std::vector<Tensor>& parameters, const Tensor& tape,
                                             const std::vector<Tensor>& grad_outputs,
                                             const std::vector<Tensor>& grad_last, const std::vector<Tensor>& weights,
                                             const std::vector<int64_t>& of_states, int64_t columns, const Tensor& code,
                                             const Tensor& constants, int64_t steps, int64_t neurons) {
  Operands operands(like, steps, neurons);
  Products products(like, neurons, grad_last.size(), weights, of_states, columns);
  Words words(code);
  Backward p{};
  operands.describe(p, words, series, grad_last.size(), parameters, constants);
  STD_TORCH_CHECK(series.size() >= products.count(), "series: expected those of the products at their end");
  const std::set<int32_t> registers = read_code(p, words, grad_outputs.size());
  const int64_t row = neurons * products.element(), count = p.states;
  const char* const kept = static_cast<const char*>(operands.read(tape, "tape", operands.opmath(), steps * count));
  std::vector<Series> grads;
  for (const Tensor& t : grad_outputs) grads.push_back(operands.read_series(t, "gradients of outputs"));
  p.spikes = -1;
  std::vector<Parameter> carry = operands.read_values(grad_last, "gradients of states", /*repeat=*/false);
  std::vector<char*> of_series;
  for (int k = 0; k < p.series; ++k) {
    const bool none = p.series_at[k] < 0;
    of_series.push_back(none ? nullptr : static_cast<char*>(operands.make(like.scalar_type(), steps)));
  }
  std::vector<Tensor> others;  // the gradients of the states of every other step
  std::vector<char*> carries;
  for (int64_t s = 0; s < 2 * count; ++s) {
    carries.push_back(static_cast<char*>(operands.make(operands.opmath(), kNoRows)));
    if (s < count) continue;
    others.push_back(operands.results.back());
    operands.results.pop_back();
  }
  STD_TORCH_CHECK(steps > 0, "steps: expected 1 or more");
  const int64_t size = cpu::program::block_size(p.dtype), blocks = (neurons + size - 1) / size;
  std::vector<size_t> numbers;
  std::vector<double*> sums, of_step;
  std::vector<std::vector<double>> memory;
  for (int j = 0; j < p.parameters; ++j) {
    const bool none = p.parameter_at[j] < 0, number = p.parameter[j].data == nullptr;
    const int64_t length = none ? 0 : number ? blocks : neurons;
    sums.push_back(none ? nullptr : operands.make_numbers(length));
    std::fill_n(sums.back(), length, 0.0);
    memory.emplace_back(static_cast<size_t>(length));
    of_step.push_back(none ? nullptr : memory.back().data());
    if (!none && number) numbers.push_back(operands.results.size() - 1);
  }
  const auto where = in_place(p.series_at, p.series, p.registers() - p.temporaries, registers);
  p.in_place = where.get();
  OneStep rows(p.in, p.series, products.element()), grad_rows(grads.data(), p.outputs, products.element());
  std::vector<void*> to(of_series.size()), to_states(static_cast<size_t>(count));
  p.grad_last = carry.data();
  p.grad_series = to.data();
  p.grad_initial = to_states.data();
  p.grad_parameter = of_step.data();
  p.T = 1;
  std::vector<char> through(static_cast<size_t>(row) + 64);
  void* const aligned = through.data() + (64 - reinterpret_cast<uintptr_t>(through.data()) % 64) % 64;
  for (int64_t t = steps - 1; t >= 0; --t) {
    for (size_t k = 0; k < to.size(); ++k) to[k] = of_series[k] == nullptr ? nullptr : of_series[k] + t * row;
    for (size_t s = 0; s < to_states.size(); ++s) to_states[s] = carries[s + (t % 2 == 0 ? 0 : to_states.size())];
    p.in = rows.at(t);
    p.grad_output = grad_rows.at(t);
    p.checkpoints = kept + t * count * row;
    run(p, kernels().backward[static_cast<int>(p.dtype)]);
    for (size_t j = 0; j < sums.size(); ++j) add<double>(of_step[j], sums[j], static_cast<int64_t>(memory[j].size()));
    for (size_t k = 0; k < products.count(); ++k) {
      const char* const of_made = static_cast<const char*>(to[to.size() - products.count() + k]);
      if (of_made == nullptr) continue;
      products.multiply(k, "aten::mm", of_made, nullptr, aligned);
      void* const state = to_states[static_cast<size_t>(products.state(k))];
      p.dtype == DType::kDouble ? add<double>(aligned, state, neurons) : add<float>(aligned, state, neurons);
    }
    for (size_t s = 0; s < to_states.size(); ++s) carry[s] = {to_states[s], 0, neurons};
  }
  sum_numbers(like, operands.results, numbers, blocks);
  return std::move(operands.results);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def(
      "program_forward(Tensor like, Tensor[] series, Tensor[] states, Tensor[] parameters, Tensor code, Tensor "
      "constants, int steps, int neurons, bool keep, int bits) -> Tensor[]");
  m.def(
      "program_backward(Tensor like, Tensor[] series, Tensor[] parameters, Tensor checkpoints, Tensor[] grad_outputs, "
      "Tensor[] grad_last, Tensor? weight, Tensor code, Tensor constants, int steps, int neurons) -> Tensor[]");
  m.def(
      "program_between_forward(Tensor like, Tensor[] series, Tensor[] states, Tensor[] parameters, Tensor[] weights, "
      "Tensor?[] biases, int[] of_states, int columns, Tensor code, Tensor constants, int steps, int neurons, bool "
      "keep) -> Tensor[]");
  m.def(
      "program_between_backward(Tensor like, Tensor[] series, Tensor[] parameters, Tensor tape, Tensor[] grad_outputs, "
      "Tensor[] grad_last, Tensor[] weights, int[] of_states, int columns, Tensor code, Tensor constants, int steps, "
      "int neurons) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("program_forward", SNN_BOX(program_forward));
  m.impl("program_backward", SNN_BOX(program_backward));
  m.impl("program_between_forward", SNN_BOX(program_between_forward));
  m.impl("program_between_backward", SNN_BOX(program_between_backward));
}

}  // namespace snnfast
