// What the host hands to a kernel: sizes, strides and raw pointers, checked in neuron_ops.cpp and trusted from there
// on.
#pragma once

#include <cstdint>

#include "../math/neuron.h"

namespace snnfast {

enum class DType : int { kFloat, kDouble, kHalf, kBFloat16 };

constexpr int64_t element_size(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

// Bytes of the opmath dtype, that of the arithmetic and of the states between steps: double for double, float for all
// others.
constexpr int64_t opmath_size(DType dtype) { return dtype == DType::kDouble ? 8 : 4; }

// What time is in the shapes of a call. snnfast/_core/ops.py has the same names and numbers.
enum class Time : int { kSequence, kConstant, kStep };
inline constexpr const char* kTimeNames[] = {"sequence", "constant", "step"};

// The options of an op are fields of one number, because each argument of an op costs as much as the checks of a
// tensor. snnfast/_core/ops.py has the same table.
struct OptionField {
  const char* name;
  int at, bits;

  constexpr int64_t of(int64_t options) const { return options >> at & ((int64_t{1} << bits) - 1); }
};
namespace option {
inline constexpr OptionField kTime{"time", 0, 2}, kReset{"reset", 2, 2}, kResetDelay{"reset_delay", 4, 1},
    kReduce{"reduce", 5, 1}, kSaved{"saved", 6, 3};
// Options of forward: whether to return the states after the last step; which states of every step to return, by bits,
// of which the highest is the membrane that decided each spike; and whether to return the spikes as bits.
inline constexpr OptionField kLast{"last", 9, 1}, kRecord{"record", 10, 8}, kBits{"bits", 18, 1};
// Options of backward: whether clamp has a gradient at 0 and 1, the surrogate, and by bits the inputs that need a
// gradient.
inline constexpr OptionField kClampClosed{"clamp_closed", 9, 1}, kSurrogate{"surrogate", 10, 8},
    kNeeds{"needs", 18, 24};
}  // namespace option
inline constexpr OptionField kOptionFields[] = {
    option::kTime,   option::kReset, option::kResetDelay,  option::kReduce,    option::kSaved, option::kLast,
    option::kRecord, option::kBits,  option::kClampClosed, option::kSurrogate, option::kNeeds,
};

// ---- what forward saves for backward beside its inputs and outputs

enum class Saved : int { kNothing, kCheckpoints, kSpikes };

// Backward recomputes the steps between two checkpoints.
inline constexpr int64_t kCheckpoint = 16;

struct SavedMode {
  const char* name;
  int64_t plus, per;  // T steps take (T + plus) / per rows, per > 0
  int64_t bytes;      // of an element; 0: of opmath
};

// The one table of them, also for Python. The last needs a neuron with kRecordedMembraneSuffices and a delayed
// reset.
inline constexpr SavedMode kSavedModes[] = {
    {"nothing", 0, 0, 0},
    {"checkpoints", -1, kCheckpoint, 0},  // [rows * kStates, N]: all states before every kCheckpoint-th step but 0
    {"spikes", 7, 8, 1},                  // the spikes of eight steps in a byte, the first in its lowest bit
};

constexpr int64_t saved_rows(Saved saved, int64_t steps) {
  const SavedMode& mode = kSavedModes[static_cast<int>(saved)];
  return mode.per == 0 || steps + mode.plus < 0 ? 0 : (steps + mode.plus) / mode.per;
}

// ---- a problem

// The number of pointers that are not nullptr.
template <typename T, int n>
SNN_HD int given(T* const (&pointers)[n]) {
  int found = 0;
  for (const void* pointer : pointers) found += pointer != nullptr;
  return found;
}

// The dtypes of a parameter that is one number.
enum class Number : int { kFloat, kDouble, kHalf, kBFloat16, kLong };

struct Parameter {
  const void* data = nullptr;  // [size], on the device of the kernel; nullptr: `value` for every neuron
  double value = 0;
  int64_t inner = 1;
  int64_t size = 1;
  Number type = Number::kFloat;  // of the data; that of opmath where size > 1

  bool uniform() const { return data == nullptr || size == 1; }
  SNN_HD int64_t at(int64_t neuron) const { return size == 1 ? 0 : neuron / inner % size; }
};

template <typename Neuron>
struct Problem {
  static constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters;
  static constexpr int kMem = kStates - 1, kThreshold = kParameters - 2, kGraded = kParameters - 1;

  DType dtype;
  ResetRule rule;
  int64_t T;                     // time steps
  int64_t N;                     // neurons of one step, batch included
  const void* x;                 // [T, N], or [N] if x_repeats; the input current
  bool x_repeats;                // one row is that of every step, as of a constant or an expanded current
  bool reduce;                   // the spikes are summed over time: they and their gradient are [N] instead of [T, N]
  const void* initial[kStates];  // [N] opmath each, or nullptr for zeros
  unsigned initial_repeats;      // by bits, which of them are one number for all neurons: CUDA only
  Parameter parameters[kParameters];
  float numbers[kParameters];  // for a plain kernel of CUDA, whose launch sets them: those that the host knows,
  bool loads, alike;           // whether there are others, and whether all of these have the dtype

  // The steps of each sample of a ragged batch, clamped to 0 and T; nullptr: T steps for all. The neurons of a sample
  // are adjacent. After its last step, a sample keeps its states and does not spike.
  const int64_t* lengths;  // [N / sample]
  int64_t sample;          // the number of neurons of a sample

  SNN_HD int64_t x_stride() const { return x_repeats ? 0 : N; }  // from one row to the next

  SNN_HD int64_t steps_of(int64_t neuron) const {
    if (lengths == nullptr) return T;
    const int64_t steps = lengths[neuron / sample];
    return steps < 0 ? 0 : steps < T ? steps : T;
  }
};

template <typename Neuron>
struct Forward : Problem<Neuron> {
  using Problem<Neuron>::kStates;

  void* spk;              // [T, N], or [N] if `reduce`: summed in opmath, rounded once; or nullptr
  int64_t spk_first;      // the neuron that its rows begin with
  int64_t spk_stride;     // from one row to the next
  void* bits;             // in place of it, as Saved::kSpikes has them: 1 where a neuron spikes, of whatever height
  void* record[kStates];  // [T, N] each, or nullptr
  void* deciding;         // [T, N] opmath: the membrane that decided each spike; or nullptr
  void* last[kStates];    // [N] opmath each, or nullptr: the states, which no later call may find rounded
  Saved saved;
  void* rows;  // of what is saved; nullptr where there are none
};

// The gradient of the outputs of a Linear behind the spikes. That of the spikes is grad * weight, for each of the
// N / columns samples of a step. The CPU computes it for a few neurons at a time.
struct Outputs {
  const void* grad = nullptr;    // [T, N / columns, size]; nullptr: there is no Linear
  const void* weight = nullptr;  // [size, columns]; both opmath if they are few, else in x's dtype
  int64_t size = 0, columns = 0;
};
inline constexpr int64_t kFewOutputs = 32;

template <typename Neuron>
struct Backward : Problem<Neuron> {
  using Problem<Neuron>::kStates;
  using Problem<Neuron>::kParameters;

  // Exactly one tells the membranes: `mem_rec`, or x with checkpoints, or `rows` with the spikes.
  const void* mem_rec;  // [T, N] opmath == dtype: the membrane of every step, only with a delayed reset; or nullptr
  Saved saved;
  const void* rows;
  const void* derivative;   // [T, N] opmath: that of the spike at every step; or nullptr: that of `surrogate`
  const void* grad_spk;     // [T, N], or [N], the same at every step; or nullptr
  int64_t grad_spk_first;   // the neuron that its rows begin with
  int64_t grad_spk_stride;  // from one row to the next; 0 where there is but one
  Outputs outputs;
  const void* grad_record[kStates];  // [T, N] or [N] each, or nullptr
  int64_t grad_record_stride[kStates];
  const void* grad_last[kStates];      // [N] opmath each, or nullptr
  void* grad_x;                        // [T, N], or nullptr
  void* grad_x_sum;                    // in place of it: the sum over time [N], for a constant current; or nullptr
  void* grad_initial[kStates];         // [N] opmath each, or nullptr
  void* grad_parameters[kParameters];  // [N] opmath each, or nullptr: sums over time of each neuron's own gradient
  unsigned summed;                     // by bits, which of them are one number, the sum over all neurons: CUDA only
  Number sum_types[kParameters];       // their dtypes
  void* partial_sums;                  // [sums_workspace()] double, whatever is in it; nullptr: nothing is summed
  bool clamp_closed;                   // whether a clamped parameter gets a gradient at exactly 0 and 1
  SurrogateKind surrogate;             // kNone: no gradient passes through a spike; never kNone with `derivative`
  Coefficients coefficients;
  Slope slope;  // the same for a plain kernel of CUDA, whose launch sets it

  bool recorded() const { return mem_rec != nullptr || saved == Saved::kSpikes; }
  bool sums_parameters() const { return given(grad_parameters) > 0; }
};

// The size of a workspace in numbers of 8 bytes: a counter of blocks, and for each block, of at least 32 neurons, a sum
// for each parameter.
template <typename Neuron>
int64_t sums_workspace(int64_t neurons) {
  return (neurons + 31) / 32 * Neuron::kParameters + 1;
}

// The number of tensors with a row for every step that a call reads or writes in the dtype of x.
template <typename Neuron>
int rows_per_step(const Forward<Neuron>& p) {
  return !p.x_repeats + (p.spk != nullptr && !p.reduce) + given(p.record);
}

template <typename Neuron>
int rows_per_step(const Backward<Neuron>& p) {
  int rows = (p.x != nullptr && !p.x_repeats) + (p.grad_spk != nullptr && p.grad_spk_stride != 0) +
             (p.mem_rec != nullptr) + (p.grad_x != nullptr);
  for (int s = 0; s < Neuron::kStates; ++s) rows += p.grad_record[s] != nullptr && p.grad_record_stride[s] != 0;
  return rows;
}

namespace cpu {
template <typename Neuron>
void forward(const Forward<Neuron>& problem);
template <typename Neuron>
void backward(const Backward<Neuron>& problem);
}  // namespace cpu

namespace cuda {
// Launch on `stream` (a cudaStream_t) of the current device; return a cudaError_t, 0 for success.
template <typename Neuron>
int forward(const Forward<Neuron>& problem, void* stream);
template <typename Neuron>
int backward(const Backward<Neuron>& problem, void* stream);

const char* error_string(int error);
// Neurons from which a thread takes several of them, 16 bytes at a time; -1: the limits of each pass. For tests.
void set_vector_minimum(int64_t neurons);
// Blocks from which those that sum over the neurons of channels take several tiles each. For tests.
void set_norm_blocks(int64_t blocks);
// Steps from which, and neurons up to which, backward shares out time among the warps of a block. For tests.
void set_chunked_limits(int64_t least_steps, int64_t most_neurons);
}  // namespace cuda

}  // namespace snnfast
