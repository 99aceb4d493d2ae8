"""The kernels equal the reference, whatever the neuron, variant, dtype and shape: bits forward, rounding backward."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradient_checks import FLOWS, ORDINARY, check_against_reference, check_ordinary
from helpers import (
    FLOATS,
    HALVES,
    KINDS,
    PARAMETERS,
    RESETS,
    SURROGATES,
    THOROUGH,
    VARIANTS,
    Case,
    assert_equals_reference,
    inputs,
    random_cases,
)

from snnfast.surrogate import DISABLED


def exists(neuron: str, variant: str, dtype: torch.dtype) -> bool:
    case = Case(neuron, variant, dtype=dtype)
    return (case.fitted().variant, case.fitted().dtype) == (variant, dtype)


CALLS = [
    pytest.param(*call, id=f"{call[0]}-{call[1]}-{str(call[2])[6:]}")
    for call in itertools.product(KINDS, VARIANTS, FLOATS + HALVES)
    if exists(*call)
]
FEW = ((5,), (3, 10), (2, 33))

# Choices for the fields of the cases, by the name of what is special about them. The sizes are full vectors and what is
# left over, several blocks of neurons, and fewer neurons than a vector.
ROWS: dict[str, dict[str, Any]] = {
    **{f"T{n}": {"steps": (n,), "shape": FEW} for n in (0, 1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49)},
    **{f"T{n}": {"steps": (n,), "shape": ((5,), (3, 10))} for n in (129, 151, 300)},
    "T0-last": {"steps": (0,), "shape": FEW, "record_mem": (False,)},
    **{
        "x".join(map(str, shape)) or "0d": {"steps": (5,), "shape": (shape,)}
        for shape in (
            (), (0,), (1,), (7,), (16,), (17,), (3, 0), (0, 4), (1, 64), (2, 257), (2, 3, 5), (2, 3, 4, 5), (4, 1030),
            (3, 1367), (8, 4096),
        )
    },
    **{f"parameters-{kind}": {"parameters": (kind,), "shape": ((2, 3, 5), (3, 10))} for kind in PARAMETERS},
    **{
        f"{reset}-{'delay' if delay else 'nodelay'}": {"reset": (reset,), "delay": (delay,)}
        for reset, delay in itertools.product(RESETS, (True, False))
    },
    **{name: {"spike_grad": (s,), "shape": FEW} for name, s in {**SURROGATES, "disabled": DISABLED}.items()},
}  # fmt: skip


def check(cases: Iterator[Case], device: torch.device) -> None:
    draw = random.Random(0)
    for i, case in enumerate(cases):
        flow, wild, some = draw.choice(FLOWS), draw.random() < 0.5, [n for n in case.wrt if draw.random() < 0.5]
        # Through many steps a gradient grows that comes back through the spikes.
        if not case.delay and case.steps > 18:
            case = replace(case, spike_grad=SURROGATES["atan"])
        if case.kind.ops.has_spike_feedback and case.steps > 18:
            assert_equals_reference(case, inputs(case, device, i, wild))
        else:
            check_against_reference(case, device, flow, i, wild, some if some and i % 3 == 2 else None)


@pytest.mark.parametrize(("neuron", "variant", "dtype"), CALLS)
def test_random_calls(neuron: str, variant: str, dtype: torch.dtype, device: torch.device) -> None:
    number = 20 if THOROUGH else 3
    seed = f"{neuron}-{variant}-{dtype}"
    check(random_cases(number, seed, neuron=(neuron,), variant=(variant,), dtype=(dtype,)), device)


@pytest.mark.parametrize("name", ROWS)
def test_special_calls(name: str, device: torch.device) -> None:
    number = 4 if THOROUGH else 1  # of each neuron
    drawn = (random_cases(number, f"{name}-{neuron}", neuron=(neuron,), **ROWS[name]) for neuron in KINDS)
    check(itertools.chain(*drawn), device)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("neuron", KINDS)
def test_ordinary_calls(neuron: str, dtype: torch.dtype, device: torch.device) -> None:
    longer = {} if KINDS[neuron].ops.has_spike_feedback else {"steps": (1, 15, 16, 17, 33, 40, 49)}
    drawn = random_cases(12, f"{neuron}-{dtype}", neuron=(neuron,), dtype=(dtype,), **{**ORDINARY, **longer})
    for i, case in enumerate(drawn):
        check_ordinary(case, device, i)
