// What the op hands to a kernel: sizes, strides and raw pointers, checked in lif.cpp and trusted from there on.
#pragma once

#include <cstdint>

#include "math/lif.h"

namespace snnfast {

enum class DType : int { kFloat, kDouble, kHalf, kBFloat16 };

constexpr int64_t element_size(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }
constexpr int64_t acc_size(DType dtype) { return dtype == DType::kDouble ? 8 : 4; }  // of the arithmetic

// Arithmetic and carried state: double for double, float for all others. Called `acc` in the comments below.

// Forward keeps the membrane before every kCheckpoint-th step, backward recomputes the steps between.
inline constexpr int64_t kCheckpoint = 16;

constexpr int64_t checkpoint_rows(int64_t steps) { return steps > kCheckpoint ? (steps - 1) / kCheckpoint : 0; }

// What forward leaves for backward beside its outputs.
enum class Keep : int {
  kNothing,
  kCheckpoints,  // [checkpoint_rows(T), N] acc: membranes from which backward recomputes the steps between
  kRounded,      // [T, N] bfloat16: the membrane that decided each spike, less the threshold; its sign is exact
  kBits,         // [bit_rows(T), N] bytes: the spikes of all steps but the last, eight to a byte
};
inline constexpr const char* kKeepNames[] = {"nothing", "checkpoints", "rounded", "bits"};
inline constexpr int kKeeps = 4;

// The last spike decides no reset.
constexpr int64_t bit_rows(int64_t steps) { return steps > 1 ? (steps + 6) / 8 : 0; }

// Dtypes of a parameter that is one number.
enum class Number : int { kFloat, kDouble, kHalf, kBFloat16, kLong };

// One of beta, threshold, graded_spikes_factor. Neuron i takes element (i / inner) % size.
struct Parameter {
  const void* data = nullptr;  // [size], on the device of the kernel; nullptr: `value` for every neuron
  double value = 0;
  int64_t inner = 1;
  int64_t size = 1;
  Number type = Number::kFloat;  // of the data; that of acc where size > 1
};

struct LifProblem {
  DType dtype;
  Reset reset;
  bool reset_delay;
  int64_t T;      // time steps
  int64_t N;      // neurons of one step, batch included
  const void* x;  // [T, N], or [N] if constant; the input current
  bool x_constant;
  bool spk_count;    // the spikes are summed over time: they and their gradient are [N] instead of [T, N]
  const void* mem0;  // [N] acc, or nullptr for zeros
  Parameter beta, threshold, graded;
};

struct LifForward : LifProblem {
  void* spk;       // [T, N], or [N] if spk_count: summed in acc, rounded once
  void* mem_rec;   // [T, N] or nullptr
  void* mem_last;  // [N] acc or nullptr: the state, which no later call may find rounded
  Keep keep;       // kRounded and kBits only with a delayed reset
  void* kept;      // or nullptr, where there are no rows of it
};

// Exactly one of mem_rec, and x with checkpoints, and kRounded or kBits tells the membranes.
struct LifBackward : LifProblem {
  const void* mem_rec;        // [T, N] acc == dtype: the membrane of every step, only with a delayed reset; or nullptr
  Keep keep;                  // as in forward; with kRounded, no gradient of beta; with kBits, none of beta or graded,
  const void* kept;           // and no surrogate that asks for more than which spikes there were
  const void* derivative;     // [T, N] acc: that of the spike at every step; or nullptr: that of `surrogate`
  const void* grad_spk;       // [T, N], or [N] if spk_count, the same at every step; or nullptr
  const void* grad_mem_rec;   // [T, N] or nullptr
  const void* grad_mem_last;  // [N] acc or nullptr
  void* grad_x;               // [T, N], or [N] if constant, or nullptr
  void* grad_mem0;            // [N] acc or nullptr
  void* grad_beta;            // [N] acc or nullptr, as the next two: sums over time of each neuron's own gradient
  void* grad_threshold;
  void* grad_graded;
  bool clamp_closed;        // whether beta gets a gradient at exactly 0 and 1, as by torch.clamp
  SurrogateKind surrogate;  // kNone: no gradient passes through a spike; never kNone with `derivative`
  Coefficients coefficients;

  bool parameter_gradients() const { return grad_beta || grad_threshold || grad_graded; }
};

namespace cpu {
void lif_forward(const LifForward& problem);
void lif_backward(const LifBackward& problem);
}  // namespace cpu

namespace cuda {
// Launch on `stream` (a cudaStream_t) of the current device; return a cudaError_t, 0 for success.
int lif_forward(const LifForward& problem, void* stream);
int lif_backward(const LifBackward& problem, void* stream);
const char* error_string(int error);
// Neurons from which a thread takes several of them, 16 bytes at a time. For tests.
void set_vector_minimum(int64_t neurons);
// Steps from which, and neurons up to which, backward shares out time among the warps of a block. For tests.
void set_chunked_limits(int64_t least_steps, int64_t most_neurons);
// Bytes that the tensors over time of a call must exceed to pass by the caches; -1: those of the device's L2. For
// tests.
void set_stream_bytes(int64_t bytes);
}  // namespace cuda

}  // namespace snnfast
