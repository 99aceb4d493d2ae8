"""Random layers, inputs and states against snnTorch's own loop: forward to the bit, gradients to rounding."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import snntorch
import torch
from callables import steep
from helpers import (
    FLOATS,
    HALVES,
    PARAMETERS,
    SURROGATES,
    THOROUGH,
    Case,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    parameter_shapes,
    random_case,
)
from snntorch.functional.quant import state_quant
from snntorch_checks import LEARNED, STATES
from torch import Tensor, nn

import snnfast
import snnfast.snntorch
from snnfast import surrogate
from snnfast.neurons import LAYERS

# Those that both layers are given: snnTorch's own return float32, and what is made of them is in test_spike_grad.py.
SPIKE_GRADS = {
    **SURROGATES, "callable": steep,
    "custom": surrogate.custom_surrogate(lambda z, grad, spk: grad * (0.3 + 0.5 * spk)),
}  # fmt: skip
QUANT = state_quant(num_bits=4, uniform=True, threshold=1.0)
WILD = torch.tensor([float("inf"), -float("inf"), float("nan")])


# snnTorch's have no reset_delay, or one that raises an error.
NO_DELAY = ("lapicque", "alpha", "rsynaptic")
NAMES = {name.lower(): name for name in STATES}  # of the classes


@dataclass(frozen=True)
class Layer(Case):
    """One layer of both libraries, its input and its state: a random case, and what only layers have."""

    surrogate: str = "atan"  # of SPIKE_GRADS
    surrogate_disable: bool = False
    inhibition: bool = False
    learn: tuple[bool, ...] = ()  # in the order of LEARNED
    init_hidden: bool = False
    output: bool = False
    state: str = "none"  # at the start: "none", "given", "only" (the first of them), "held" or "other shape"
    kinds: tuple[str, ...] = ()  # of parameters, in the order of LEARNED
    standalone: bool = False  # snnfast's layer instead of the subclass of snnTorch's
    quantized: bool = False  # states
    wild: bool = False  # infinities and NaN among the input
    seed: int = 0

    @property
    def state_names(self) -> tuple[str, ...]:
        return STATES[NAMES[self.neuron]]

    @property
    def fed_back(self) -> bool:
        return self.state_names[0] == "spk"

    @property
    def shown(self) -> tuple[str, ...]:
        """The states that a call returns beside the spikes."""
        return self.state_names[self.fed_back :]

    @property
    def last(self) -> bool:
        """Whether the last states are returned, and no record."""
        return not self.record_mem and not self.has("step")


def random_layer(neuron: str, number: int) -> Layer:
    draw = random.Random(f"{neuron} {number}")
    name = draw.choice(list(SPIKE_GRADS))
    dtype = draw.choice((torch.float32, torch.float32, torch.float64, *HALVES))
    shape = draw.choice(
        (
            [draw.randint(1, 5) for _ in range(2)],
            [draw.randint(1, 5) for _ in range(draw.randint(0, 4))],
            [draw.randint(0, 3), draw.choice((0, 1, 63, 64, 65, 130))],
        )
    )
    case = random_case(
        draw,
        neuron=(neuron,),
        # In half precision the layer rounds what it holds between calls; the unroll carries it in float32.
        variant=("unroll", "constant", *(("step",) * 2 if dtype in FLOATS else ())),
        steps=(*range(7), *range(15, 35)),
        shape=(tuple(shape),),
        dtype=(dtype,),
        delay=(True,) if neuron in NO_DELAY else (True, False),
    )
    init_hidden = draw.random() < 0.5
    given = ("none", "given", "only") if len(STATES[NAMES[neuron]]) > 1 else ("none", "given")
    kinds = [draw.choice(("float", *PARAMETERS)) for _ in LEARNED[NAMES[neuron]]]
    if neuron == "lapicque":  # snnTorch's takes a beta of one value
        kinds[0] = draw.choice(("scalar", "one"))
    return Layer(
        **vars(case),
        surrogate=name,
        surrogate_disable=draw.random() < 1 / 6,
        inhibition=len(shape) == 2 and shape[1] > 0 and draw.random() < 0.2,
        learn=tuple(draw.random() < 0.5 for _ in kinds),
        init_hidden=init_hidden,
        output=draw.random() < 0.5,
        state=draw.choice(("none", "held", "other shape") if init_hidden else given),
        kinds=tuple(kinds),
        standalone=draw.random() < 0.5,
        quantized=dtype == torch.float32 and draw.random() < 0.2,
        wild=draw.random() < 0.1,
        seed=number,
    )


def parameter(kind: str, shape: tuple[int, ...], low: float, high: float, case: Layer) -> float | Tensor:
    if kind == "float":
        # A number that float32 has, so that it is the same in the arithmetic of either dtype.
        return round(float(torch.rand(())) * (high - low) + low, 1) // 0.125 * 0.125
    (size,) = parameter_shapes(kind, shape, 1)
    return (torch.rand(size, dtype=torch.float64) * (high - low) + low).to(case.acc)


RANGES = {"alpha": (-0.2, 1.2), "beta": (-0.2, 1.2), "threshold": (0.6, 1.1), "graded_spikes_factor": (0.5, 2.0)}
RANGES["V"] = (-0.6, 0.6)
OWN_RANGES = {"Lapicque": {"beta": (0.05, 1.2)}, "Alpha": {"alpha": (0.6, 1.1), "beta": (-0.1, 0.5)}}


def both(case: Layer) -> tuple[Any, Any]:
    learned = LEARNED[NAMES[case.neuron]]
    ranges = RANGES | OWN_RANGES.get(NAMES[case.neuron], {})
    values = {
        name: parameter(kind, case.shape, *ranges[name], case) for name, kind in zip(learned, case.kinds, strict=True)
    }
    learn = {f"learn_{name}": learn for name, learn in zip(learned, case.learn, strict=True)}
    if case.neuron == "alpha":
        del learn["learn_alpha"]  # raises an error in snnTorch
    if case.fed_back:
        learn["learn_recurrent"] = learn.pop("learn_V")
    flags = {
        **learn, "reset_mechanism": case.reset,
        **({} if case.neuron in ("lapicque", "alpha") else {"reset_delay": case.delay}),
        **({"all_to_all": False} if case.fed_back else {}), "surrogate_disable": case.surrogate_disable,
        "inhibition": case.inhibition, "init_hidden": case.init_hidden, "output": case.output,
        "state_quant": QUANT if case.quantized else False,
    }  # fmt: skip
    layers = []
    for library in (snnfast if case.standalone else snnfast.snntorch, snntorch):
        copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
        layer = getattr(library, NAMES[case.neuron])(**copies, spike_grad=SPIKE_GRADS[case.surrogate], **flags)
        layers.append(layer.to(case.acc) if case.acc == torch.float64 else layer)
    if case.surrogate_disable and case.acc == torch.float64:
        # snnTorch's own bypass returns float32 whatever it is given.
        layers[1].spike_grad = surrogate.DISABLED
    return layers[0], layers[1]


def start(case: Layer, *layers: Any) -> list[Tensor | None]:
    """Bring the layers into the same state; returns the states to be passed."""
    states = [(torch.rand(case.shape, dtype=torch.float64) * 2.5 - 0.5).to(case.acc) for _ in case.state_names]
    for layer in layers:
        for name, state in zip(case.state_names, states, strict=True):
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
            states = [getattr(layer, name) for name in case.state_names]
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
    states = [[states[i] for states in record] for i in range(case.fed_back, len(case.state_names))]
    return [stacked(spks, case), *(stacked(s, case) for s in states)]


def check(case: Layer, device: torch.device | str = "cpu") -> None:
    torch.manual_seed(case.seed)
    ours, reference = both(case)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    assert list(ours.state_dict()) == list(reference.state_dict())
    for name, t in reference.state_dict().items():
        assert_bits_equal(ours.state_dict()[name], t, name)
    ours.load_state_dict(reference.state_dict(), strict=True)
    ours = ours.to(device)
    constant = case.has("constant")
    x = torch.rand(case.shape if constant else (case.steps, *case.shape), dtype=torch.float64) * 2 - 0.6
    x = x.to(case.dtype)
    if case.wild:
        x = torch.where(torch.rand(x.shape) < 0.2, WILD[torch.randint(len(WILD), x.shape)].to(x), x)
    states = start(case, ours, reference)
    if case.steps == 0 and case.state == "other shape":
        return  # with no step snnTorch keeps states of the wrong shape

    leaf = x.to(case.acc).requires_grad_()
    steps = [leaf] * case.steps if constant else list(leaf.unbind(0))
    spks, record = step_by_step(reference, steps, states, case)
    expected = records(spks, record, case)
    held = [getattr(reference, name) for name in case.state_names]
    last = record[-1] if record else held if case.state == "held" else states
    if case.last:
        expected[1:] = [torch.zeros(case.shape, dtype=case.acc) if s is None else s for s in last[case.fed_back :]]
    states_dtype = case.acc if case.has("step") or case.last else case.dtype  # states, or a record
    expected = [expected[0].to(case.dtype), *(t.to(states_dtype) for t in expected[1:])]
    expected_grads = gradients(reference, leaf, expected, case)

    leaf = x.to(device, copy=True).requires_grad_()
    states = [s if s is None else s.to(device) for s in states]
    if case.has("step"):
        found = records(*step_by_step(ours, list(leaf.unbind(0)), states, case), case)
    else:
        how = {"num_steps": case.steps if constant else None, "record_mem": not case.last}
        found = list(ours.unroll(leaf, *states, **how))
    for name, a, b in zip(("spk", *case.shown), found, expected, strict=True):
        assert_bits_equal(a, b, name)
    if case.init_hidden and case.steps > 0:
        for name, b in zip(case.state_names, last, strict=True):
            assert_bits_equal(getattr(ours, name), b, f"held {name}")
    if case.wild:
        return  # gradients are anything
    grads = gradients(ours, leaf, found, case)
    relative = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[case.dtype]
    # What is summed up may cancel: an error is one of its terms, not of the sum.
    scale = max(1.0, expected_grads[0].abs().sum().item())
    if case.dtype == torch.float16 and scale > 1e4:
        return  # may overflow
    for name, a, b in zip(["current", *dict(ours.named_parameters())], grads, expected_grads, strict=True):
        assert_close(a.to(b.dtype), b, relative, name, scale=1.0 if name == "current" else scale)


def check_numbers(neuron: str, numbers: range, device: torch.device | str = "cpu") -> None:
    for number in numbers:
        case = random_layer(neuron, number)
        try:
            check(case, device)
        except Exception as error:
            error.add_note(repr(case))
            raise


unstable = pytest.mark.filterwarnings("ignore:Inhibition is an unstable", "ignore:snnfast. a layer runs step by step")


@emulated_if_thorough
@unstable
@pytest.mark.parametrize("neuron", NAMES)
def test_a_random_layer_has_the_numbers_of_snntorchs_loop(neuron: str, device: torch.device) -> None:
    with snnfast.use_backend("auto"):  # some run step by step
        check_numbers(neuron, range(1500 if THOROUGH else 100), device)


@unstable
@pytest.mark.parametrize("neuron", NAMES)
def test_so_has_the_reference(neuron: str) -> None:
    with snnfast.use_backend("reference"):
        check_numbers(neuron, range(1500, 2000 if THOROUGH else 1560))


def test_every_neuron_is_drawn() -> None:
    assert {name: layer.neuron.states for name, layer in LAYERS.items()} == STATES
