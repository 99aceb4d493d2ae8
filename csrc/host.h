// The ops of a neuron, as templates: schemas, checks, outputs, and the hand-over to a backend. The same for every
// device.
//
// Messages for users come from snnfast/_arguments.py; the checks here keep a kernel from touching memory that is not
// its own, whatever tensors reach the op.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "backend.h"
#include "layout.h"
#include "problem.h"

namespace snnfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ---- dtypes

inline ScalarType acc_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, float64, float16 or bfloat16");
  }
}

inline Number number_type_of(const Tensor& t, const char* name) {
  return t.scalar_type() == ScalarType::Long ? Number::kLong : static_cast<Number>(dtype_of(t, name));
}

// A tensor of no dimensions on the CPU, as arithmetic in `acc` takes it.
inline double number_in(const Tensor& t, Number type, ScalarType acc) {
  const void* const data = t.const_data_ptr();
  switch (type) {
    case Number::kFloat: return *static_cast<const float*>(data);
    case Number::kHalf: return *static_cast<const torch::headeronly::Half*>(data);
    case Number::kBFloat16: return *static_cast<const torch::headeronly::BFloat16*>(data);
    case Number::kLong: {
      const int64_t value = *static_cast<const int64_t*>(data);  // rounded once, as torch does it
      return acc == ScalarType::Double ? static_cast<double>(value) : static_cast<float>(value);
    }
    case Number::kDouble: break;
  }
  return *static_cast<const double*>(data);
}

inline ScalarType saved_dtype(Saved saved, ScalarType acc) {
  const int64_t bytes = kSavedModes[static_cast<int>(saved)].bytes;
  return bytes == 0 ? acc : bytes == 1 ? ScalarType::Byte : ScalarType::BFloat16;
}

// ---- checked inputs and outputs of a call

constexpr int64_t kOne = -1;  // in place of a number of rows: a tensor [*] without that dimension

// Owns the copies whose pointers a problem holds.
template <typename Backend>
class Call {
 public:
  const ScalarType acc;
  std::vector<Tensor> outputs;

  Call(const Tensor& like, const Layout& layout, ScalarType dtype)
      : acc(acc_of(dtype)), layout_(layout), like_(like), device_(like.device()) {
    outputs.reserve(8);
  }

  // A tensor [rows, *] or, without rows, [*]. Of another dtype only if it is `cast`.
  const void* read(const Tensor& t, const char* name, ScalarType dtype, int64_t rows, bool cast = false) {
    const bool as_it_is = t.scalar_type() == dtype;
    STD_TORCH_CHECK(t.device() == device_, name, ": on another device than the other tensors");
    STD_TORCH_CHECK(as_it_is || cast, name, ": wrong dtype");
    STD_TORCH_CHECK(layout_.has_shape(t, rows != kOne, rows), name, ": wrong shape");
    if (as_it_is && layout_.fits(t, rows != kOne)) return t.const_data_ptr();  // the caller holds it
    return copy(t, shape_with(rows), strides_with(rows), dtype);
  }

  const void* read(const MaybeTensor& t, const char* name, ScalarType dtype, int64_t rows, bool cast = false) {
    return t.has_value() ? read(*t, name, dtype, rows, cast) : nullptr;
  }

  // A parameter varies along dimensions of a step that are adjacent in memory; it is broadcast along all others. One of
  // no dimensions is a number, whatever its dtype.
  Parameter parameter(const Tensor& t, const char* name) {
    Parameter p;
    p.type = number_type_of(t, name);
    if (t.dim() == 0 && t.is_cpu()) {  // read here: no copy to the device, no access from it
      p.value = number_in(t, p.type, acc);
      return p;
    }
    STD_TORCH_CHECK(t.device() == device_, name, ": on another device than the other tensors");
    if (t.dim() == 0) {
      p.data = t.const_data_ptr();
      return p;
    }
    STD_TORCH_CHECK(static_cast<size_t>(t.dim()) <= layout_.step.size(), name, ": more dimensions than a time step");
    p.type = acc == ScalarType::Double ? Number::kDouble : Number::kFloat;
    const auto sizes = t.sizes(), strides = t.strides();
    const size_t lead = layout_.step.size() - sizes.size();
    Shape own = layout_.step;
    for (size_t d = 0; d < lead; ++d) own[d] = 1;
    for (size_t d = 0; d < sizes.size(); ++d) {
      own[lead + d] = sizes[d];
      STD_TORCH_CHECK(sizes[d] == layout_.step[lead + d] || sizes[d] == 1, name, ": does not broadcast to a time step");
    }
    if (t.numel() == 0) return p;
    bool ended = false, adjacent = true, dense = t.scalar_type() == acc;
    for (size_t i = layout_.order.size(); i-- > 0;) {  // from the innermost dimension
      const size_t d = layout_.at(i);
      if (own[d] != 1) {
        adjacent &= !ended;
        dense &= strides[d - lead] == p.size;
        p.size *= own[d];
      } else if (layout_.step[d] != 1) {
        ended |= p.size != 1;
        if (p.size == 1) p.inner *= layout_.step[d];
      }
    }
    if (!adjacent) {
      p.inner = 1;
      p.size = layout_.N;
      p.data = copy(t, layout_.step, layout_.strides, acc);
    } else {
      p.data = dense ? t.const_data_ptr() : copy(t, own.from(lead), layout_.dense_strides(own).from(lead), acc);
    }
    return p;
  }

  // A new tensor [rows, *] or [*], which goes to `outputs`.
  void* make(ScalarType dtype, int64_t rows) {
    outputs.push_back(Backend::empty(like_, shape_with(rows), strides_with(rows), dtype));
    return outputs.back().mutable_data_ptr();
  }

  // Rows of a tensor with a value for every step.
  int64_t every_step() const { return layout_.has_time() ? layout_.T : kOne; }
  // And if there is but one for all of them.
  int64_t every_step_unless(bool one) const { return one ? kOne : every_step(); }

 private:
  Shape shape_with(int64_t rows) const { return rows == kOne ? layout_.step : layout_.step.with(rows); }
  Shape strides_with(int64_t rows) const {
    return rows == kOne ? layout_.strides : layout_.strides.with(layout_.N > 0 ? layout_.N : 1);
  }

  const void* copy(const Tensor& t, const Shape& shape, const Shape& strides, ScalarType dtype) {
    copies_.push_back(empty_strided(like_, shape, strides, dtype));
    torch::stable::copy_(copies_.back(), t);
    return copies_.back().const_data_ptr();
  }

  const Layout& layout_;
  const Tensor& like_;
  const torch::stable::Device device_;
  std::vector<Tensor> copies_;
};

// ---- the arguments of the ops

// Of a boxed kernel, in the order of its schema.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}

  template <typename T>
  T take() {
    return torch::stable::detail::to<T>(*next_++);
  }

 private:
  StableIValue* next_;
};

// "Tensor? mem, " for each of the names.
template <size_t Size>
std::string declare(const char* type, const char* before, const char* const (&names)[Size], const char* after) {
  std::string text;
  for (const char* name : names) text += std::string(type) + " " + before + name + after + ", ";
  return text;
}

// What both ops of a neuron are given, at the end of the tensors and the beginning of the options.
template <typename Neuron>
struct Common {
  std::array<MaybeTensor, Neuron::kStates> initial;
  std::array<MaybeTensor, Neuron::kParameters> parameters;
  int64_t steps, options;

  static std::string schema() {
    return declare("Tensor?", "", Neuron::kStateNames, "") + declare("Tensor", "", Neuron::kParameterNames, "") +
           "SymInt steps, int options";
  }

  explicit Common(Arguments& arguments) {
    for (MaybeTensor& t : initial) t = arguments.take<MaybeTensor>();
    for (MaybeTensor& t : parameters) t = arguments.take<Tensor>();
    steps = arguments.take<int64_t>();
    options = arguments.take<int64_t>();
    STD_TORCH_CHECK(option::kTime.of(options) <= static_cast<int64_t>(Time::kStep), "options: unknown time");
    STD_TORCH_CHECK(option::kReset.of(options) <= static_cast<int64_t>(Reset::kNone), "options: unknown reset");
    STD_TORCH_CHECK(option::kSaved.of(options) < static_cast<int64_t>(std::size(kSavedModes)),
                    "options: unknown saved mode");
    STD_TORCH_CHECK(!tells_membrane(saved()) || (reset_delay() && Neuron::kRecordTells),
                    "saved: only with a delayed reset does the membrane of a step tell its reset");
    STD_TORCH_CHECK(!tells_membrane(saved()) || time() != Time::kStep, "saved: of one step there are no rows");
    STD_TORCH_CHECK(steps >= 0 && (time() != Time::kStep || steps == 1), "steps: expected 0 or more");
  }

  Time time() const { return static_cast<Time>(option::kTime.of(options)); }
  Saved saved() const { return static_cast<Saved>(option::kSaved.of(options)); }
  bool reset_delay() const { return option::kResetDelay.of(options) != 0; }

  template <typename Backend>
  void describe(Problem<Neuron>& p, Call<Backend>& call, const Layout& layout) const {
    p.rules = {static_cast<Reset>(option::kReset.of(options)), reset_delay()};
    p.T = layout.T;
    p.N = layout.N;
    p.constant = layout.constant();
    p.reduce = option::kReduce.of(options) != 0;
    for (int s = 0; s < Neuron::kStates; ++s) {
      p.initial[s] = call.read(initial[s], Neuron::kStateNames[s], call.acc, kOne, /*cast=*/true);
    }
    for (int j = 0; j < Neuron::kParameters; ++j) {
      p.parameters[j] = call.parameter(*parameters[j], Neuron::kParameterNames[j]);
    }
  }
};

// ---- forward

// Returns the spikes; the states of every step that `record` asks for, by bits, and behind them, if its highest bit is
// set, the membrane that decided each spike; if `last`, all states after the last step; what is saved, if anything.
template <typename Neuron>
std::string forward_schema() {
  return std::string(Neuron::kName) + "_forward(Tensor x, " + Common<Neuron>::schema() + ") -> Tensor[]";
}

template <typename Neuron, typename Backend>
void forward_op(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int kStates = Neuron::kStates;
  Arguments arguments(stack);
  const Tensor x = arguments.take<Tensor>();  // [T, *], or [*] of a constant current or of one step
  const Common<Neuron> common(arguments);
  const int64_t record = option::kRecord.of(common.options);
  const bool last = option::kLast.of(common.options) != 0;

  Backend::check_device(x);
  const Time time = common.time();
  STD_TORCH_CHECK(record < 2 << kStates, "options: unknown states to record");
  const Layout layout(x, time == Time::kSequence, common.steps, time);
  STD_TORCH_CHECK(time != Time::kSequence || x.size(0) == common.steps, "steps: not the number of steps of x");
  Call<Backend> call(x, layout, x.scalar_type());
  Forward<Neuron> p{};
  p.dtype = dtype_of(x, "x");
  common.describe(p, call, layout);
  p.saved = common.saved();
  p.x = call.read(x, "x", x.scalar_type(), call.every_step_unless(p.constant));
  p.spk = call.make(x.scalar_type(), call.every_step_unless(p.reduce));
  for (int s = 0; s < kStates; ++s) {
    if ((record >> s & 1) != 0) p.record[s] = call.make(x.scalar_type(), call.every_step());
  }
  if ((record >> kStates & 1) != 0) p.deciding = call.make(call.acc, call.every_step());
  for (int s = 0; last && s < kStates; ++s) p.last[s] = call.make(call.acc, kOne);
  if (p.saved != Saved::kNothing && time != Time::kStep) {  // of one step there are no rows
    const int64_t rows = saved_rows(p.saved, p.T) * (p.saved == Saved::kCheckpoints ? kStates : 1);
    void* const data = call.make(saved_dtype(p.saved, call.acc), rows);
    if (rows > 0) p.rows = data;
  }
  if (p.N > 0) Backend::run(p, x);
  stack[0] = torch::stable::detail::from(call.outputs);
}

// ---- backward

// Returns the gradients that `needs` asks for, by bits: with respect to x, the states before the first step, the
// parameters; the last ones for each neuron, not yet summed to the shape of the parameter.
template <typename Neuron>
std::string backward_schema() {
  return std::string(Neuron::kName) + "_backward(Tensor? grad_spk, " +
         declare("Tensor?", "grad_", Neuron::kStateNames, "_rec") +
         declare("Tensor?", "grad_", Neuron::kStateNames, "") +
         "Tensor? x, Tensor? mem_rec, Tensor? rows, Tensor? derivative, " + Common<Neuron>::schema() +
         ", float p0, float p1) -> Tensor[]";
}

template <typename Neuron, typename Backend>
void backward_op(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters, kInputs = 1 + kStates + kParameters;
  Arguments arguments(stack);
  const MaybeTensor grad_spk = arguments.take<MaybeTensor>();  // [T, *], or [*] with reduce
  std::array<MaybeTensor, kStates> grad_record, grad_last;     // [T, *]; [*] acc
  for (MaybeTensor& t : grad_record) t = arguments.take<MaybeTensor>();
  for (MaybeTensor& t : grad_last) t = arguments.take<MaybeTensor>();
  const MaybeTensor x = arguments.take<MaybeTensor>();           // as in forward, with checkpoints; or
  const MaybeTensor mem_rec = arguments.take<MaybeTensor>();     // [T, *], where the record tells all; or
  const MaybeTensor rows = arguments.take<MaybeTensor>();        // what forward saved
  const MaybeTensor derivative = arguments.take<MaybeTensor>();  // [T, *] acc, in place of a surrogate's
  const Common<Neuron> common(arguments);
  const double p0 = arguments.take<double>(), p1 = arguments.take<double>();  // of the surrogate
  const int64_t surrogate = option::kSurrogate.of(common.options), needs = option::kNeeds.of(common.options);

  const Time time = common.time();
  STD_TORCH_CHECK(surrogate < kSurrogateKinds, "options: unknown surrogate");
  STD_TORCH_CHECK(needs < 1 << kInputs, "options: gradients of more than the inputs are needed");
  STD_TORCH_CHECK(x.has_value() ? !mem_rec.has_value() : mem_rec.has_value() || rows.has_value(),
                  "exactly one of x, mem_rec and, alone, rows must be given");
  // The dtype of all that has a value for every step. Where only gradients of last states are given, and nothing else
  // tells it, it is theirs, that of the arithmetic.
  const MaybeTensor* like = &grad_spk;
  for (const MaybeTensor* t : {&x, &mem_rec}) like = like->has_value() ? like : t;
  for (const MaybeTensor& t : grad_record) like = like->has_value() ? like : &t;
  for (const MaybeTensor& t : grad_last) like = like->has_value() ? like : &t;
  STD_TORCH_CHECK(like->has_value(), "a gradient must be given");
  const ScalarType dtype = (*like)->scalar_type();
  Backend::check_device(**like);
  const Layout layout(x.has_value()         ? *x
                      : mem_rec.has_value() ? *mem_rec
                                            : *rows,
                      x.has_value() ? time == Time::kSequence : time != Time::kStep || !mem_rec.has_value(),
                      common.steps, time);
  Call<Backend> call(**like, layout, dtype);
  Backward<Neuron> p{};
  p.dtype = dtype_of(**like, "x");
  p.clamp_closed = option::kClampClosed.of(common.options) != 0;
  common.describe(p, call, layout);
  p.saved = common.saved();
  if (mem_rec.has_value()) {
    STD_TORCH_CHECK(p.saved == Saved::kNothing, "mem_rec: nothing else is saved beside it");
    STD_TORCH_CHECK(Neuron::kRecordTells && p.rules.delay && dtype == call.acc,
                    "mem_rec: only a delayed reset in float32 or float64 can use it");
    p.mem_rec = call.read(mem_rec, "mem_rec", dtype, call.every_step());
  } else {
    const int64_t each = p.saved == Saved::kCheckpoints ? kStates : 1;
    if (tells_membrane(p.saved)) {
      STD_TORCH_CHECK(!x.has_value() && rows.has_value(), "rows: given alone, they must be there");
    } else {
      STD_TORCH_CHECK(x.has_value(), "exactly one of x and mem_rec must be given");
      STD_TORCH_CHECK((rows.has_value() && p.saved == Saved::kCheckpoints) || saved_rows(Saved::kCheckpoints, p.T) == 0,
                      "rows: checkpoints must be given with x");
      p.x = call.read(x, "x", dtype, call.every_step_unless(p.constant));
    }
    p.rows = call.read(rows, "rows", saved_dtype(p.saved, call.acc), saved_rows(p.saved, p.T) * each);
  }
  p.derivative = call.read(derivative, "derivative", call.acc, call.every_step());
  p.grad_spk = call.read(grad_spk, "grad_spk", dtype, call.every_step_unless(p.reduce));
  for (int s = 0; s < kStates; ++s) {
    p.grad_record[s] = call.read(grad_record[s], "gradient of a record", dtype, call.every_step());
    p.grad_last[s] = call.read(grad_last[s], "gradient of a state", call.acc, kOne);
  }

  p.surrogate = p.derivative != nullptr ? SurrogateKind::kStraightThrough : static_cast<SurrogateKind>(surrogate);
  if (p.grad_spk == nullptr && (p.rules.delay || p.rules.reset == Reset::kNone)) {
    // No gradient passes through a spike, so its derivative must not matter, not even where it is NaN.
    p.surrogate = SurrogateKind::kNone;
    p.derivative = nullptr;
  }
  p.coefficients = visit_surrogate(p.surrogate, [&](auto kind) { return decltype(kind)::coefficients(p0, p1); });
  if (tells_membrane(p.saved)) {
    // What is saved tells neither the membrane itself nor, of the spikes, how far from the threshold it was.
    const bool spikes = p.saved == Saved::kSpikes;
    for (int j = 0; j < kParameters; ++j) {
      const bool takes_membrane = j < p.kThreshold, takes_height = j == p.kGraded;
      STD_TORCH_CHECK((needs >> (1 + kStates + j) & 1) == 0 || !(takes_membrane || (spikes && takes_height)),
                      "saved: it does not tell the gradient of ", Neuron::kParameterNames[j]);
    }
    STD_TORCH_CHECK(!spikes || p.surrogate == SurrogateKind::kNone ||
                        (p.surrogate == SurrogateKind::kStraightThrough && p.derivative == nullptr),
                    "saved: spikes alone do not tell this derivative");
  }
  for (int i = 0; i < kInputs; ++i) {
    if ((needs >> i & 1) == 0) continue;
    void** const to = i == 0 ? &p.grad_x : i <= kStates ? &p.grad_initial[i - 1] : &p.grad_parameters[i - 1 - kStates];
    *to = i == 0 ? call.make(dtype, call.every_step_unless(p.constant)) : call.make(call.acc, kOne);
  }
  if (p.N > 0) Backend::run(p, **like);
  stack[0] = torch::stable::detail::from(call.outputs);
}

// ---- registration

// For each neuron once, at the end of its file in neurons/.
#define SNN_REGISTER(Neuron)                        \
  STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) { \
    m.def(forward_schema<Neuron>().c_str());        \
    m.def(backward_schema<Neuron>().c_str());       \
  }                                                 \
  SNN_REGISTER_CPU(Neuron)                          \
  SNN_REGISTER_CUDA(Neuron)

#define SNN_IMPLEMENT(Neuron, Key, Backend)                                                    \
  STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, Key, m) {                                           \
    m.impl((std::string(Neuron::kName) + "_forward").c_str(), &forward_op<Neuron, Backend>);   \
    m.impl((std::string(Neuron::kName) + "_backward").c_str(), &backward_op<Neuron, Backend>); \
  }

#if defined(SNN_EMULATED)
#define SNN_REGISTER_CPU(Neuron)
#else
#define SNN_REGISTER_CPU(Neuron) SNN_IMPLEMENT(Neuron, CPU, CpuBackend)
#endif
#if defined(SNN_CUDA)
#define SNN_REGISTER_CUDA(Neuron) SNN_IMPLEMENT(Neuron, SNN_CUDA_KEY, CudaBackend)
#else
#define SNN_REGISTER_CUDA(Neuron)
#endif

}  // namespace snnfast
