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
#include <memory>
#include <set>
#include <vector>

#include <torch/csrc/stable/library.h>

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
constexpr int64_t kGrain = 1 << 15;                // neuron-steps that are worth a thread

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
  const int64_t least = std::max<int64_t>(1, kGrain / (size * std::max<int64_t>(p.T, 1)));
  torch::stable::parallel_for(0, blocks, least, [&](int64_t begin, int64_t end) {
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
  p.outputs = words.count();
  p.temporaries = words.count();
  const int count = words.count(), all = p.registers(), first = all - p.temporaries;
  p.output_at = words.registers(p.outputs, 0, all, false);
  std::set<int32_t> distinct;
  p.state_at = words.registers(p.states, first, all, false, &distinct);
  p.step = words.section(count, first, all);
  words.end();
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
  const auto where = in_place(p.output_at, p.outputs, first, {});
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
  p.outputs = words.count(grad_outputs.size());
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
    STD_TORCH_CHECK(p.series_at[k] < 0 || p.in[k].numbers == nullptr, "code: numbers have no gradient");
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
  const auto where = in_place(p.series_at, p.series, first, tape);
  p.in_place = where.get();
  p.stream = streams(p, p.series + p.outputs + static_cast<int>(written.size()), written);
  run(p, kernels().backward[static_cast<int>(p.dtype)]);
  for (const size_t result : numbers) {  // in the order of the blocks, whatever threads there were
    const Tensor parts = operands.results[result];
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += static_cast<const double*>(parts.const_data_ptr())[b];
    Shape none;
    Tensor total = empty_strided(like, none, none, ScalarType::Double);
    *static_cast<double*>(total.mutable_data_ptr()) = sum;
    operands.results[result] = total;
  }
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
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("program_forward", TORCH_BOX(&program_forward));
  m.impl("program_backward", TORCH_BOX(&program_backward));
}

}  // namespace snnfast
