"""``beta`` and ``threshold`` of ``lif`` with values for every step: snnTorch's loop that sets them before each step."""

import itertools
from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import FLOATS, RESETS, SURROGATES, assert_bits_equal, assert_close, gradients_of
from torch import Tensor

import snnfast
from snnfast.functional import lif

STEPS = 6
# Shapes of a step, and of beta and threshold over time; "T" stands for the steps.
SHAPES: list[tuple[tuple[int, ...], tuple[Any, ...] | None, tuple[Any, ...] | None]] = [
    ((3, 10), ("T", 1, 10), ("T", 3, 10)), ((3, 10), ("T", 3, 1), None), ((3, 10), None, ("T", 1, 1)),
    ((3, 2, 4, 5), ("T", 1, 2, 1, 1), ("T", 3, 1, 4, 5)), ((7,), ("T", 7), ("T", 1)), ((), ("T",), ("T",)),
]  # fmt: skip
OPTIONS = list(itertools.product(RESETS, (True, False), (True, False)))  # reset, delay, constant


def made(
    shapes: tuple[Any, ...], dtype: torch.dtype = torch.float32, constant: bool = False, steps: int = STEPS
) -> dict[str, Tensor]:
    """Random arguments of ``lif`` under their names. Without a shape over time, a parameter is a number."""
    step, *over_time = shapes
    of = [() if shape is None else tuple(steps if n == "T" else n for n in shape) for shape in over_time]
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "current": (torch.rand(step if constant else (steps, *step)) * 1.6 - 0.2).to(dtype),
        "mem": (torch.rand(step) * 2 - 0.2).to(acc),
        "beta": torch.rand(of[0]).to(acc),
        "threshold": (torch.rand(of[1]) * 0.8 + 0.3).to(acc),
    }


def learned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone().requires_grad_() for name, t in tensors.items()}


def at(parameter: Tensor, t: int, current: Tensor, constant: bool) -> Tensor:
    return parameter[t] if parameter.dim() == current.dim() + constant else parameter


def snntorch_loop(
    tensors: dict[str, Tensor], constant: bool, spike_grad: Any, reset: str, delay: bool
) -> tuple[Tensor, Tensor]:
    layer = snntorch.Leaky(0.5, spike_grad=spike_grad, reset_mechanism=reset, reset_delay=delay)
    current, mem = tensors["current"], tensors["mem"]
    spk_rec, mem_rec = [], []
    for t in range(STEPS):
        layer.beta = at(tensors["beta"], t, current, constant)
        layer.threshold = at(tensors["threshold"], t, current, constant)
        spk, mem = layer(current if constant else current[t], mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_it_is_a_loop_of_snntorch_that_sets_them_before_each_step(shapes: Any, backend: str) -> None:
    """Outputs have its bits, and in float64 every gradient is that of the loop."""
    for dtype, (reset, delay, constant) in itertools.product(FLOATS, OPTIONS):
        tensors = made(shapes, dtype, constant)
        if shapes[2] is None:  # a float64 threshold of one number is rounded to float32 in snnTorch
            tensors["threshold"] = tensors["threshold"].float().to(dtype)
        theirs, ours = learned(tensors), learned(tensors)
        # Our surrogate keeps float64, where snnTorch's own would round the gradients of spikes to float32.
        spike_grad = SURROGATES["fast_sigmoid"]
        expected = snntorch_loop(theirs, constant, spike_grad, reset, delay)
        options: dict[str, Any] = {"spike_grad": spike_grad, "reset_mechanism": reset, "reset_delay": delay}
        found = lif(**ours, **options, num_steps=STEPS if constant else None)  # type: ignore[arg-type]
        assert_bits_equal(found[0], expected[0].to(dtype))
        assert_bits_equal(found[1], expected[1])
        assert 0 < found[0].count_nonzero() < found[0].numel() or found[0].numel() < 10
        if dtype == torch.float64:
            grads = (gradients_of(outputs, list(of.values())) for outputs, of in ((found, ours), (expected, theirs)))
            for name, a, b in zip(tensors, *grads, strict=True):
                assert_close(a, b, 1e-12, f"{reset}, delay {delay}, constant {constant}: {name}")


@pytest.mark.parametrize("reduce", [None, "sum"])
def test_a_linear_layer_behind_it_is_given_its_spikes(reduce: Any, backend: str) -> None:
    tensors, weight, bias = made(SHAPES[0]), torch.rand(4, 10), torch.rand(4)
    spk, mem = lif(**tensors, reduce=reduce)
    out, same = lif(**tensors, reduce=reduce, weight=weight, bias=bias)
    assert_bits_equal(out, F.linear(spk, weight, bias))
    assert_bits_equal(same, mem)


@pytest.mark.parametrize("name", ["beta", "threshold"])
def test_float64_values_widen_as_those_of_a_layer_do(name: str, backend: str) -> None:
    tensors = made(SHAPES[0])
    tensors[name] = tensors[name].double()
    spk, mem = lif(**tensors)
    assert (spk.dtype, mem.dtype) == (torch.float32, torch.float64)
    as_double = lif(**{k: t.double() for k, t in tensors.items()})
    assert_bits_equal(spk, as_double[0].float())
    assert_bits_equal(mem, as_double[1])


# ---- torch.compile


@pytest.mark.needs_extension
def test_a_compiled_loop_that_sets_them_before_each_step_is_one_recurrence() -> None:
    lif, over_time = snnfast.Leaky(0.5), made(SHAPES[0])

    def loop(x: Tensor, beta: Tensor, threshold: Tensor) -> Tensor:
        mem, record = torch.zeros(3, 10), []
        for t in range(STEPS):
            lif.beta, lif.threshold = beta[t], threshold[t]
            spk, mem = lif(x[t], mem)
            record.append(torch.stack([spk, mem]))
        return torch.stack(record)

    given = over_time["current"], over_time["beta"], over_time["threshold"]
    expected = loop(*given)
    assert_bits_equal(torch.compile(loop, backend="snnfast")(*given), expected)
    assert "one recurrence" in str(snnfast.explain(loop, *given))
