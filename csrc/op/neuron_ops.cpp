// The ops of a neuron: their schemas, checks and outputs, and the call of a backend. Compiled once for each header in
// csrc/neurons, which the build includes before this file and whose struct it names by SNN_NEURON.
//
// Messages for users come from snnfast/_unroll/checks.py. The checks here keep a kernel inside the memory of its
// tensors, whatever tensors reach the op.
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include <torch/csrc/stable/library.h>

#include "tensors.h"

namespace snnfast {

// ---- the arguments of the ops

// The arguments of a boxed kernel, in the order of its schema.
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

// Returns "Tensor? mem, " for each of the names.
template <size_t Size>
std::string declare(const char* type, const char* before, const char* const (&names)[Size], const char* after) {
  std::string text;
  for (const char* name : names) text += std::string(type) + " " + before + name + after + ", ";
  return text;
}

// Whether the first state is the last spike, which comes back to the neuron: one step then returns it but once.
template <typename Neuron>
inline constexpr bool kHasSpikeFeedback = std::string_view(Neuron::kStateNames[0]) == "spk";

// Whether the membrane after a step depends on the spike of that very step.
template <typename Neuron>
bool resets_at_once(ResetRule rule) {
  return rule.reset != Reset::kNone && (ResetsAtOnce<Neuron> || !rule.delay);
}

// The arguments that both ops of a neuron have: their last tensors and their first options.
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
  }

  void check() const {
    STD_TORCH_CHECK(option::kTime.of(options) <= static_cast<int64_t>(Time::kStep), "options: unknown time");
    STD_TORCH_CHECK(option::kReset.of(options) <= static_cast<int64_t>(Reset::kNone), "options: unknown reset");
    STD_TORCH_CHECK(option::kSaved.of(options) < static_cast<int64_t>(std::size(kSavedModes)),
                    "options: unknown saved mode");
    STD_TORCH_CHECK(saved() != Saved::kSpikes || (reset_delay() && Neuron::kRecordedMembraneSuffices),
                    "saved: only with a delayed reset does the membrane of a step tell its reset");
    STD_TORCH_CHECK(saved() != Saved::kSpikes || time() != Time::kStep, "saved: of one step there are no rows");
    STD_TORCH_CHECK(steps >= 0 && (time() != Time::kStep || steps == 1), "steps: expected 0 or more");
  }

  Time time() const { return static_cast<Time>(option::kTime.of(options)); }
  Saved saved() const { return static_cast<Saved>(option::kSaved.of(options)); }
  bool reset_delay() const { return option::kResetDelay.of(options) != 0; }

  template <typename Backend>
  void describe(Problem<Neuron>& p, OpTensors<Backend>& tensors, const Layout& layout) const {
    p.rule = {static_cast<Reset>(option::kReset.of(options)), reset_delay()};
    p.T = layout.T;
    p.N = layout.N;
    p.reduce = option::kReduce.of(options) != 0;
    for (int s = 0; s < Neuron::kStates; ++s) {
      p.initial[s] = tensors.read_state(initial[s], Neuron::kStateNames[s], s, p.initial_repeats);
    }
    for (int j = 0; j < Neuron::kParameters; ++j) {
      p.parameters[j] = tensors.parameter(*parameters[j], Neuron::kParameterNames[j]);
    }
  }
};

// ---- forward

// The op returns the spikes, or their bits if `bits` is set; the states of every step that the bits of `record` ask
// for, and, if its highest bit is set, the membrane that decided each spike; if `last` is set, the states after the
// last step, where one step does not return its spike a second time; and what is saved, if anything.
template <typename Neuron>
std::string forward_schema() {
  return std::string(Neuron::kName) + "_forward(Tensor x, " + Common<Neuron>::schema();
}

// The last argument of an op is the number of steps of each sample, int64 [B], where samples differ in it. An op whose
// neuron's spikes come back to it has another one beside it, `_into`, which is given tensors to write its results to
// instead, and returns none: steps of a loop then write rows of what the loop returns.
template <bool kInto>
std::string complete(const std::string& schema) {
  if (!kInto) return schema + ", Tensor? lengths=None) -> Tensor[]";
  const size_t at = schema.find('(');
  return schema.substr(0, at) + "_into" + schema.substr(at) + ", Tensor(a!)[] out) -> ()";
}

// The last argument. An op takes all arguments before it checks any: one that is not taken is never freed.
template <bool kInto>
struct LastArgument {
  std::vector<Tensor> into;
  MaybeTensor lengths;

  explicit LastArgument(Arguments& arguments) {
    if constexpr (kInto) {
      into = arguments.take<std::vector<Tensor>>();
    } else {
      lengths = arguments.take<MaybeTensor>();
    }
  }
};

// The caller holds `lengths`.
template <typename Neuron>
void describe_lengths(Problem<Neuron>& p, const Layout& layout, const Tensor& lengths, const Tensor& like) {
  STD_TORCH_CHECK(layout.has_time() && layout.by_sample(), "lengths: need samples one after the other in memory");
  STD_TORCH_CHECK(lengths.device() == like.device() && lengths.scalar_type() == ScalarType::Long &&
                      lengths.dim() == 1 && lengths.size(0) == layout.step[0] && lengths.is_contiguous(),
                  "lengths: expected contiguous int64 [B] on the device of the other tensors");
  p.lengths = static_cast<const int64_t*>(lengths.const_data_ptr());
  p.sample = layout.N > 0 ? layout.N / layout.step[0] : 1;
}

template <typename Neuron, typename Backend, bool kInto>
void forward_op(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int kStates = Neuron::kStates;
  Arguments arguments(stack);
  const Tensor x = arguments.take<Tensor>();  // [T, *], or [*] of a constant current or of one step
  const Common<Neuron> common(arguments);
  LastArgument<kInto> extra(arguments);
  common.check();
  const int64_t record = option::kRecord.of(common.options);
  const bool last = option::kLast.of(common.options) != 0;

  Backend::check_device(x);
  const Time time = common.time();
  STD_TORCH_CHECK(record < 2 << kStates, "options: unknown states to record");
  const Layout layout(x, time == Time::kSequence, common.steps, time);
  STD_TORCH_CHECK(time != Time::kSequence || x.size(0) == common.steps, "steps: not the number of steps of x");
  OpTensors<Backend> tensors(x, layout, x.scalar_type(), std::move(extra.into));
  Forward<Neuron> p{};
  p.dtype = dtype_of(x, "x");
  common.describe(p, tensors, layout);
  if (extra.lengths.has_value()) describe_lengths(p, layout, *extra.lengths, x);
  p.saved = common.saved();
  p.x = tensors.read_current(x, x.scalar_type(), p);
  if (option::kBits.of(common.options) != 0) {
    STD_TORCH_CHECK(time != Time::kStep && !p.reduce && layout.in_order(), "bits: needs time steps in their order");
    p.bits = tensors.make(ScalarType::Byte, saved_rows(Saved::kSpikes, p.T));
  } else {
    p.spk = tensors.make(x.scalar_type(), tensors.every_step_unless(p.reduce));
    p.spk_stride = p.N;
  }
  for (int s = 0; s < kStates; ++s) {
    if ((record >> s & 1) != 0) p.record[s] = tensors.make(x.scalar_type(), tensors.every_step());
  }
  if ((record >> kStates & 1) != 0) p.deciding = tensors.make(tensors.opmath, tensors.every_step());
  const int first_last = kHasSpikeFeedback<Neuron> && time == Time::kStep ? 1 : 0;
  for (int s = first_last; last && s < kStates; ++s) p.last[s] = tensors.make(tensors.opmath, kNoRows);
  if (p.saved != Saved::kNothing && time != Time::kStep) {  // of one step there are no rows
    const int64_t rows = saved_rows(p.saved, p.T) * (p.saved == Saved::kCheckpoints ? kStates : 1);
    void* const data = tensors.make(saved_dtype(p.saved, tensors.opmath), rows);
    if (rows > 0) p.rows = data;
  }
  if (p.N > 0) Backend::run(p, x);
  if constexpr (!kInto) stack[0] = torch::stable::detail::from(tensors.outputs);
}

// ---- backward

// The op returns the gradients that the bits of `needs` ask for: of x, of the states before the first step, and of the
// parameters. The gradient of a parameter has a value for each neuron, and Python sums it to the shape of the
// parameter. If the parameter is one number and the device sums it, the gradient is like the parameter, on the device
// of the kernel. With a `weight`, `grad_spk` is the gradient of the outputs of a Linear behind the spikes.
template <typename Neuron>
std::string backward_schema() {
  return std::string(Neuron::kName) + "_backward(Tensor? grad_spk, Tensor? weight, " +
         declare("Tensor?", "grad_", Neuron::kStateNames, "_rec") +
         declare("Tensor?", "grad_", Neuron::kStateNames, "_last") +
         "Tensor? x, Tensor? mem_rec, Tensor? rows, Tensor? derivative, " + Common<Neuron>::schema() +
         ", float p0, float p1";
}

template <typename Neuron, typename Backend, bool kInto>
void backward_op(StableIValue* stack, uint64_t, uint64_t) {
  constexpr int kStates = Neuron::kStates, kParameters = Neuron::kParameters, kInputs = 1 + kStates + kParameters;
  Arguments arguments(stack);
  const MaybeTensor grad_spk = arguments.take<MaybeTensor>();  // [T, *], or [*] with reduce; [T, R, O] with
  const MaybeTensor weight = arguments.take<MaybeTensor>();    // [O, N], the neurons of a step being R * N
  std::array<MaybeTensor, kStates> grad_record, grad_last;     // [T, *]; [*] opmath
  for (MaybeTensor& t : grad_record) t = arguments.take<MaybeTensor>();
  for (MaybeTensor& t : grad_last) t = arguments.take<MaybeTensor>();
  const MaybeTensor x = arguments.take<MaybeTensor>();           // as in forward, with checkpoints; or
  const MaybeTensor mem_rec = arguments.take<MaybeTensor>();     // [T, *], where the record tells all; or
  const MaybeTensor rows = arguments.take<MaybeTensor>();        // what forward saved
  const MaybeTensor derivative = arguments.take<MaybeTensor>();  // [T, *] opmath, in place of a surrogate's
  const Common<Neuron> common(arguments);
  const double p0 = arguments.take<double>(), p1 = arguments.take<double>();  // of the surrogate
  LastArgument<kInto> extra(arguments);
  common.check();
  const int64_t surrogate = option::kSurrogate.of(common.options), needs = option::kNeeds.of(common.options);

  const Time time = common.time();
  STD_TORCH_CHECK(surrogate < kSurrogateKinds, "options: unknown surrogate");
  STD_TORCH_CHECK(needs < 1 << kInputs, "options: gradients of more than the inputs are needed");
  STD_TORCH_CHECK(x.has_value() ? !mem_rec.has_value() : mem_rec.has_value() || rows.has_value(),
                  "exactly one of x, mem_rec and, alone, rows must be given");
  // Finds the dtype of the tensors with a value for every step. If only gradients of last states are given, it is
  // theirs, the opmath dtype.
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
  OpTensors<Backend> tensors(**like, layout, dtype, std::move(extra.into));
  Backward<Neuron> p{};
  p.dtype = dtype_of(**like, "x");
  p.clamp_closed = option::kClampClosed.of(common.options) != 0;
  common.describe(p, tensors, layout);
  if (extra.lengths.has_value()) describe_lengths(p, layout, *extra.lengths, **like);
  p.saved = common.saved();
  if (mem_rec.has_value()) {
    STD_TORCH_CHECK(p.saved == Saved::kNothing, "mem_rec: nothing else is saved beside it");
    STD_TORCH_CHECK(Neuron::kRecordedMembraneSuffices && p.rule.delay && dtype == tensors.opmath,
                    "mem_rec: only a delayed reset in float32 or float64 can use it");
    p.mem_rec = tensors.read(mem_rec, "mem_rec", dtype, tensors.every_step());
  } else {
    const int64_t each = p.saved == Saved::kCheckpoints ? kStates : 1;
    if (p.saved == Saved::kSpikes) {
      STD_TORCH_CHECK(!x.has_value() && rows.has_value(), "rows: given alone, they must be there");
    } else {
      STD_TORCH_CHECK(x.has_value(), "exactly one of x and mem_rec must be given");
      STD_TORCH_CHECK((rows.has_value() && p.saved == Saved::kCheckpoints) || saved_rows(Saved::kCheckpoints, p.T) == 0,
                      "rows: checkpoints must be given with x");
      p.x = tensors.read_current(*x, dtype, p);
    }
    p.rows = tensors.read(rows, "rows", saved_dtype(p.saved, tensors.opmath), saved_rows(p.saved, p.T) * each);
  }
  p.derivative = tensors.read(derivative, "derivative", tensors.opmath, tensors.every_step());
  std::array<Tensor, 2> outputs;
  if (weight.has_value()) {
    STD_TORCH_CHECK(grad_spk.has_value() && weight->dim() == 2, "weight: expected [O, N] and a gradient");
    STD_TORCH_CHECK(!p.reduce && layout.in_order() && time != Time::kStep, "weight: needs time steps in their order");
    const ScalarType of_products = weight->size(0) <= kFewOutputs ? tensors.opmath : dtype;
    outputs = {in_order(*grad_spk, of_products), in_order(*weight, of_products)};
    p.outputs = {outputs[0].const_data_ptr(), outputs[1].const_data_ptr(), 0, 0};
    const auto grad = grad_spk->sizes(), of = weight->sizes();
    STD_TORCH_CHECK(grad.size() == 3 && grad[0] == p.T && grad[2] == of[0] && of[1] > 0 && p.N % of[1] == 0 &&
                        grad[1] == p.N / of[1],
                    "weight: expected [O, N] and the gradient of [T, R, O]");
    p.outputs.size = of[0];
    p.outputs.columns = of[1];
  } else {
    p.grad_spk = tensors.read_steps(grad_spk, "grad_spk", dtype, p.reduce, p.grad_spk_stride);
  }
  for (int s = 0; s < kStates; ++s) {
    p.grad_record[s] =
        tensors.read_steps(grad_record[s], "gradient of a record", dtype, /*one=*/false, p.grad_record_stride[s]);
    p.grad_last[s] = tensors.read(grad_last[s], "gradient of a state", tensors.opmath, kNoRows);
  }

  p.surrogate = p.derivative != nullptr ? SurrogateKind::kStraightThrough : static_cast<SurrogateKind>(surrogate);
  if (!kHasSpikeFeedback<Neuron> && p.grad_spk == nullptr && p.outputs.grad == nullptr &&
      !resets_at_once<Neuron>(p.rule)) {
    // No gradient passes through a spike, so its derivative must not matter, not even where it is NaN.
    p.surrogate = SurrogateKind::kNone;
    p.derivative = nullptr;
  }
  p.coefficients = visit_surrogate(p.surrogate, [&](auto kind) { return decltype(kind)::coefficients(p0, p1); });
  if (p.saved == Saved::kSpikes) {
    // Spikes tell neither the membrane nor how far from the threshold it was.
    for (int j = 0; j < kParameters; ++j) {
      STD_TORCH_CHECK((needs >> (1 + kStates + j) & 1) == 0 || j == p.kThreshold,
                      "saved: it does not tell the gradient of ", Neuron::kParameterNames[j]);
    }
    STD_TORCH_CHECK(p.surrogate == SurrogateKind::kNone ||
                        (p.surrogate == SurrogateKind::kStraightThrough && p.derivative == nullptr),
                    "saved: spikes alone do not tell this derivative");
  }
  for (int i = 0; i < kInputs; ++i) {
    if ((needs >> i & 1) == 0) continue;
    void** const of_x = layout.constant() ? &p.grad_x_sum : &p.grad_x;
    void** const to = i == 0 ? of_x : i <= kStates ? &p.grad_initial[i - 1] : &p.grad_parameters[i - 1 - kStates];
    const int j = i - 1 - kStates;
    if (!kInto && j >= 0 && tensors.sums(*common.parameters[j])) {
      p.summed |= 1u << j;
      p.sum_types[j] = number_type_of(*common.parameters[j], Neuron::kParameterNames[j]);
      *to = tensors.make_like(*common.parameters[j]);
    } else {
      *to = i == 0 ? tensors.make(dtype, tensors.every_step_unless(layout.constant()))
                   : tensors.make(tensors.opmath, kNoRows);
    }
  }
  if (p.summed != 0) {
    p.partial_sums = tensors.scratch(ScalarType::Double, sums_workspace<Neuron>(p.N));
  }
  if (p.N > 0) {
    Backend::run(p, **like);
  } else {
    for (Tensor& t : tensors.outputs) torch::stable::zero_(t);  // sums of nothing
  }
  if constexpr (!kInto) stack[0] = torch::stable::detail::from(tensors.outputs);
}

// ---- registration

template <typename Neuron, typename Library>
void define(Library& m) {
  for (const std::string& schema : {forward_schema<Neuron>(), backward_schema<Neuron>()}) {
    m.def(complete<false>(schema).c_str());
    if (kHasSpikeFeedback<Neuron>) m.def(complete<true>(schema).c_str());
  }
}

template <typename Neuron, typename Backend, typename Library>
void implement(Library& m) {
  const std::string name = Neuron::kName;
  m.impl((name + "_forward").c_str(), &guarded<forward_op<Neuron, Backend, false>>);
  m.impl((name + "_backward").c_str(), &guarded<backward_op<Neuron, Backend, false>>);
  if constexpr (kHasSpikeFeedback<Neuron>) {
    m.impl((name + "_forward_into").c_str(), &guarded<forward_op<Neuron, Backend, true>>);
    m.impl((name + "_backward_into").c_str(), &guarded<backward_op<Neuron, Backend, true>>);
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(SNN_NAMESPACE, m) { define<SNN_NEURON>(m); }

#if !defined(SNN_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, CPU, m) { implement<SNN_NEURON, CpuBackend>(m); }
#endif
#if defined(SNN_CUDA)
STABLE_TORCH_LIBRARY_IMPL(SNN_NAMESPACE, SNN_CUDA_KEY, m) { implement<SNN_NEURON, CudaBackend>(m); }
#endif

}  // namespace snnfast
