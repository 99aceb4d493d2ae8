// A program: elementwise instructions over registers, which run for all steps of a block of neurons.
//
// snnfast/_program makes programs, and csrc/op/program.cpp checks them: the kernels trust what they are given.
#pragma once

#include <cstdint>

#include "../../op/problem.h"
#include "../isa.h"
#include "../norm/channels.h"

namespace snnfast::cpu::program {

// A block has so many bytes of one register. Registers lie a cache line further apart: 4 KiB apart they would evict
// each other, and a load would wait for a store to another one.
constexpr int64_t kBlockBytes = 1024, kRowBytes = kBlockBytes + 64;
constexpr int64_t kLinearRows = 8;   // of scratch memory, for the gradients of a few steps that come through a Linear
constexpr int64_t kCheckpoint = 16;  // the states before every so many steps are kept

struct Instruction {  // as it lies in the code of a program
  int32_t op, to, from[4];
};

struct Section {
  const Instruction* instructions;
  int count;
};

// A value for every step and neuron, in the dtype of the tensors: rows `stride` elements apart, or 0 where one row [N]
// is that of all steps. Or a number for every step, [T].
struct Series {
  const void* data;
  int64_t stride;
  const double* numbers;
};

// A value for every neuron, or one for all of them.
struct Parameter {
  const void* data;  // [period] opmath, again and again; nullptr: the number
  double number;
  int64_t period;  // N is a multiple of it
};

// The registers are numbered in this order: series, states, parameters, constants, then in a derivative the gradients
// of outputs and those of the states after the step, then temporaries. Only temporaries are written to.
struct Program {
  DType dtype;
  int64_t T, N;
  int64_t samples;  // a tensor of all steps is [samples, T, side]; one sample: [T, N]
  int series, states, parameters, constants, temporaries;
  const Series* in;            // [series]
  const Parameter* parameter;  // [parameters]
  const double* constant;      // [constants]
  int normed;                  // the series that is normalised where it is read, in float32; or -1
  const Normalised* norm;      // with sums in a derivative that has the gradient of this series
  bool stream;                 // whether to write results by non-temporal stores

  int64_t side() const { return N / samples; }
  int64_t blocks() const;                                              // each of neurons that lie side by side
  int64_t taped() const { return T < kCheckpoint ? T : kCheckpoint; }  // steps whose rows are held at a time
  int64_t currents() const { return normed < 0 ? 0 : taped(); }        // rows that are normalised
};

struct Forward : Program {
  int outputs;
  Section step;
  const int32_t* output_at;  // [outputs], registers
  const int32_t* state_at;   // [states], of the new states: distinct temporaries
  const bool* in_place;      // [outputs], whether the register can lie in the row of the output
  int bits;                  // the output that is returned as bits, [ceil(T / 8), N]; or -1
  const Parameter* initial;  // [states]
  void* const* output;       // [outputs]: [samples, T, side]; bits as ../spikes/events.h describes them
  void* const* last;         // [states]: [N] opmath
  void* checkpoints;         // [ceil(T / kCheckpoint), states, N] opmath, or nullptr

  int instructions() const { return step.count; }
  int registers() const { return series + states + parameters + constants + temporaries; }
  int64_t rows() const { return series + 2 * states + parameters + constants + temporaries + 1 + currents(); }
};

struct Backward : Program {
  int outputs, saved;  // outputs: those that have a gradient
  Section again, derivative;
  const int32_t* state_at;        // [states], of the states that are computed again: distinct temporaries; or -1
  const int32_t* saved_at;        // [saved], distinct temporaries
  const int32_t* carry_at;        // [states], distinct temporaries
  const int32_t* series_at;       // [series], of their gradients, or -1
  const int32_t* parameter_at;    // [parameters], of their gradients, or -1
  const bool* in_place;           // [series], whether the register can lie in the row of the result
  const void* checkpoints;        // as in Forward
  const Series* grad_output;      // [outputs]
  Outputs linear;                 // of a Linear that reads an output: its gradient is made of that of the Linear
  int spikes;                     // this output, by its place among those that have a gradient; or -1
  const Parameter* grad_last;     // [states]
  void* const* grad_series;       // [series]: [samples, T, side], or nullptr
  void* const* grad_initial;      // [states]: [N] opmath
  double* const* grad_parameter;  // [parameters]: [N], or [blocks] where the parameter is a number; or nullptr
  void* const* running;           // [parameters]: [N] opmath, in place of grad_parameter, which the call adds to

  int instructions() const { return again.count + derivative.count; }
  int registers() const { return series + 2 * states + parameters + constants + outputs + temporaries; }
  int64_t rows() const {
    const int64_t tape = taped() * saved + (taped() + 1) * states;
    const int64_t normalised = normed < 0 ? 0 : 2 * taped() + 2;  // and their gradients, and sums of these
    return series + 2 * states + parameters * 4 + constants + outputs + temporaries + tape + kLinearRows + normalised;
  }
};

struct Workspace {
  void* rows;        // as many as the program asks for, of kRowBytes, zeros; aligned to a cache line
  void** registers;  // likewise, and behind them one for each state and parameter
};

constexpr int64_t block_size(DType dtype) { return kBlockBytes / opmath_size(dtype); }

inline int64_t Program::blocks() const {
  const int64_t size = block_size(dtype);
  return samples * ((side() + size - 1) / size);
}

struct Kernels {  // blocks `begin` to `end` - 1, by DType
  void (*forward[4])(const Forward&, int64_t begin, int64_t end, const Workspace&);
  void (*backward[4])(const Backward&, int64_t begin, int64_t end, const Workspace&);
  int operations;  // how many instructions there are
};

}  // namespace snnfast::cpu::program

namespace snnfast::cpu {
SNN_DECLARE_FOR_EACH_ISA(const program::Kernels& program_kernels())
}  // namespace snnfast::cpu
