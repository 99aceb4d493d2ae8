// The kernels without torch, over a grid of shapes and options and with seeds 0 to 7: for ThreadSanitizer, which would
// have to watch all of Python and torch as well. Every output must be written; a sanitizer says the rest.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "../../csrc/lif.h"
#include "emulator.h"
#include "poison.h"

namespace {

using snnfast::DType;
using snnfast::Keep;
using snnfast::LifBackward;
using snnfast::LifForward;
using snnfast::LifProblem;
using snnfast::Number;

size_t size_of(DType type) { return type == DType::kDouble ? 8 : type == DType::kFloat ? 4 : 2; }
DType acc_of(DType type) { return type == DType::kDouble ? type : DType::kFloat; }

// A tensor to the byte, so that AddressSanitizer watches its ends.
class Memory {
 public:
  Memory(DType type, int64_t count) : Memory(type, count, size_of(type)) {}

  static Memory of_bytes(int64_t count) { return Memory(DType::kHalf, count, 1); }

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
  Memory(DType type, int64_t count, size_t size)
      : type_(type), count_(count), size_(size), bytes_(static_cast<size_t>(count) * size) {
    emulator::poison(bytes_.data(), bytes_.size());
  }

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

// What forward keeps for backward.
Memory kept_memory(Keep keep, const LifProblem& p) {
  switch (keep) {
    case Keep::kRounded: return Memory(DType::kBFloat16, p.T * p.N);
    case Keep::kBits: return Memory::of_bytes(snnfast::bit_rows(p.T) * p.N);
    default: return Memory(acc_of(p.dtype), snnfast::checkpoint_rows(p.T) * p.N);
  }
}

void forward_and_backward(LifProblem problem, bool record, Keep keep) {
  const DType type = problem.dtype, acc = acc_of(type);
  const int64_t T = problem.T, N = problem.N;
  const int64_t x_count = problem.x_constant ? N : T * N, spk_count = problem.spk_count ? N : T * N;
  Memory x = Memory::input(type, x_count), mem0 = Memory::input(acc, N), beta = Memory::input(acc, N);
  problem.x = x.data();
  problem.mem0 = mem0.data();
  const auto acc_number = acc == DType::kDouble ? Number::kDouble : Number::kFloat;
  problem.beta = {beta.data(), 0, 1, N, acc_number};
  problem.threshold.value = 0.5;
  const int64_t one = 1;
  problem.graded = {&one, 0, 1, 1, Number::kLong};

  Memory spk(type, spk_count), mem_rec(type, T * N), mem_last(acc, N), kept = kept_memory(keep, problem);
  LifForward forward{};
  static_cast<LifProblem&>(forward) = problem;
  forward.spk = spk.data();
  (record ? forward.mem_rec : forward.mem_last) = (record ? mem_rec : mem_last).data();
  forward.keep = keep;
  if (keep != Keep::kCheckpoints || snnfast::checkpoint_rows(T) > 0) forward.kept = kept.data();
  expect_success(snnfast::cuda::lif_forward(forward, nullptr));
  spk.expect_written("spk");
  (record ? mem_rec : mem_last).expect_written("mem");
  // In a byte of eight steps every bit may be set by right.
  if (keep != Keep::kBits || T <= 8) kept.expect_written("what is kept");

  Memory grad_spk = Memory::input(type, spk_count),
         grad_mem = record ? Memory::input(type, T * N) : Memory::input(acc, N);
  Memory grad_x(type, x_count), grad_mem0(acc, N), grad_beta(acc, N), grad_threshold(acc, N), grad_graded(acc, N);
  LifBackward backward{};
  static_cast<LifProblem&>(backward) = problem;
  if (keep == Keep::kCheckpoints && record && problem.reset_delay && type == acc) {
    backward.mem_rec = mem_rec.data();
  } else {
    backward.keep = keep;
    backward.kept = forward.kept;
  }
  if (keep != Keep::kCheckpoints) backward.x = nullptr;
  backward.grad_spk = grad_spk.data();
  (record ? backward.grad_mem_rec : backward.grad_mem_last) = grad_mem.data();
  backward.surrogate = keep == Keep::kBits ? snnfast::SurrogateKind::kStraightThrough : snnfast::SurrogateKind::kATan;
  backward.coefficients =
      snnfast::visit_surrogate(backward.surrogate, [](auto kind) { return decltype(kind)::coefficients(2.0, 0.0); });
  backward.grad_x = grad_x.data();
  backward.grad_mem0 = grad_mem0.data();
  backward.grad_threshold = grad_threshold.data();
  if (keep == Keep::kCheckpoints) backward.grad_beta = grad_beta.data();
  if (keep != Keep::kBits) backward.grad_graded = grad_graded.data();
  expect_success(snnfast::cuda::lif_backward(backward, nullptr));
  for (const Memory* memory : {&grad_x, &grad_mem0, &grad_threshold}) memory->expect_written("a gradient");
  if (keep == Keep::kCheckpoints) grad_beta.expect_written("the gradient of beta");
  if (keep != Keep::kBits) grad_graded.expect_written("the gradient of the graded factor");
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

}  // namespace

int main() {
  int cases = 0;
  snnfast::cuda::set_vector_minimum(1);
  for (unsigned seed = 0; seed < 8; ++seed) {
    emulator::set_seed(seed);
    snnfast::cuda::set_stream_bytes(seed % 2 == 1 ? 0 : -1);  // no shape here exceeds the cache
    for (const DType dtype : {DType::kFloat, DType::kDouble, DType::kHalf, DType::kBFloat16}) {
      for (const snnfast::Reset reset : {snnfast::Reset::kSubtract, snnfast::Reset::kZero, snnfast::Reset::kNone}) {
        for (int options = 0; options < 16; ++options) {
          for (const auto& [N, T, chunked] : kShapes) {
            // Hundreds of threads that wait take a hundred times as long: one seed for each.
            if (chunked && seed != static_cast<unsigned>(options % 8)) continue;
            LifProblem problem{};
            problem.dtype = dtype;
            problem.reset = reset;
            problem.reset_delay = options & 1;
            problem.x_constant = options & 2;
            problem.spk_count = options & 4;
            problem.T = T;
            problem.N = N;
            snnfast::cuda::set_chunked_limits(chunked ? 0 : T + 1, N);
            for (const Keep keep : {Keep::kCheckpoints, Keep::kRounded, Keep::kBits}) {
              if (keep != Keep::kCheckpoints && !problem.reset_delay) continue;
              forward_and_backward(problem, options & 8, keep);
              ++cases;
            }
          }
        }
      }
    }
  }
  std::printf("driver: %d forward and backward passes\n", cases);
}
