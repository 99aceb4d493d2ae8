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
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../cpu/norm/through.h"
#include "tensors.h"

namespace snnfast {
namespace {

using cpu::NormedGradients;
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
constexpr int64_t kMostParts = 64;                 // of a backward pass; each has sums of its own
constexpr int64_t kPartSamples = 64;               // the least of a channel that a part has

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
  Operands(const Tensor& like, int64_t T, int64_t N, int64_t samples = 1)
      : like_(like), T_(T), N_(N), samples_(samples), opmath_(opmath_of(like.scalar_type())) {
    STD_TORCH_CHECK(T >= 0 && N >= 0, "expected sizes of 0 or more");
    STD_TORCH_CHECK(samples == 1 || (samples > 0 && samples <= N && N % samples == 0),
                    "samples: expected 1 or more, and as many neurons of each");
    STD_TORCH_CHECK(T <= kMostValues / (N > 0 ? N : 1), "expected less than 2**43 values");
    CpuBackend::check_device(like);
    dtype_of(like, "like");
  }

  ScalarType opmath() const { return opmath_; }

  const void* read(const Tensor& t, const char* name, ScalarType dtype, int64_t rows, int64_t columns) const {
    STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == dtype, name,
                    ": expected a contiguous tensor on the CPU of the dtype of the call");
    STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, name, ": wrong shape");
    return t.const_data_ptr();
  }

  // Rows of all steps, or one that is that of each.
  Series read_series(const Tensor& t, const char* name) const {
    const bool one = t.dim() == 2 && t.size(0) == 1;
    const int64_t rows = one ? 1 : samples_ * T_, columns = one ? N_ : N_ / samples_;
    return {read(t, name, like_.scalar_type(), rows, columns), one ? 0 : columns, nullptr};
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
    p.samples = samples_;
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
                        "series: expected float64 [T] or rows");
        series_.push_back({nullptr, 0, static_cast<const double*>(t.const_data_ptr())});
      } else {
        series_.push_back(read_series(t, "series"));
      }
    }
    parameters_ = read_values(parameters, "parameters", /*repeat=*/true);
    p.in = series_.data();
    p.parameter = parameters_.data();
    p.normed = -1;
  }

  // Describes the normalisation of a series, which the kernels then read in place of its input.
  void normalise(Program& p, const MaybeTensor& numbers, int64_t series, int64_t inner) {
    if (!numbers.has_value()) return;
    STD_TORCH_CHECK(series >= 0 && series < p.series && like_.scalar_type() == ScalarType::Float,
                    "normed: expected a series in float32");
    STD_TORCH_CHECK(numbers->is_cpu() && numbers->is_contiguous() && numbers->scalar_type() == ScalarType::Float &&
                        numbers->dim() == 3 && numbers->size(2) == kNormNumbers,
                    "numbers: expected contiguous float32 [T, C, 4] on the CPU");
    const int64_t rows = numbers->size(0), C = numbers->size(1);
    const Series& in = p.in[series];
    STD_TORCH_CHECK(T_ > 0 && N_ > 0, "normed: expected values");
    STD_TORCH_CHECK((rows == 1 || rows == T_) && in.numbers == nullptr && in.stride != 0,
                    "numbers: expected those of each step, or of all");
    STD_TORCH_CHECK(C > 0 && inner > 0 && C <= kMostValues / inner && p.side() % (C * inner) == 0,
                    "inner: expected whole channels");
    input.emplace(cpu::Channels{C, inner}, rows, static_cast<const float*>(numbers->const_data_ptr()));
    p.normed = static_cast<int>(series);
    p.norm = &input->norm;
  }

  std::vector<Tensor> results;
  std::optional<cpu::NormedInput> input;  // of the series that is normalised

 private:
  const Tensor& like_;
  int64_t T_, N_, samples_;
  ScalarType opmath_;
  std::vector<Series> series_;
  std::vector<Parameter> parameters_;
};

// Calls kernel(first, last, workspace) for some of the parts, each as many blocks of neurons, which the threads share.
template <typename Problem, typename Kernel>
void run_parts(const Problem& p, int64_t parts, Kernel&& kernel) {
  const int64_t size = std::min(cpu::program::block_size(p.dtype), std::max<int64_t>(p.side(), 1));
  const int64_t work = size * std::max<int64_t>(p.T, 1) * std::max<int64_t>(p.instructions(), 1);
  const int64_t least = std::max<int64_t>(1, kGrain / work);
  const int64_t blocks = std::max<int64_t>(p.blocks() / std::max<int64_t>(parts, 1), 1);
  cpu::in_parallel(0, parts, (least + blocks - 1) / blocks, [&](int64_t begin, int64_t end) {
    constexpr size_t kLine = 64;
    std::vector<char> memory(static_cast<size_t>(p.rows() * cpu::program::kRowBytes) + kLine);
    std::vector<void*> registers(static_cast<size_t>(p.registers() + p.states + p.parameters));
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    kernel(begin, end, Workspace{memory.data() + (kLine - address % kLine) % kLine, registers.data()});
  });
}

// What a block computes does not depend on its thread.
template <typename Problem>
void run(const Problem& p, void (*kernel)(const Problem&, int64_t, int64_t, const Workspace&)) {
  run_parts(p, p.blocks(),
            [&](int64_t begin, int64_t end, const Workspace& workspace) { kernel(p, begin, end, workspace); });
}

// Runs a derivative whose parts add up the gradients of what is normalised, [parts, 2, rows, C]. All of it depends on
// nothing but the shape and the memory layout.
void run(Backward p, const cpu::NormedInput& input, int64_t parts, double* sums) {
  const auto kernel = kernels().backward[static_cast<int>(p.dtype)];
  run_parts(p, parts, [&](int64_t first, int64_t last, const Workspace& workspace) {
    for (int64_t part = first; part < last; ++part) {
      cpu::Normalised norm = input.norm;
      norm.sums = sums + part * input.sums();
      std::fill_n(norm.sums, input.sums(), 0.0);
      Backward own = p;
      own.norm = &norm;
      kernel(own, p.blocks() * part / parts, p.blocks() * (part + 1) / parts, workspace);
    }
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
    if (!cpu::streams(p.dtype, p.samples * p.T, p.side(), rows, {t})) return false;
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
// be kept, those of every 16th step. With several samples, series are [samples * T, N / samples], the steps of a sample
// side by side, and so are the outputs in their memory. One of the series may be `normed`, by the `numbers` of channels
// of which `inner` neurons lie side by side.
std::vector<Tensor> program_forward(const Tensor& like, const std::vector<Tensor>& series,
                                    const std::vector<Tensor>& states, const std::vector<Tensor>& parameters,
                                    const Tensor& code, const Tensor& constants, int64_t steps, int64_t neurons,
                                    bool keep, int64_t bits, int64_t samples, const MaybeTensor& numbers,
                                    int64_t normed, int64_t inner) {
  Operands operands(like, steps, neurons, samples);
  Words words(code);
  Forward p{};
  operands.describe(p, words, series, states.size(), parameters, constants);
  operands.normalise(p, numbers, normed, inner);
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
                                     int64_t steps, int64_t neurons, int64_t samples, const MaybeTensor& numbers,
                                     int64_t normed, int64_t inner) {
  Operands operands(like, steps, neurons, samples);
  Words words(code);
  Backward p{};
  operands.describe(p, words, series, grad_last.size(), parameters, constants);
  operands.normalise(p, numbers, normed, inner);
  const std::set<int32_t> tape = read_code(p, words, grad_outputs.size());
  const int64_t kept = (steps + cpu::program::kCheckpoint - 1) / cpu::program::kCheckpoint * p.states;
  p.checkpoints = operands.read(checkpoints, "checkpoints", operands.opmath(), kept, neurons);
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
  const int64_t blocks = p.blocks();
  std::vector<size_t> per_block;  // results that are still one for each block
  for (int j = 0; j < p.parameters; ++j) {
    const bool number = p.parameter[j].data == nullptr;
    of_parameters.push_back(p.parameter_at[j] < 0 ? nullptr : operands.make_numbers(number ? blocks : neurons));
    if (p.parameter_at[j] >= 0 && number) per_block.push_back(operands.results.size() - 1);
  }
  p.grad_series = of_series.data();
  p.grad_initial = of_states.data();
  p.grad_parameter = of_parameters.data();
  const auto where = in_place(p.series_at, p.series, p.registers() - p.temporaries, tape);
  p.in_place = where.get();
  p.stream = streams(p, p.series + p.outputs + static_cast<int>(written.size()), written);
  if (p.normed < 0 || p.series_at[p.normed] < 0) {
    run(p, kernels().backward[static_cast<int>(p.dtype)]);
  } else {
    const cpu::NormedInput& input = *operands.input;
    const int64_t parts =
        std::clamp<int64_t>(neurons / input.channels.C / kPartSamples, 1, std::min(blocks, kMostParts));
    cpu::pool::Scratch<double> sums(parts * input.sums());
    run(p, input, parts, sums.data());
    double* const of_channels = operands.make_numbers(input.sums());
    const NormedGradients through{p.dtype, steps, p.side(), {}, p.in[normed].data, of_series[normed]};
    input.go_through(sums.data(), parts, of_channels, through, samples);
  }
  sum_numbers(like, operands.results, per_block, blocks);
  return std::move(operands.results);
}

// ---- products between the steps

// A recurrence of several layers: a part is a program of `rows` rows of so many columns. At every step, the parts run
// one after the other. What a part takes beside its series are products, by PyTorch: of a state before the step, or of
// an output that an earlier part has made in this step.
struct PartCounts {
  int64_t series, states, parameters, columns;
};

std::vector<PartCounts> read_counts(const std::vector<int64_t>& counts, size_t parts) {
  STD_TORCH_CHECK(counts.size() == 4 * parts, "counts: expected series, states, parameters and columns of each part");
  std::vector<PartCounts> found;
  for (size_t i = 0; i < counts.size(); i += 4) {
    for (size_t k = 0; k < 4; ++k) {
      STD_TORCH_CHECK(counts[i + k] >= 0 && counts[i + k] <= kMost, "counts: expected 0 to ", kMost, " of anything");
    }
    found.push_back({counts[i], counts[i + 1], counts[i + 2], counts[i + 3]});
  }
  return found;
}

// A list of tensors, from its beginning to its end.
template <typename T>
class Rest {
 public:
  Rest(const std::vector<T>& all, const char* name) : all_(all), name_(name) {}

  std::vector<T> take(int64_t count) {
    STD_TORCH_CHECK(count <= static_cast<int64_t>(all_.size() - next_), name_, ": too few");
    const auto begin = all_.begin() + static_cast<std::ptrdiff_t>(next_);
    next_ += static_cast<size_t>(count);
    return {begin, begin + static_cast<std::ptrdiff_t>(count)};
  }
  void end() const { STD_TORCH_CHECK(next_ == all_.size(), name_, ": too many"); }

 private:
  const std::vector<T>& all_;
  const char* name_;
  size_t next_ = 0;
};

template <typename A>
void add(const void* from, void* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) static_cast<A*>(to)[i] += static_cast<const A*>(from)[i];
}

// What a product takes, and where its result goes: `pieces` series of part `to`, which lie side by side in it.
struct Product {
  size_t to, pieces, from;
  bool now;  // an output of this step; otherwise a state before it
  size_t number;
};

// The products of all parts. Weights are as in PyTorch's calls: [outputs, inputs] for linear, which has a bias,
// [inputs, outputs] for mm, [1, inputs, outputs] for bmm; `turned`: all are [outputs, inputs].
class Products {
 public:
  Products(const Tensor& like, int64_t rows, const std::vector<PartCounts>& parts, const std::vector<Tensor>& weights,
           const std::vector<MaybeTensor>& biases, const std::vector<int64_t>& products, bool turned)
      : like_(like), rows_(rows), weights_(weights), biases_(biases) {
    const ScalarType type = like.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "like: products are in float32 and float64 alone");
    STD_TORCH_CHECK(products.size() == 5 * weights.size(), "products: expected five numbers for each weight");
    STD_TORCH_CHECK(turned || biases.size() == weights.size(),
                    "biases: expected one for each weight, or none in its place");
    for (size_t k = 0; k < weights.size(); ++k) {
      const int64_t* const p = products.data() + 5 * k;
      const auto count = static_cast<int64_t>(parts.size());
      STD_TORCH_CHECK(p[0] >= 0 && p[0] < count && p[2] >= 0 && p[2] < count, "products: no such part");
      STD_TORCH_CHECK(p[1] > 0 && p[1] <= kMost && p[4] >= 0 && p[4] <= kMost, "products: no such number");
      STD_TORCH_CHECK(p[3] == 0 || p[2] < p[0], "products: a part takes outputs of earlier parts");
      all_.push_back({static_cast<size_t>(p[0]), static_cast<size_t>(p[1]), static_cast<size_t>(p[2]), p[3] != 0,
                      static_cast<size_t>(p[4])});
      const Product& product = all_.back();
      const Tensor& w = weights[k];
      const int64_t inputs = parts[product.from].columns, piece = parts[product.to].columns;
      const bool by_outputs = turned || biases[k].has_value();
      const int64_t d = w.dim(), i = by_outputs ? d - 1 : d - 2, o = by_outputs ? d - 2 : d - 1;
      const bool fits =
          (d == 2 || (d == 3 && w.size(0) == 1 && !by_outputs)) && w.size(i) == inputs && w.size(o) == piece * p[1];
      STD_TORCH_CHECK(fits && w.is_cpu() && w.scalar_type() == type,
                      "weights: expected matrices on the CPU of the dtype of the call, from the columns of one part to "
                      "those of the other");
      inputs_.push_back(inputs);
      pieces_.push_back(piece);
      scratch_.push_back({empty(inputs), empty(piece * p[1])});
    }
  }

  const std::vector<Product>& all() const { return all_; }
  int64_t element() const { return like_.scalar_type() == ScalarType::Double ? 8 : 4; }

  Tensor empty(int64_t columns, int64_t steps = 1) const {
    Shape shape;
    shape.push_back(steps);
    shape.push_back(rows_ * columns);
    return CpuBackend::empty(like_, shape, contiguous_strides(shape), like_.scalar_type());
  }

  // The order of the sums in a product may depend on where memory begins: rows begin where tensors do.
  void multiply(size_t k, const void* from, const std::vector<char*>& to) const {
    const int64_t inputs = inputs_[k], piece = pieces_[k], outputs = piece * static_cast<int64_t>(to.size());
    char* const whole = to.size() == 1 && is_aligned(outputs) ? to[0] : data(scratch_[k].second);
    if (!is_aligned(inputs)) from = std::memcpy(data(scratch_[k].first), from, bytes(inputs));
    const bool batch = weights_[k].dim() == 3;
    const Tensor x = matrix(from, inputs, batch), made = matrix(whole, outputs, batch);
    if (biases_[k].has_value()) {
      call_out("aten::linear", x, weights_[k], biases_[k], made);
    } else {
      call_out(batch ? "aten::bmm" : "aten::mm", x, weights_[k], made);
    }
    if (whole != to[0]) side_by_side(to, piece, whole, /*apart=*/true);
  }

  // Adds the gradient of what a product takes, from those of its pieces; nullptr: of zeros.
  void multiply_back(size_t k, const std::vector<char*>& from, void* to) const {
    const int64_t inputs = inputs_[k], piece = pieces_[k], outputs = piece * static_cast<int64_t>(from.size());
    char* const whole = from.size() == 1 && is_aligned(outputs) ? from[0] : data(scratch_[k].second);
    if (whole != from[0]) side_by_side(from, piece, whole, /*apart=*/false);
    void* const made = data(scratch_[k].first);
    call_out("aten::mm", matrix(whole, outputs, false), weights_[k], matrix(made, inputs, false));
    element() == 8 ? add<double>(made, to, rows_ * inputs) : add<float>(made, to, rows_ * inputs);
  }

 private:
  static constexpr int64_t kLine = 64;

  static char* data(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }
  size_t bytes(int64_t columns) const { return static_cast<size_t>(rows_ * columns * element()); }
  bool is_aligned(int64_t columns) const { return bytes(columns) % kLine == 0; }

  // Copies between the columns of a matrix and its pieces.
  void side_by_side(const std::vector<char*>& pieces, int64_t columns, char* whole, bool apart) const {
    const size_t row = static_cast<size_t>(columns * element());
    for (int64_t r = 0; r < rows_; ++r) {
      for (size_t i = 0; i < pieces.size(); ++i, whole += row) {
        char* const piece = pieces[i] == nullptr ? nullptr : pieces[i] + static_cast<size_t>(r) * row;
        if (apart) {
          std::memcpy(piece, whole, row);
        } else if (piece != nullptr) {
          std::memcpy(whole, piece, row);
        } else {
          std::memset(whole, 0, row);
        }
      }
    }
  }

  Tensor matrix(const void* data, int64_t columns, bool batch) const {
    const int64_t sizes[] = {1, rows_, columns}, strides[] = {rows_ * columns, columns, 1};
    const size_t first = batch ? 0 : 1;
    return torch::stable::from_blob(const_cast<void*>(data), {sizes + first, 3 - first}, {strides + first, 3 - first},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), like_.scalar_type());
  }

  const Tensor& like_;
  int64_t rows_;
  const std::vector<Tensor>& weights_;
  const std::vector<MaybeTensor>& biases_;
  std::vector<Product> all_;
  std::vector<int64_t> inputs_, pieces_;            // columns
  std::vector<std::pair<Tensor, Tensor>> scratch_;  // of what each takes and makes
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

// The steps of a part, one by one. The states before each step are kept, [T * states, N], or those of two steps.
class ForwardPart {
 public:
  ForwardPart(const Tensor& like, int64_t steps, int64_t neurons, int64_t element, const std::vector<Tensor>& series,
              const std::vector<Tensor>& states, const std::vector<Tensor>& parameters, const Tensor& code,
              const Tensor& constants, bool keep)
      : operands_(like, steps, neurons), steps_(steps), row_(neurons * element), keep_(keep) {
    Words words(code);
    operands_.describe(p_, words, series, states.size(), parameters, constants);
    read_code(p_, words);
    p_.bits = -1;
    for (int o = 0; o < p_.outputs; ++o) {
      outputs_.push_back(static_cast<char*>(operands_.make(like.scalar_type(), steps)));
    }
    for (int s = 0; s < p_.states; ++s)
      last_.push_back(static_cast<char*>(operands_.make(operands_.opmath(), kNoRows)));
    count_ = p_.states;
    tape_ = static_cast<char*>(operands_.make(operands_.opmath(), (keep ? steps : 2) * count_));
    now_ = operands_.read_values(states, "states", /*repeat=*/false);
    for (size_t s = 0; s < now_.size(); ++s) {
      STD_TORCH_CHECK(now_[s].data != nullptr, "states: expected [N]");
      std::memcpy(steps > 0 ? before(0, s) : last_[s], now_[s].data, static_cast<size_t>(row_));
    }
    where_ = in_place(p_.output_at, p_.outputs, p_.registers() - p_.temporaries, {});
    p_.in_place = where_.get();
    rows_.emplace(p_.in, p_.series, element);
    to_.resize(outputs_.size());
    after_.resize(last_.size());
    p_.initial = now_.data();
    p_.output = to_.data();
    p_.last = after_.data();
    p_.T = 1;
  }

  size_t outputs() const { return outputs_.size(); }
  char* output(int64_t t, size_t o) const { return outputs_[o] + t * row_; }
  char* before(int64_t t, size_t s) const {
    return tape_ + ((keep_ ? t : t % 2) * count_ + static_cast<int64_t>(s)) * row_;
  }

  void run_step(int64_t t) {
    for (size_t o = 0; o < to_.size(); ++o) to_[o] = output(t, o);
    for (size_t s = 0; s < after_.size(); ++s) {
      now_[s].data = before(t, s);
      after_[s] = t + 1 < steps_ ? before(t + 1, s) : last_[s];
    }
    p_.in = rows_->at(t);
    run(p_, kernels().forward[static_cast<int>(p_.dtype)]);
  }

  // Outputs, last states and, behind them, the states before each step.
  const std::vector<Tensor>& results() const { return operands_.results; }

 private:
  Operands operands_;
  Forward p_{};
  int64_t steps_, row_, count_;
  bool keep_;
  std::vector<char*> outputs_, last_;
  char* tape_;
  std::vector<Parameter> now_;
  std::vector<void*> to_, after_;
  std::unique_ptr<bool[]> where_;
  std::optional<OneStep> rows_;
};

// To the outputs of the first part, [T, N], and its last states, [N]; those of the others; and, to keep, the states of
// each part before each step, [T * states, N], and the pieces of the products, [T, N].
std::vector<Tensor> program_between_forward(const Tensor& like, const std::vector<Tensor>& series,
                                            const std::vector<Tensor>& states, const std::vector<Tensor>& parameters,
                                            const std::vector<Tensor>& codes, const std::vector<Tensor>& constants,
                                            const std::vector<int64_t>& counts, const std::vector<Tensor>& weights,
                                            const std::vector<MaybeTensor>& biases,
                                            const std::vector<int64_t>& products, int64_t steps, int64_t rows,
                                            bool keep) {
  STD_TORCH_CHECK(steps >= 0 && rows >= 0 && rows <= kMostValues / kMost, "expected sizes of 0 or more");
  STD_TORCH_CHECK(constants.size() == codes.size(), "constants: expected those of each code");
  const std::vector<PartCounts> all = read_counts(counts, codes.size());
  const Products between(like, rows, all, weights, biases, products, /*turned=*/false);
  std::vector<std::vector<Tensor>> made(weights.size());
  std::vector<std::vector<char*>> pieces(weights.size());  // of the step
  std::vector<std::unique_ptr<ForwardPart>> parts;
  Rest of_series(series, "series"), of_states(states, "states"), of_parameters(parameters, "parameters");
  for (size_t i = 0; i < all.size(); ++i) {
    std::vector<Tensor> every = of_series.take(all[i].series);
    for (size_t k = 0; k < made.size(); ++k) {
      for (size_t piece = 0; between.all()[k].to == i && piece < between.all()[k].pieces; ++piece) {
        made[k].push_back(between.empty(all[i].columns, keep ? steps : 1));
        pieces[k].push_back(static_cast<char*>(made[k].back().mutable_data_ptr()));
        every.push_back(made[k].back());
      }
    }
    parts.push_back(std::make_unique<ForwardPart>(like, steps, rows * all[i].columns, between.element(), every,
                                                  of_states.take(all[i].states), of_parameters.take(all[i].parameters),
                                                  codes[i], constants[i], keep));
  }
  of_series.end();
  of_states.end();
  of_parameters.end();
  for (const Product& p : between.all()) {
    const auto known = p.now ? parts[p.from]->outputs() : static_cast<size_t>(all[p.from].states);
    STD_TORCH_CHECK(p.number < known, "products: no such ", p.now ? "output" : "state");
  }
  for (int64_t t = 0; t < steps; ++t) {
    for (size_t i = 0; i < parts.size(); ++i) {
      for (size_t k = 0; k < made.size(); ++k) {
        const Product& p = between.all()[k];
        if (p.to != i) continue;
        const ForwardPart& from = *parts[p.from];
        between.multiply(k, p.now ? from.output(t, p.number) : from.before(t, p.number), pieces[k]);
        if (!keep) continue;
        for (char*& piece : pieces[k]) piece += rows * all[i].columns * between.element();
      }
      parts[i]->run_step(t);
    }
  }
  std::vector<Tensor> results, kept;
  for (const auto& part : parts) {
    results.insert(results.end(), part->results().begin(), part->results().end() - 1);
    kept.push_back(part->results().back());
  }
  if (!keep) return results;
  results.insert(results.end(), kept.begin(), kept.end());
  for (const std::vector<Tensor>& of : made) results.insert(results.end(), of.begin(), of.end());
  return results;
}

// The steps of the derivative of a part, from the last to the first.
class BackwardPart {
 public:
  BackwardPart(const Tensor& like, int64_t steps, int64_t neurons, int64_t element, const std::vector<Tensor>& series,
               const std::vector<Tensor>& parameters, const Tensor& tape, const std::vector<MaybeTensor>& grad_outputs,
               const std::vector<Tensor>& grad_last, const Tensor& code, const Tensor& constants)
      : operands_(like, steps, neurons), like_(like), neurons_(neurons), row_(neurons * element) {
    Words words(code);
    operands_.describe(p_, words, series, grad_last.size(), parameters, constants);
    const std::set<int32_t> registers = read_code(p_, words, grad_outputs.size());
    kept_ = static_cast<const char*>(operands_.read(tape, "tape", operands_.opmath(), steps * p_.states, neurons));
    const size_t outputs = grad_outputs.size(), states = grad_last.size();
    std::vector<Series> grads;
    for (const MaybeTensor& t : grad_outputs) {
      grads.push_back(t.has_value() ? operands_.read_series(*t, "gradients of outputs") : Series{nullptr, 0, nullptr});
    }
    p_.spikes = -1;
    carry_ = operands_.read_values(grad_last, "gradients of states", /*repeat=*/false);
    for (int k = 0; k < p_.series; ++k) {
      const bool none = p_.series_at[k] < 0;
      of_series_.push_back(none ? nullptr : static_cast<char*>(operands_.make(like.scalar_type(), steps)));
    }
    for (size_t s = 0; s < 2 * states; ++s) {
      carries_.push_back(static_cast<char*>(operands_.make(operands_.opmath(), kNoRows)));
      if (s < states) continue;
      others_.push_back(operands_.results.back());
      operands_.results.pop_back();
    }
    for (int j = 0; j < p_.parameters; ++j) {
      const bool none = p_.parameter_at[j] < 0, number = p_.parameter[j].data == nullptr;
      const int64_t length = none ? 0 : number ? 1 : neurons;
      sums_.push_back(none ? nullptr : operands_.make_numbers(length));
      std::fill_n(sums_.back(), length, 0.0);
      running_.emplace_back(static_cast<size_t>(none ? 0 : row_));
      of_steps_.push_back(running_.back().data());
      if (!none && number) numbers_.push_back(operands_.results.size() - 1);
    }
    where_ = in_place(p_.series_at, p_.series, p_.registers() - p_.temporaries, registers);
    p_.in_place = where_.get();
    rows_.emplace(p_.in, p_.series, element);
    grad_rows_.emplace(grads.data(), p_.outputs, element);
    given_.resize(outputs);
    through_.resize(outputs);
    to_.resize(of_series_.size());
    to_states_.resize(states);
    p_.grad_last = carry_.data();
    p_.grad_series = to_.data();
    p_.grad_initial = to_states_.data();
    p_.running = of_steps_.data();
    p_.T = 1;
  }

  // The row to which gradients of an output of this step are added.
  void* of_output(size_t o) { return through_[o].data(); }
  void* of_state(size_t s) { return to_states_[s]; }
  char* of_series(size_t k) const { return static_cast<char*>(to_[k]); }
  size_t outputs() const { return given_.size(); }
  size_t states() const { return to_states_.size(); }
  size_t series() const { return to_.size(); }

  // An output that products read has a gradient by these, too.
  void read_by_products(size_t o) { through_[o].resize(static_cast<size_t>(row_)); }

  void begin_step(int64_t t) {
    const Series* const rows = grad_rows_->at(t);
    for (size_t o = 0; o < given_.size(); ++o) {
      given_[o] = rows[o];
      std::vector<char>& through = through_[o];
      if (through.empty()) {
        STD_TORCH_CHECK(neurons_ == 0 || rows[o].data != nullptr, "gradients of outputs: one is missing");
        continue;
      }
      if (rows[o].data != nullptr) {
        std::memcpy(through.data(), rows[o].data, through.size());
      } else {
        std::memset(through.data(), 0, through.size());
      }
      given_[o].data = through.data();
    }
    for (size_t k = 0; k < to_.size(); ++k) to_[k] = of_series_[k] == nullptr ? nullptr : of_series_[k] + t * row_;
    for (size_t s = 0; s < to_states_.size(); ++s) to_states_[s] = carries_[s + (t % 2 == 0 ? 0 : to_states_.size())];
    p_.in = rows_->at(t);
    p_.grad_output = given_.data();
    p_.checkpoints = kept_ + t * p_.states * row_;
  }

  void run_step(int64_t t) {
    run(p_, kernels().backward[static_cast<int>(p_.dtype)]);
    if (t % cpu::program::kCheckpoint != 0) return;
    for (size_t j = 0; j < sums_.size(); ++j) {
      if (sums_[j] == nullptr) continue;
      const bool number = p_.parameter[j].data == nullptr;
      row_ == 8 * neurons_ ? add_up<double>(running_[j], sums_[j], number)
                           : add_up<float>(running_[j], sums_[j], number);
    }
  }

  void end_step() {
    for (size_t s = 0; s < to_states_.size(); ++s) carry_[s] = {to_states_[s], 0, neurons_};
  }

  std::vector<Tensor> finish() {
    sum_numbers(like_, operands_.results, numbers_, 1);
    return std::move(operands_.results);
  }

 private:
  // Sums of a few steps are in the dtype of the call, as those of all steps in one kernel.
  template <typename A>
  void add_up(std::vector<char>& steps, double* to, bool number) const {
    const A* const from = reinterpret_cast<const A*>(steps.data());
    for (int64_t i = 0; i < neurons_; ++i) to[number ? 0 : i] += static_cast<double>(from[i]);
    std::fill(steps.begin(), steps.end(), 0);
  }

  Operands operands_;
  const Tensor& like_;
  Backward p_{};
  int64_t neurons_, row_;
  const char* kept_;
  std::vector<Parameter> carry_;
  std::vector<char*> of_series_, carries_;
  std::vector<Tensor> others_;  // the gradients of the states of every other step
  std::vector<double*> sums_;
  std::vector<std::vector<char>> running_;  // sums of a few steps
  std::vector<void*> of_steps_;
  std::vector<size_t> numbers_;
  std::vector<Series> given_;
  std::vector<std::vector<char>> through_;
  std::vector<void*> to_, to_states_;
  std::unique_ptr<bool[]> where_;
  std::optional<OneStep> rows_, grad_rows_;
};

// The backward pass of program_between_forward, to what program_backward returns, of part after part. Series are all
// that a part takes, the pieces of its products at their end. Weights are [outputs, inputs]. The outputs, also those
// that products take, are numbered among the ones that have a gradient, which is none where only products read one.
std::vector<Tensor> program_between_backward(const Tensor& like, const std::vector<Tensor>& series,
                                             const std::vector<Tensor>& parameters, const std::vector<Tensor>& tapes,
                                             const std::vector<MaybeTensor>& grad_outputs,
                                             const std::vector<Tensor>& grad_last, const std::vector<Tensor>& codes,
                                             const std::vector<Tensor>& constants, const std::vector<int64_t>& counts,
                                             const std::vector<int64_t>& outputs, const std::vector<Tensor>& weights,
                                             const std::vector<int64_t>& products, int64_t steps, int64_t rows) {
  STD_TORCH_CHECK(steps > 0, "steps: expected 1 or more");
  STD_TORCH_CHECK(rows >= 0 && rows <= kMostValues / kMost, "expected sizes of 0 or more");
  for (const size_t size : {constants.size(), tapes.size(), outputs.size()}) {
    STD_TORCH_CHECK(size == codes.size(), "constants, tapes, outputs: expected those of each code");
  }
  const std::vector<PartCounts> all = read_counts(counts, codes.size());
  const std::vector<MaybeTensor> no_biases(weights.size());
  const Products between(like, rows, all, weights, no_biases, products, /*turned=*/true);
  std::vector<std::unique_ptr<BackwardPart>> parts;
  Rest of_series(series, "series"), of_parameters(parameters, "parameters"), of_last(grad_last, "gradients of states");
  Rest of_outputs(grad_outputs, "gradients of outputs");
  for (size_t i = 0; i < all.size(); ++i) {
    STD_TORCH_CHECK(outputs[i] >= 0, "outputs: expected 0 or more");
    parts.push_back(std::make_unique<BackwardPart>(like, steps, rows * all[i].columns, between.element(),
                                                   of_series.take(all[i].series), of_parameters.take(all[i].parameters),
                                                   tapes[i], of_outputs.take(outputs[i]), of_last.take(all[i].states),
                                                   codes[i], constants[i]));
  }
  of_series.end();
  of_parameters.end();
  of_last.end();
  of_outputs.end();
  std::vector<size_t> first;  // of the series of its part, for each product
  std::vector<size_t> next;
  for (const auto& part : parts) next.push_back(part->series());
  for (size_t k = weights.size(); k-- > 0;) {
    const Product& p = between.all()[k];
    STD_TORCH_CHECK(p.pieces <= next[p.to], "series: expected those of the products at their end");
    first.insert(first.begin(), next[p.to] -= p.pieces);
    const BackwardPart& from = *parts[p.from];
    STD_TORCH_CHECK(p.number < (p.now ? from.outputs() : from.states()), "products: no such ",
                    p.now ? "output" : "state");
    if (p.now) parts[p.from]->read_by_products(p.number);
  }
  std::vector<char*> pieces;
  const auto back = [&](size_t k) {
    const Product& p = between.all()[k];
    pieces.clear();
    for (size_t i = 0; i < p.pieces; ++i) pieces.push_back(parts[p.to]->of_series(first[k] + i));
    if (std::count(pieces.begin(), pieces.end(), nullptr) == static_cast<std::ptrdiff_t>(pieces.size())) return;
    between.multiply_back(k, pieces, p.now ? parts[p.from]->of_output(p.number) : parts[p.from]->of_state(p.number));
  };
  for (int64_t t = steps - 1; t >= 0; --t) {
    for (const auto& part : parts) part->begin_step(t);
    for (size_t i = parts.size(); i-- > 0;) {
      parts[i]->run_step(t);
      for (size_t k = 0; k < weights.size(); ++k) {
        if (between.all()[k].to == i && between.all()[k].now) back(k);
      }
    }
    // The gradients of the states are there once all parts have run.
    for (size_t k = 0; k < weights.size(); ++k) {
      if (!between.all()[k].now) back(k);
    }
    for (const auto& part : parts) part->end_step();
  }
  std::vector<Tensor> results;
  for (const auto& part : parts) {
    const std::vector<Tensor> found = part->finish();
    results.insert(results.end(), found.begin(), found.end());
  }
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) {
  m.def(
      "program_forward(Tensor like, Tensor[] series, Tensor[] states, Tensor[] parameters, Tensor code, Tensor "
      "constants, int steps, int neurons, bool keep, int bits, int samples, Tensor? numbers=None, int normed=-1, int "
      "inner=1) -> Tensor[]");
  m.def(
      "program_backward(Tensor like, Tensor[] series, Tensor[] parameters, Tensor checkpoints, Tensor[] grad_outputs, "
      "Tensor[] grad_last, Tensor? weight, Tensor code, Tensor constants, int steps, int neurons, int samples, "
      "Tensor? numbers=None, int normed=-1, int inner=1) -> Tensor[]");
  m.def(
      "program_between_forward(Tensor like, Tensor[] series, Tensor[] states, Tensor[] parameters, Tensor[] codes, "
      "Tensor[] constants, int[] counts, Tensor[] weights, Tensor?[] biases, int[] products, int steps, int rows, bool "
      "keep) -> Tensor[]");
  m.def(
      "program_between_backward(Tensor like, Tensor[] series, Tensor[] parameters, Tensor[] tapes, Tensor?[] "
      "grad_outputs, Tensor[] grad_last, Tensor[] codes, Tensor[] constants, int[] counts, int[] outputs, Tensor[] "
      "weights, int[] products, int steps, int rows) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) {
  m.impl("program_forward", SNN_BOX(program_forward));
  m.impl("program_backward", SNN_BOX(program_backward));
  m.impl("program_between_forward", SNN_BOX(program_between_forward));
  m.impl("program_between_backward", SNN_BOX(program_between_backward));
}

}  // namespace snnfast
