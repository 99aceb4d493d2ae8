"""Random layers, inputs and states against snnTorch's own loop: forward to the bit, gradients to rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import snntorch
import torch
from helpers import FLOATS, HALVES, RESETS, SURROGATES, THOROUGH, assert_bits_equal, assert_close
from hypothesis import HealthCheck, given, settings
from snntorch import surrogate as theirs
from snntorch_checks import DECAYS, LEARNED, OTHER_DECAYS, STATES
from torch import Tensor, nn

import snnfast
import snnfast.snntorch
from snnfast import surrogate
from snnfast._neurons import LAYERS
from snnfast.surrogate import Surrogate


class _Bump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grads[0] * (0.7 * torch.exp(-z.square()))


def bump(z: Tensor) -> Tensor:
    """A surrogate that the kernels do not know."""
    return _Bump.apply(z)  # type: ignore[no-any-return,no-untyped-call]


# Their makers, and the parameters: snnTorch's closures where it works and stays finite, else ours for both layers.
CLOSURES: dict[str, Callable[[], Any]] = {
    "atan": lambda: theirs.atan(alpha=1.5),
    "fast_sigmoid": lambda: theirs.fast_sigmoid(slope=4.0),
    "straight_through_estimator": theirs.straight_through_estimator,
    "heaviside": theirs.heaviside,
    "triangular": lambda: theirs.triangular(threshold=0.5),
    "spike_rate_escape": lambda: theirs.spike_rate_escape(beta=1.3, slope=0.7),
    "SFS": lambda: theirs.SFS(slope=2.0, B=0.2),
    "custom_surrogate": lambda: theirs.custom_surrogate(lambda z, grad, spk: grad * (0.3 + 0.5 * spk)),
}


@dataclass(frozen=True)
class Layer:
    """One layer of both libraries, its input and its state."""

    neuron: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of a time step
    steps: int
    how: str  # "unroll", "unroll last", "constant" or "steps"
    spike_grad: str
    closure: bool  # snnTorch's object instead of ours
    reset: str
    delay: bool
    surrogate_disable: bool
    inhibition: bool
    learn: tuple[bool, bool, bool]  # in the order of LEARNED, which may be shorter
    init_hidden: bool
    output: bool
    state: str  # at the start: "none", "given", "only" (the first of them), "held" or "other shape"
    parameters: tuple[str, str, str]
    standalone: bool  # snnfast's layer instead of the subclass of snnTorch's
    seed: int

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def states(self) -> tuple[str, ...]:
        return STATES[self.neuron]

    @property
    def fed_back(self) -> bool:
        return self.states[0] == "spk"

    @property
    def shown(self) -> tuple[str, ...]:
        """The states that a call returns beside the spikes."""
        return self.states[self.fed_back :]


DIMENSIONS = st.integers(1, 5)
SHAPES = st.one_of(
    st.lists(DIMENSIONS, min_size=2, max_size=2),
    st.lists(DIMENSIONS, min_size=0, max_size=4),
    st.tuples(st.integers(0, 3), st.sampled_from((0, 1, 63, 64, 65, 130))),
).map(tuple)
# snnTorch's have no reset_delay, or one that raises an error.
NO_DELAY = ("Lapicque", "Alpha", "RSynaptic")
PARAMETERS = st.sampled_from(("float", "scalar", "one", "neuron", "channel", "element", "batch"))


@st.composite
def layers(draw: st.DrawFn, neuron: str) -> Layer:
    shape = draw(SHAPES)
    name = draw(st.sampled_from((*SURROGATES, "bump", "custom_surrogate")))
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.float64, *HALVES)))
    init_hidden = draw(st.booleans())
    # In half precision the layer rounds what it holds between calls; the unroll carries it in float32.
    how = draw(st.sampled_from(("unroll", "unroll last", "constant", *(("steps",) * 3 if dtype in FLOATS else ()))))
    inhibited = len(shape) == 2 and shape[1] > 0 and draw(st.integers(0, 4)) == 0
    given = ("none", "given", "only") if len(STATES[neuron]) > 1 else ("none", "given")
    # snnTorch's Lapicque takes a beta of one value, and no reset_delay.
    lapicque = neuron == "Lapicque"
    first = st.sampled_from(("scalar", "one")) if lapicque else PARAMETERS
    return Layer(
        neuron=neuron,
        dtype=dtype,
        shape=shape,
        steps=draw(st.integers(0, 6) | st.integers(15, 34)),
        how=how,
        spike_grad=name,
        # Those of snnTorch return float32 spikes, which changes the arithmetic of a float64 layer.
        closure=name in CLOSURES and dtype != torch.float64 and (draw(st.booleans()) or name == "custom_surrogate"),
        reset=draw(st.sampled_from(RESETS)),
        delay=neuron in NO_DELAY or draw(st.booleans()),
        surrogate_disable=draw(st.integers(0, 5)) == 0,
        inhibition=inhibited,
        learn=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        init_hidden=init_hidden,
        output=draw(st.booleans()),
        state=draw(st.sampled_from(("none", "held", "other shape") if init_hidden else given)),
        parameters=draw(st.tuples(first, PARAMETERS, PARAMETERS)),
        standalone=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def parameter(kind: str, shape: tuple[int, ...], low: float, high: float, case: Layer) -> float | Tensor:
    sizes = {
        "scalar": (),
        "one": (1,) if shape else (),
        "neuron": shape[-1:],
        "channel": (shape[1], *(1 for _ in shape[2:])) if len(shape) > 1 else shape,
        "element": shape,
        "batch": (*shape[:1], *(1 for _ in shape[1:])),
    }
    if kind == "float":
        # A number that float32 has, so that it is the same in the arithmetic of either dtype.
        return round(float(torch.rand(())) * (high - low) + low, 1) // 0.125 * 0.125
    return (torch.rand(sizes[kind], dtype=torch.float64) * (high - low) + low).to(case.acc)


def spike_grads(case: Layer) -> tuple[Any, Any]:
    """For our layer, for snnTorch's."""
    if case.spike_grad == "bump":
        return bump, bump
    if case.closure:
        made = CLOSURES[case.spike_grad]()
        return made, made
    if case.spike_grad == "custom_surrogate":
        made = surrogate.custom_surrogate(lambda z, grad, spk: grad * (0.3 + 0.5 * spk))
        return made, made
    return (SURROGATES[case.spike_grad],) * 2


RANGES = {"alpha": (-0.2, 1.2), "beta": (-0.2, 1.2), "threshold": (0.6, 1.1), "graded_spikes_factor": (0.5, 2.0)}
RANGES["V"] = (-0.6, 0.6)
OWN_RANGES = {"Lapicque": {"beta": (0.05, 1.2)}, "Alpha": {"alpha": (0.6, 1.1), "beta": (-0.1, 0.5)}}


def both(case: Layer) -> tuple[Any, Any]:
    learned = LEARNED[case.neuron]
    ranges = RANGES | OWN_RANGES.get(case.neuron, {})
    values = {
        name: parameter(kind, case.shape, *ranges[name], case)
        for name, kind in zip(learned, case.parameters, strict=False)
    }
    learn = {f"learn_{name}": learn for name, learn in zip(learned, case.learn, strict=False)}
    if case.neuron == "Alpha":
        del learn["learn_alpha"]  # raises an error in snnTorch
    if case.fed_back:
        learn["learn_recurrent"] = learn.pop("learn_V")
    flags = {
        **learn,
        "reset_mechanism": case.reset,
        **({} if case.neuron in ("Lapicque", "Alpha") else {"reset_delay": case.delay}),
        **({"all_to_all": False} if case.fed_back else {}),
        "surrogate_disable": case.surrogate_disable,
        "inhibition": case.inhibition,
        "init_hidden": case.init_hidden,
        "output": case.output,
    }
    layers = []
    for library, spike_grad in zip(
        (snnfast if case.standalone else snnfast.snntorch, snntorch), spike_grads(case), strict=True
    ):
        copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
        layer = getattr(library, case.neuron)(**copies, spike_grad=spike_grad, **flags)
        layers.append(layer.to(case.acc) if case.acc == torch.float64 else layer)
    if case.surrogate_disable and case.acc == torch.float64:
        # snnTorch's own bypass returns float32 whatever it is given.
        layers[1].spike_grad = surrogate.DISABLED
    return layers[0], layers[1]


def start(case: Layer, *layers: Any) -> list[Tensor | None]:
    """Bring the layers into the same state; returns the states to be passed."""
    states = [(torch.rand(case.shape, dtype=torch.float64) * 2.5 - 0.5).to(case.acc) for _ in case.states]
    for layer in layers:
        for name, state in zip(case.states, states, strict=True):
            if case.state == "held":
                setattr(layer, name, state.clone())
            elif case.state == "other shape":
                setattr(layer, name, torch.ones(*case.shape, 3, dtype=case.acc))
    passed = {"given": len(states), "only": 1}.get(case.state, 0)
    return [state if i < passed else None for i, state in enumerate(states)]


def step_by_step(
    layer: Any, steps: list[Tensor], states: list[Tensor | None], case: Layer
) -> tuple[list[Tensor], list[list[Tensor | None]]]:
    """Spikes, and states, of every step."""
    spks, record = [], []
    for x in steps:
        if case.init_hidden:
            result = layer(x)
            spk, *_ = result if case.output else (result,)
            states = [getattr(layer, name) for name in case.states]
        else:
            spk, *states = layer(x, *states)
            states = [spk, *states] if case.fed_back else states
        spks.append(spk)
        record.append(states)
    return spks, record


def stacked(tensors: list[Tensor], case: Layer) -> Tensor:
    return torch.stack(tensors) if tensors else torch.zeros((0, *case.shape), dtype=case.acc)


def gradients(layer: nn.Module, x: Tensor, results: list[Tensor], case: Layer) -> list[Tensor]:
    """Of a weighted sum of spikes and states; zeros where there is none."""
    generator = torch.Generator().manual_seed(case.seed)
    loss = torch.zeros((), dtype=torch.float64)
    for t in results:
        weights = torch.rand(t.shape, generator=generator, dtype=torch.float64) - 0.3
        loss = loss + (t.double().cpu() * weights.to(case.dtype).double()).sum()
    wanted = [x, *layer.parameters()]
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in wanted]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def records(spks: list[Tensor], record: list[list[Any]], case: Layer) -> list[Tensor]:
    """Of every step, or of the states the last one."""
    states = [[states[i] for states in record] for i in range(case.fed_back, len(case.states))]
    return [stacked(spks, case), *(stacked(s, case) for s in states)]


def check(case: Layer, device: torch.device | str = "cpu") -> None:
    torch.manual_seed(case.seed)
    ours, reference = both(case)
    ours = ours.to(device)
    constant = case.how == "constant"
    x = torch.rand(case.shape if constant else (case.steps, *case.shape), dtype=torch.float64) * 2 - 0.6
    x = x.to(case.dtype)
    states = start(case, ours, reference)
    if case.steps == 0 and case.state == "other shape":
        return  # with no step snnTorch keeps states of the wrong shape

    leaf = x.to(case.acc).requires_grad_()
    steps = [leaf] * case.steps if constant else list(leaf.unbind(0))
    spks, record = step_by_step(reference, steps, states, case)
    expected = records(spks, record, case)
    held = [getattr(reference, name) for name in case.states]
    last = record[-1] if record else held if case.state == "held" else states
    if case.how == "unroll last":
        expected[1:] = [torch.zeros(case.shape, dtype=case.acc) if s is None else s for s in last[case.fed_back :]]
    states_dtype = case.acc if case.how in ("steps", "unroll last") else case.dtype  # states, or a record
    expected = [expected[0].to(case.dtype), *(t.to(states_dtype) for t in expected[1:])]
    expected_grads = gradients(reference, leaf, expected, case)

    leaf = x.to(device, copy=True).requires_grad_()
    states = [s if s is None else s.to(device) for s in states]
    if case.how == "steps":
        found = records(*step_by_step(ours, list(leaf.unbind(0)), states, case), case)
    else:
        how = {"num_steps": case.steps if constant else None, "record_mem": case.how != "unroll last"}
        found = list(ours.unroll(leaf, *states, **how))
    for name, a, b in zip(("spk", *case.shown), found, expected, strict=True):
        assert_bits_equal(a, b, name)
    if case.init_hidden and case.steps > 0:
        for name, b in zip(case.states, last, strict=True):
            assert_bits_equal(getattr(ours, name), b, f"held {name}")
    grads = gradients(ours, leaf, found, case)
    relative = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[case.dtype]
    # What is summed up may cancel: an error is one of its terms, not of the sum.
    scale = max(1.0, expected_grads[0].abs().sum().item())
    if case.dtype == torch.float16 and scale > 1e4:
        return  # may overflow
    for name, a, b in zip(["current", *dict(ours.named_parameters())], grads, expected_grads, strict=True):
        assert_close(a.to(b.dtype), b, relative, name, scale=1.0 if name == "current" else scale)


EXAMPLES = 2500 if THOROUGH else 500  # of each of the first neurons
OPTIONS: dict[str, Any] = {
    "deadline": None, "derandomize": True, "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
}  # fmt: skip
QUIET = pytest.mark.filterwarnings("ignore:Inhibition is an unstable", "ignore:snnfast. a layer runs step by step")


@QUIET
@pytest.mark.parametrize("neuron", DECAYS)
@given(data=st.data())
@settings(max_examples=EXAMPLES, **OPTIONS)
def test_a_random_layer_has_the_numbers_of_snntorchs_loop(neuron: str, data: st.DataObject) -> None:
    check(data.draw(layers(neuron)))


@QUIET
@pytest.mark.parametrize("neuron", OTHER_DECAYS)
@given(data=st.data())
@settings(max_examples=200, **OPTIONS)
def test_a_random_layer_of_the_other_neurons_has_them(neuron: str, data: st.DataObject) -> None:
    check(data.draw(layers(neuron)))


@QUIET
@pytest.mark.parametrize("neuron", DECAYS)
@given(data=st.data())
@settings(max_examples=200 if THOROUGH else 100, **OPTIONS)
def test_a_random_layer_has_them_on_every_device(device: torch.device, neuron: str, data: st.DataObject) -> None:
    case = data.draw(layers(neuron))
    if not case.inhibition or case.delay:  # else step by step
        check(case, device)


def test_surrogates_of_both_libraries_are_drawn() -> None:
    assert set(CLOSURES) - {"custom_surrogate"} <= set(SURROGATES)
    assert all(isinstance(s, Surrogate) for s in SURROGATES.values())


def test_every_neuron_is_drawn() -> None:
    assert [layer.__name__ for layer in LAYERS] == list(STATES)
    assert [layer.neuron.states for layer in LAYERS] == list(STATES.values())
