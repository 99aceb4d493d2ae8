"""Spikes as bits between neurons and the linear layer behind them: the numbers of both, and when it is not done."""

import itertools
import random
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from callables import steep
from gradient_checks import FLOWS, Largest, bytes_of, saved_by
from helpers import (
    KINDS,
    NEURONS,
    SURROGATES,
    Case,
    assert_all_close,
    assert_bits_equal,
    assert_close,
    expected,
    fused,
    leaves,
    random_cases,
)
from linear_checks import by_events, check, counting, fits, with_linear
from torch import Tensor

import snnfast
from snnfast import functional

pytestmark = pytest.mark.needs_extension
neurons, every_neuron = (pytest.mark.parametrize("neuron", names) for names in (NEURONS, KINDS))
ROWS = ((), (1,), (4,), (2, 3))  # dimensions of a step before that of the inputs
PARAMETERS = ("scalar", "one", "neuron", "channel", "element", "mixed")


@pytest.fixture(autouse=True)
def fused_backend() -> Iterator[None]:
    with snnfast.use_backend("fused"):
        yield


def random_calls(number: int, seed: int | str, **choices: Any) -> Iterator[tuple[Case, int]]:
    """Cases, and the number of outputs."""
    draw = random.Random(seed)
    choices = {
        "variant": ("unroll", "unroll", "constant"),
        "steps": (1, 3, 8, 9, 25),
        "parameters": PARAMETERS,
    } | choices
    for case in random_cases(number, seed, **{"steps": (1, 3, 8, 9, 25), **choices}):
        yield case, draw.choice((1, 3, 10, 17, 40, 300))


# ---- numbers


@every_neuron
@pytest.mark.parametrize("variant", ["unroll", "constant"])
def test_random_calls_equal_the_reference(variant: str, neuron: str, isa: str) -> None:
    shapes = [(*rows, n) for rows, n in itertools.product(ROWS, (1, 7, 33, 65, 1000))]
    for i, (case, outputs) in enumerate(random_calls(12, isa, neuron=(neuron,), variant=(variant,), shape=shapes)):
        check(case, outputs, bias=i % 3 > 0, flow=FLOWS[i % 5], seed=i)
        assert by_events(fused, with_linear(case), case) == fits(case), str(case)
        with torch.no_grad():
            spk = fused(with_linear(case), case)["spk"]
        assert_bits_equal(spk, fused(leaves(with_linear(case)), case)["spk"])


@neurons
@pytest.mark.parametrize("wrt", ["current", "states", "decays", "threshold", "graded_spikes_factor", "weight", "bias"])
def test_a_gradient_for_some_inputs_only(wrt: str, neuron: str) -> None:
    for i, (case, outputs) in enumerate(random_calls(6, 2, neuron=(neuron,), shape=((3, 12),), states=(True,))):
        groups = {"states": case.kind.ops.states, "decays": case.kind.decays}
        check(case, outputs, wrt=groups.get(wrt, (wrt,)), flow=FLOWS[i % 2])


@pytest.mark.parametrize(("steps", "shape"), [(0, (3, 5)), (4, (0, 5)), (4, (3, 0)), (0, (0, 0))])
def test_nothing_is_a_number_of_steps_rows_or_inputs(steps: int, shape: tuple[int, ...]) -> None:
    for variant, outputs in itertools.product(("unroll", "constant"), (3, 0)):
        check(Case("leaky", variant, steps, shape, record_mem=steps > 0), outputs)


def test_currents_in_any_layout() -> None:
    case = Case("leaky", "unroll", 9, (4, 6))
    tensors = leaves(with_linear(case))
    current = tensors["current"]
    assert current is not None
    for layout in (current.transpose(0, 2).contiguous().transpose(0, 2), current[..., :1].expand(9, 4, 6)):
        given = layout.detach().requires_grad_()
        found, wanted = (f({**tensors, "current": given}, case)["spk"] for f in (fused, expected))
        assert_close(found, wanted, 1e-6)
        assert_all_close(*(torch.autograd.grad(t.square().sum(), [given]) for t in (found, wanted)), relative=1e-5)


def test_the_sum_of_the_spikes_is_what_the_linear_layer_is_given_with_reduce() -> None:
    check(Case("leaky", "count", 9, (4, 6)))
    check(Case("synaptic", "count+constant", 9, (4, 6), record_mem=False))


# ---- memory


@neurons
def test_neither_the_spikes_nor_their_gradient_are_ever_numbers(neuron: str) -> None:
    for spike_grad in (SURROGATES["atan"], SURROGATES["straight_through_estimator"]):
        case = Case(neuron, "constant", 25, (4, 100), record_mem=False, spike_grad=spike_grad)
        tensors = leaves(with_linear(case), ("current", "weight", "bias"))
        with Largest(floating=True) as largest:
            fused(tensors, case)["spk"].square().sum().backward()
        assert 0 < largest.elements < 25 * 400


@neurons
def test_held_for_backward_are_bits_and_what_the_neurons_hold_anyway(neuron: str) -> None:
    """In bytes for each neuron and step, beyond inputs other than the current and outputs."""
    states = {"synaptic": 2}.get(neuron, 1)
    bits, current = 5 / 40, 4.0 + 4 * 2 / 40 * states  # with its checkpoints
    calls: list[tuple[tuple[str, ...], dict[str, Any], float]] = [
        (("current", "weight"), {}, current + bits), (("current",), {}, current), (("weight", "bias"), {}, bits),
        (("bias",), {}, 0),
    ]  # fmt: skip
    if neuron == "leaky":
        straight = {"spike_grad": SURROGATES["straight_through_estimator"]}
        of_records = (("current", "weight"), {"record_mem": True}, bits)  # the membranes are an output
        calls += [of_records, (("current", "weight"), straight, bits)]
    for wrt, options, wanted in calls:
        case = Case(neuron, "unroll", 40, (4, 100), **{"record_mem": False, "states": False, **options})
        tensors = leaves(with_linear(case), wrt)
        outputs, kept = saved_by(partial(fused, tensors, case))
        known = [t for name, t in tensors.items() if name != "current"] + list(outputs.values())
        assert bytes_of(kept, beyond=known) / (40 * 400) == pytest.approx(wanted), (wrt, options)


# ---- other ways to call


def test_a_second_derivative_is_refused() -> None:
    for name, wrt in itertools.product(("atan", "straight_through_estimator"), ("current", "weight", "bias")):
        case = Case("leaky", "unroll", 9, (4, 6), torch.float64, record_mem=False, spike_grad=SURROGATES[name])
        tensors = leaves(with_linear(case), ("current", "weight", "bias"))
        out = fused(tensors, case)["spk"].square().sum()
        with pytest.raises(NotImplementedError, match="no second derivative"):  # noqa: PT012 - of the two
            (grad,) = torch.autograd.grad(out, [tensors[wrt]], create_graph=True)  # type: ignore[list-item]
            torch.autograd.grad(grad.sum(), [tensors["current"]])  # type: ignore[list-item]


def test_forward_mode_differentiation_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.rand(4, 2, 3), torch.ones(4, 2, 3))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
            functional.lif(x, beta=0.9, weight=torch.rand(2, 3))


# ---- where it is not done


def assert_plain(result: Tensor, spk: Tensor, weight: Tensor) -> None:
    assert_bits_equal(result, F.linear(spk, weight))


def test_what_can_not_be_done_by_bits_is_done_with_numbers() -> None:
    x, weight = torch.rand(9, 4, 6) * 2, torch.randn(3, 6)

    def lif(x: Tensor = x, **options: Any) -> bool:
        given = {"beta": 0.9, **options}
        with counting() as calls:
            out = functional.lif(x, **given, weight=weight.to(x.dtype))[0]
        assert_plain(out, functional.lif(x, **given)[0], weight.to(x.dtype))
        return bool(calls)

    assert_close(functional.lif(x, beta=0.9, weight=weight)[0], F.linear(functional.lif(x, beta=0.9)[0], weight), 1e-6)
    assert not lif(spike_grad=steep)
    assert not lif(spike_grad=steep, reset_delay=False)
    assert not lif(inhibition=True)
    assert not lif(reduce="sum")
    assert not lif(graded_spikes_factor=torch.rand(4, 1))
    assert not lif(beta=torch.full((6,), 0.9, dtype=torch.float64))  # which widens the arithmetic
    with snnfast.use_backend("auto"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        assert not lif(state_quant=lambda mem: mem)
    with snnfast.use_backend("reference"):
        assert not lif()
    with snnfast.use_events(False):
        assert not lif()
    with torch.autocast("cpu", torch.bfloat16):
        assert not lif()


def test_torch_func() -> None:
    x, weight = torch.rand(5, 9, 4, 6) * 2, torch.randn(3, 6)
    with counting() as calls:
        mapped = torch.vmap(lambda x: functional.lif(x, beta=0.9, weight=weight)[0])(x)
    assert calls == []
    for a, b in zip(mapped, x, strict=True):
        assert_close(a, functional.lif(b, beta=0.9, weight=weight)[0], 1e-6)
    weights = torch.randn(5, 3, 6)
    mapped = torch.vmap(lambda w: functional.lif(x[0], beta=0.9, weight=w)[0])(weights)
    for a, w in zip(mapped, weights, strict=True):
        assert_close(a, functional.lif(x[0], beta=0.9, weight=w)[0], 1e-6)
