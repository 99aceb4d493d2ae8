"""Random layers, inputs and states against snnTorch's own loop: forward to the bit, gradients to rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import snntorch
import torch
from helpers import FLOATS, HALVES, RESETS, SURROGATES, assert_bits_equal, assert_close
from hypothesis import HealthCheck, given, settings
from snntorch import surrogate as theirs
from torch import Tensor, nn

import snnfast
import snnfast.snntorch
from snnfast import surrogate
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
    learn: tuple[bool, bool, bool]
    init_hidden: bool
    output: bool
    state: str  # the membrane at the start: "none", "given", "held" or "other shape"
    parameters: tuple[str, str, str]
    standalone: bool  # snnfast.Leaky instead of the subclass of snntorch.Leaky
    seed: int

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


DIMENSIONS = st.integers(1, 5)
SHAPES = st.one_of(
    st.lists(DIMENSIONS, min_size=2, max_size=2),
    st.lists(DIMENSIONS, min_size=0, max_size=4),
    st.tuples(st.integers(0, 3), st.sampled_from((0, 1, 63, 64, 65, 130))),
).map(tuple)
PARAMETERS = st.sampled_from(("float", "scalar", "one", "neuron", "channel", "element", "batch"))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    shape = draw(SHAPES)
    name = draw(st.sampled_from((*SURROGATES, "bump", "custom_surrogate")))
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.float64, *HALVES)))
    init_hidden = draw(st.booleans())
    # In half precision the layer rounds what it holds between calls; the unroll carries it in float32.
    how = draw(st.sampled_from(("unroll", "unroll last", "constant", *(("steps",) * 3 if dtype in FLOATS else ()))))
    inhibited = len(shape) == 2 and shape[1] > 0 and draw(st.integers(0, 4)) == 0
    return Layer(
        dtype=dtype,
        shape=shape,
        steps=draw(st.integers(0, 6) | st.integers(15, 34)),
        how=how,
        spike_grad=name,
        # Those of snnTorch return float32 spikes, which changes the arithmetic of a float64 layer.
        closure=name in CLOSURES and dtype != torch.float64 and (draw(st.booleans()) or name == "custom_surrogate"),
        reset=draw(st.sampled_from(RESETS)),
        delay=draw(st.booleans()),
        surrogate_disable=draw(st.integers(0, 5)) == 0,
        inhibition=inhibited,
        learn=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        init_hidden=init_hidden,
        output=draw(st.booleans()),
        state=draw(st.sampled_from(("none", "held", "other shape") if init_hidden else ("none", "given"))),
        parameters=draw(st.tuples(PARAMETERS, PARAMETERS, PARAMETERS)),
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


def both(case: Layer) -> tuple[Any, Any]:
    values = {
        "beta": parameter(case.parameters[0], case.shape, -0.2, 1.2, case),
        "threshold": parameter(case.parameters[1], case.shape, 0.6, 1.1, case),
        "graded_spikes_factor": parameter(case.parameters[2], case.shape, 0.5, 2.0, case),
    }
    flags = {
        **dict(zip(("learn_beta", "learn_threshold", "learn_graded_spikes_factor"), case.learn, strict=True)),
        "reset_mechanism": case.reset,
        "reset_delay": case.delay,
        "surrogate_disable": case.surrogate_disable,
        "inhibition": case.inhibition,
        "init_hidden": case.init_hidden,
        "output": case.output,
    }
    layers = []
    for make, spike_grad in zip(
        (snnfast.Leaky if case.standalone else snnfast.snntorch.Leaky, snntorch.Leaky), spike_grads(case), strict=True
    ):
        copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
        layer = make(**copies, spike_grad=spike_grad, **flags)
        layers.append(layer.to(case.acc) if case.acc == torch.float64 else layer)
    if case.surrogate_disable and case.acc == torch.float64:
        # snnTorch's own bypass returns float32 whatever it is given.
        layers[1].spike_grad = surrogate.DISABLED
    return layers[0], layers[1]


def start(case: Layer, *layers: Any) -> Tensor | None:
    """Bring the layers into the same state; returns the membrane to be passed."""
    mem = (torch.rand(case.shape, dtype=torch.float64) * 2.5 - 0.5).to(case.acc)
    if case.state == "held":
        for layer in layers:
            layer.mem = mem.clone()
    elif case.state == "other shape":
        for layer in layers:
            layer.mem = torch.ones(*case.shape, 3, dtype=case.acc)
    return mem if case.state == "given" else None


def step_by_step(layer: Any, steps: list[Tensor], mem: Tensor | None, case: Layer) -> tuple[list[Tensor], list[Tensor]]:
    spks, mems = [], []
    for x in steps:
        if case.init_hidden:
            result = layer(x)
            spk = result[0] if case.output else result
            mem = layer.mem
        else:
            spk, mem = layer(x, mem)
        spks.append(spk)
        mems.append(mem)
    return spks, mems


def stacked(tensors: list[Tensor], case: Layer) -> Tensor:
    return torch.stack(tensors) if tensors else torch.zeros((0, *case.shape), dtype=case.acc)


def gradients(layer: nn.Module, x: Tensor, spk: Tensor, mem: Tensor, case: Layer) -> list[Tensor]:
    """Of a weighted sum of spikes and membranes; zeros where there is none."""
    generator = torch.Generator().manual_seed(case.seed)
    loss = torch.zeros((), dtype=torch.float64)
    for t in (spk, mem):
        weights = torch.rand(t.shape, generator=generator, dtype=torch.float64) - 0.3
        loss = loss + (t.double().cpu() * weights.to(case.dtype).double()).sum()
    wanted = [x, *layer.parameters()]
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in wanted]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def check(case: Layer, device: torch.device | str = "cpu") -> None:
    torch.manual_seed(case.seed)
    ours, reference = both(case)
    ours = ours.to(device)
    constant = case.how == "constant"
    x = torch.rand(case.shape if constant else (case.steps, *case.shape), dtype=torch.float64) * 2 - 0.6
    x = x.to(case.dtype)
    mem = start(case, ours, reference)
    if case.steps == 0 and case.state == "other shape":
        return  # with no step snnTorch keeps a membrane of the wrong shape

    leaf = x.to(case.acc).requires_grad_()
    steps = [leaf] * case.steps if constant else list(leaf.unbind(0))
    spks, mems = step_by_step(reference, steps, mem, case)
    expected_spk, expected_mem = stacked(spks, case), stacked(mems, case)
    last = mems[-1] if mems else reference.mem if case.state == "held" else mem
    if case.how == "unroll last":
        expected_mem = torch.zeros(case.shape, dtype=case.acc) if last is None else last
    mem_dtype = case.acc if case.how in ("steps", "unroll last") else case.dtype  # state, or a record
    expected = gradients(reference, leaf, expected_spk.to(case.dtype), expected_mem.to(mem_dtype), case)

    leaf = x.to(device, copy=True).requires_grad_()
    mem = None if mem is None else mem.to(device)
    if case.how == "steps":
        spks, mems = step_by_step(ours, list(leaf.unbind(0)), mem, case)
        spk, found_mem = stacked(spks, case), stacked(mems, case)
    else:
        spk, found_mem = ours.unroll(
            leaf, mem, num_steps=case.steps if constant else None, record_mem=case.how != "unroll last"
        )
    assert_bits_equal(spk, expected_spk.to(case.dtype), "spk")
    assert_bits_equal(found_mem, expected_mem.to(mem_dtype), "mem")
    if case.init_hidden and case.steps > 0:
        assert_bits_equal(ours.mem, last, "held")
    found = gradients(ours, leaf, spk, found_mem, case)
    relative = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[case.dtype]
    # What is summed up may cancel: an error is one of its terms, not of the sum.
    scale = max(1.0, expected[0].abs().sum().item())
    if case.dtype == torch.float16 and scale > 1e4:
        return  # may overflow
    for name, a, b in zip(["current", *dict(ours.named_parameters())], found, expected, strict=True):
        assert_close(a.to(b.dtype), b, relative, name, scale=1.0 if name == "current" else scale)


QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@given(layers())
@settings(max_examples=2500, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature", "ignore:snnfast. a layer runs step by step")
def test_a_random_layer_has_the_numbers_of_snntorchs_loop(case: Layer) -> None:
    check(case)


@given(layers())
@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_a_random_layer_has_them_on_every_device(device: torch.device, case: Layer) -> None:
    if not case.inhibition or case.delay:  # else step by step
        check(case, device)


def test_surrogates_of_both_libraries_are_drawn() -> None:
    assert set(CLOSURES) - {"custom_surrogate"} <= set(SURROGATES)
    assert all(isinstance(s, Surrogate) for s in SURROGATES.values())
