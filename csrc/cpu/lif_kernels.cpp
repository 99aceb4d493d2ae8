// The CPU kernels: time runs inside a block of neurons, and each step is a vectorised loop over the block.
//
// Compiled once for each instruction set with SNN_ISA naming the namespace. Nothing here may have external linkage but
// `kernels`, and nothing inline from other headers may be emitted: the linker would keep one copy for all sets.
#include <memory>

#include "kernels.h"
#include "rows.h"
#include "steps.h"

namespace snnfast::cpu::SNN_ISA {
namespace {

// ---- a block through all its time steps

bool uniform(const Parameter& parameter) { return parameter.data == nullptr || parameter.size == 1; }

template <typename A>
void fill(int64_t first, int n, const Parameter& parameter, A* out) {
  const A* data = static_cast<const A*>(parameter.data);
  if (uniform(parameter)) {
    const A value = data == nullptr ? static_cast<A>(parameter.value) : data[0];
    for (int i = 0; i < n; ++i) out[i] = value;
    return;
  }
  int64_t element = first / parameter.inner % parameter.size, within = first % parameter.inner;
  for (int i = 0; i < n; ++i) {
    out[i] = data[element];
    if (++within == parameter.inner) {
      within = 0;
      if (++element == parameter.size) element = 0;
    }
  }
}

template <typename A>
void copy_or_zero(int n, const A* from, A* to) {
  for (int i = 0; i < n; ++i) to[i] = from == nullptr ? A(0) : from[i];
}

// `next`: the lanes hold those of the block before, which was as long or longer.
template <typename A>
void open_lanes(int64_t first, int n, const LifProblem& p, bool next, Lanes<A>& lanes) {
  if (!next || !uniform(p.beta)) {
    fill(first, n, p.beta, lanes.beta);
    for (int i = 0; i < n; ++i) lanes.beta[i] = clamp_unit(lanes.beta[i]);
  }
  if (!next || !uniform(p.threshold)) fill(first, n, p.threshold, lanes.threshold);
  if (!next || !uniform(p.graded)) fill(first, n, p.graded, lanes.graded);
}

// Row t of a [T, N] tensor at neuron `first`; nullptr stays nullptr.
template <typename S, typename V>
S* row_of(V* tensor, int64_t t, int64_t N, int64_t first) {
  return tensor == nullptr ? nullptr : static_cast<S*>(tensor) + t * N + first;
}

template <typename A>
using Scratch = A[kSteps][kBlock];  // converted rows

template <typename S>
void forward_block(const LifForward& p, Either<ForwardSteps<typename Acc<S>::type>> loops, int64_t first, int n,
                   bool next, Lanes<typename Acc<S>::type>& lanes) {
  using A = typename Acc<S>::type;
  alignas(64) Scratch<A> x_scratch, spk_scratch, mem_scratch;
  open_lanes(first, n, p, next, lanes);
  copy_or_zero(n, row_of<const A>(p.mem0, 0, p.N, first), lanes.state);
  A* count = nullptr;
  if (p.spk_count) {
    count = open_row(row_of<S>(p.spk, 0, p.N, first), spk_scratch[0]);
    for (int i = 0; i < n; ++i) count[i] = A(0);
  }
  for (int64_t t = 0, steps; t < p.T; t += steps) {
    steps = t + kSteps <= p.T ? kSteps : 1;
    if (p.checkpoints != nullptr && t > 0 && t % kCheckpoint == 0) {
      store_row(row_of<A>(p.checkpoints, t / kCheckpoint - 1, p.N, first), n, lanes.state);
    }
    ForwardRows<A> rows;
    rows.count = count;
    for (int k = 0; k < steps; ++k) {
      rows.x[k] = load_row(row_of<const S>(p.x, p.x_constant ? 0 : t + k, p.N, first), n, x_scratch[k]);
      if (!p.spk_count) rows.spk[k] = open_row(row_of<S>(p.spk, t + k, p.N, first), spk_scratch[k]);
      if (p.mem_rec != nullptr) rows.mem[k] = open_row(row_of<S>(p.mem_rec, t + k, p.N, first), mem_scratch[k]);
    }
    loops(static_cast<int>(steps))(n, rows, lanes);
    for (int k = 0; k < steps; ++k) {
      if (!p.spk_count) store_row(row_of<S>(p.spk, t + k, p.N, first), n, rows.spk[k]);
      if (p.mem_rec != nullptr) store_row(row_of<S>(p.mem_rec, t + k, p.N, first), n, rows.mem[k]);
    }
  }
  if (p.spk_count) store_row(row_of<S>(p.spk, 0, p.N, first), n, count);
  if (p.mem_last != nullptr) store_row(row_of<S>(p.mem_last, 0, p.N, first), n, lanes.state);
}

template <typename A>
struct Trajectory {  // membranes of up to kCheckpoint steps, recomputed
  alignas(64) A v[kCheckpoint][kBlock];
  alignas(64) A u[kCheckpoint + 1][kBlock];  // before each step; beyond [0] only used if the reset is not delayed
};

template <typename S>
struct BackwardBlock {
  using A = typename Acc<S>::type;

  LifBackward p;
  Either<RecomputeSteps<A>> recompute_loops;
  Either<AdjointSteps<A>> adjoint_loops;
  int64_t first = 0;
  int n = 0;
  const A* grad_count = nullptr;  // the row of grad_spk for all steps, if there is but one
  Lanes<A> lanes;
  Sums<A> sums;
  Trajectory<A> trajectory;
  alignas(64) A zeros[kBlock] = {};
  alignas(64) Scratch<A> x_scratch, grad_spk_scratch, grad_mem_scratch, grad_x_scratch;
  alignas(64) A grad_x_sum[kBlock];

  void open(const LifBackward& problem) {
    p = problem;
    recompute_loops = choose_recompute<A>(problem);
    adjoint_loops = choose_adjoint<A>(problem);
  }

  void run(int64_t first_neuron, int count, bool next) {
    first = first_neuron;
    n = count;
    open_lanes(first, n, p, next && p.grad_beta == nullptr, lanes);  // finish() takes beta's lanes for its gradient
    const S* grad_last = row_of<const S>(p.grad_mem_last, 0, p.N, first);
    copy_or_zero(n, grad_last == nullptr ? zeros : load_row(grad_last, n, x_scratch[0]), lanes.state);
    grad_count = p.spk_count ? gradient_row(p.grad_spk, 0, grad_spk_scratch[0]) : nullptr;
    if (p.parameter_gradients()) {
      for (int i = 0; i < n; ++i) sums.beta[i] = sums.threshold[i] = sums.graded[i] = A(0);
    }
    if (p.x_constant) {
      for (int i = 0; i < n; ++i) grad_x_sum[i] = A(0);
    }
    for (int64_t start = p.T == 0 ? -1 : (p.T - 1) / kCheckpoint * kCheckpoint; start >= 0; start -= kCheckpoint) {
      const int count_of_chunk = static_cast<int>(p.T - start < kCheckpoint ? p.T - start : kCheckpoint);
      if (p.mem_rec == nullptr) recompute(start, count_of_chunk);
      int k = count_of_chunk;
      for (; k % kSteps != 0; --k) adjoint(start, k - 1, 1);
      for (; k > 0; k -= kSteps) adjoint(start, k - kSteps, kSteps);
    }
    finish();
  }

  const A* before_first_step() const {
    const A* mem0 = row_of<const A>(p.mem0, 0, p.N, first);
    return mem0 == nullptr ? zeros : mem0;
  }

  // All steps of a chunk, from the membrane that the forward pass kept.
  void recompute(int64_t start, int count) {
    copy_or_zero(n,
                 start == 0 ? before_first_step() : row_of<const A>(p.checkpoints, start / kCheckpoint - 1, p.N, first),
                 trajectory.u[0]);
    for (int k = 0, steps; k < count; k += steps) {
      steps = k + kSteps <= count ? kSteps : 1;
      RecomputeRows<A> rows;
      rows.u = before(k);
      for (int j = 0; j < steps; ++j) {
        rows.x[j] = load_row(row_of<const S>(p.x, p.x_constant ? 0 : start + k + j, p.N, first), n, x_scratch[j]);
        rows.v[j] = trajectory.v[k + j];
        rows.after[j] = trajectory.u[k + j + 1];
      }
      recompute_loops(steps)(n, rows, lanes);
    }
  }

  // The recomputed membrane before step k of the chunk.
  const A* before(int k) const { return p.reset_delay && k > 0 ? trajectory.v[k - 1] : trajectory.u[k]; }

  // Steps k + steps - 1 down to k of the chunk.
  void adjoint(int64_t start, int k, int steps) {
    AdjointRows<A> rows;
    rows.a = static_cast<A>(p.coefficients.a);
    rows.b = static_cast<A>(p.coefficients.b);
    for (int j = 0; j < steps; ++j) {
      const int64_t t = start + k + j;
      if (p.mem_rec != nullptr) {
        rows.v[j] = row_of<const A>(p.mem_rec, t, p.N, first);
        rows.u[j] = t == 0 ? before_first_step() : row_of<const A>(p.mem_rec, t - 1, p.N, first);
      } else {
        rows.v[j] = trajectory.v[k + j];
        rows.u[j] = before(k + j);
      }
      rows.grad_spk[j] = p.spk_count ? grad_count : gradient_row(p.grad_spk, t, grad_spk_scratch[j]);
      rows.grad_mem[j] = gradient_row(p.grad_mem_rec, t, grad_mem_scratch[j]);
      rows.derivative[j] = row_of<const A>(p.derivative, t, p.N, first);
      S* grad_x = grad_x_row(t);
      rows.grad_x[j] = grad_x == nullptr ? grad_x_scratch[j] : open_row(grad_x, grad_x_scratch[j]);
    }
    adjoint_loops(steps)(n, rows, lanes, sums);
    for (int j = steps - 1; j >= 0; --j) {
      if (grad_x_row(start + k + j) != nullptr) store_row(grad_x_row(start + k + j), n, rows.grad_x[j]);
      if (p.x_constant) {
        for (int i = 0; i < n; ++i) grad_x_sum[i] += rows.grad_x[j][i];
      }
    }
  }

  S* grad_x_row(int64_t t) const { return p.x_constant ? nullptr : row_of<S>(p.grad_x, t, p.N, first); }

  const A* gradient_row(const void* gradient, int64_t t, A* scratch) const {
    const S* row = row_of<const S>(gradient, t, p.N, first);
    return row == nullptr ? zeros : load_row(row, n, scratch);
  }

  void finish() {
    if (p.x_constant && p.grad_x != nullptr) store_row(row_of<S>(p.grad_x, 0, p.N, first), n, grad_x_sum);
    if (p.grad_mem0 != nullptr) store_row(row_of<A>(p.grad_mem0, 0, p.N, first), n, lanes.state);
    if (p.grad_beta != nullptr) {
      // The clamp's own derivative needs beta as it was given.
      fill(first, n, p.beta, lanes.beta);
      for (int i = 0; i < n; ++i) sums.beta[i] = clamp_unit_adjoint(lanes.beta[i], sums.beta[i]);
      store_row(row_of<A>(p.grad_beta, 0, p.N, first), n, sums.beta);
    }
    if (p.grad_threshold != nullptr) store_row(row_of<A>(p.grad_threshold, 0, p.N, first), n, sums.threshold);
    if (p.grad_graded != nullptr) store_row(row_of<A>(p.grad_graded, 0, p.N, first), n, sums.graded);
  }
};

// ---- a thread's range of neurons

// Calls f with the first neuron of each block of a range, its size, and whether it is not the first block.
template <typename F>
void for_each_block(const LifProblem& p, int64_t first, int64_t last, F&& f) {
  // Long rows matter over many steps; with a few, that state and parameters stay in the first-level cache.
  const int64_t block = p.T < kSteps ? kShortBlock : kBlock;
  for (int64_t neuron = first; neuron < last; neuron += block) {
    f(neuron, static_cast<int>(last - neuron < block ? last - neuron : block), neuron > first);
  }
}

template <typename S>
void forward_range(const LifForward& p, int64_t first, int64_t last) {
  using A = typename Acc<S>::type;
  const auto loops = choose_forward<A>(p);
  Lanes<A> lanes;
  for_each_block(p, first, last,
                 [&](int64_t neuron, int n, bool next) { forward_block<S>(p, loops, neuron, n, next, lanes); });
}

template <typename S>
void backward_range(const LifBackward& p, int64_t first, int64_t last) {
  // Larger than a thread's stack may be, and kept from call to call: fresh memory costs page faults.
  thread_local const auto work = std::make_unique<BackwardBlock<S>>();
  work->open(p);
  for_each_block(p, first, last, [&](int64_t neuron, int n, bool next) { work->run(neuron, n, next); });
}

void forward(const LifForward& p, int64_t first, int64_t last) {
  switch (p.dtype) {
    case DType::kFloat: return forward_range<float>(p, first, last);
    case DType::kDouble: return forward_range<double>(p, first, last);
    case DType::kHalf: return forward_range<Half>(p, first, last);
    case DType::kBFloat16: return forward_range<BFloat16>(p, first, last);
  }
}

void backward(const LifBackward& p, int64_t first, int64_t last) {
  switch (p.dtype) {
    case DType::kFloat: return backward_range<float>(p, first, last);
    case DType::kDouble: return backward_range<double>(p, first, last);
    case DType::kHalf: return backward_range<Half>(p, first, last);
    case DType::kBFloat16: return backward_range<BFloat16>(p, first, last);
  }
}

}  // namespace

#define SNN_STRING(name) #name
#define SNN_NAME(name) SNN_STRING(name)
const Kernels kernels{SNN_NAME(SNN_ISA), forward, backward};

}  // namespace snnfast::cpu::SNN_ISA
