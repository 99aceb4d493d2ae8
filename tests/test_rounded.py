"""``membrane_dtype=torch.bfloat16``: exact outputs and resets, gradients at rounded distances from the threshold.

Only neurons whose recorded membrane tells all have it. test_kernels.py compares whole calls with the oracle.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from gradient_checks import gradients, saved_by
from helpers import (
    FLOATS,
    RESETS,
    SURROGATES,
    Case,
    Tensors,
    assert_all_bits_equal,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    fused,
    inputs,
    leaves,
)
from torch import nn

from snnfast import Leaky, MultiStep, reference
from snnfast.functional import lif

# Derivatives that depend on no more than the side of the threshold.
BY_SIDE = ("straight_through_estimator", "heaviside", "triangular", "LSO")
SMOOTH = ("atan", "fast_sigmoid", "sigmoid", "spike_rate_escape")


def exact_and_rounded(case: Case, tensors: Tensors, flow: str = "both") -> Iterator[tuple[str, Any, Any]]:
    """Gradients from what is saved otherwise, and from rounded membranes."""
    wrt = replace(case, variant="rounded").wrt
    variants = (case.variant, case.variant.replace("unroll", "rounded"))
    exact, found = (gradients(fused, leaves(tensors, wrt), replace(case, variant=v), flow) for v in variants)
    assert exact.keys() == found.keys()
    yield from ((name, exact[name], found[name]) for name in exact)


@pytest.mark.parametrize("name", BY_SIDE)
@pytest.mark.parametrize("reset", RESETS)
def test_rounding_moves_no_membrane_across_the_threshold(reset: str, name: str, device: torch.device) -> None:
    """Where only sides of the threshold matter, gradients are equal bit for bit, even an ulp beside it."""
    for dtype, threshold in itertools.product(
        FLOATS, (1.0, 0.7, -1.0, -0.3, 0.0, 1e-30, -1e-30, 1e-38, 1e30, -1e30, 3e38, 2.0**-149)
    ):
        limits = torch.finfo(dtype)
        at = torch.tensor(threshold, dtype=dtype)
        above, below = (torch.nextafter(at, torch.tensor(end, dtype=dtype)) for end in (limits.max, limits.min))
        # The first membrane is the first current.
        first = torch.stack(
            [at, above, below, at + limits.tiny, at - limits.tiny, at * 1.001, at * 0.999, at * 2, at * 0, -at]
        )
        current = torch.stack([first, first.flip(0) * 0.5, first.roll(1)])
        case = Case("leaky", "unroll", 3, (10,), dtype, reset, spike_grad=SURROGATES[name])
        tensors: Tensors = {
            "current": current.to(device), "mem": torch.zeros(10, dtype=dtype, device=device),
            "beta": torch.tensor(1.0, dtype=dtype), "threshold": at,
            "graded_spikes_factor": torch.tensor(1.5, dtype=dtype),
        }  # fmt: skip
        for which, exact, found in exact_and_rounded(case, tensors):
            assert_bits_equal(found, exact, f"{dtype}, threshold {threshold}: {which}")


def test_membranes_too_close_for_a_float_stay_on_their_side(device: torch.device) -> None:
    """Also with denormal numbers flushed to zero, as many set it for speed."""
    first = torch.tensor([1e-300, -1e-300, 5e-324, -5e-324, 1e-40, -1e-40, 1e-45, 0.0], dtype=torch.float64)
    zero = torch.tensor(0.0, dtype=torch.float64)
    tensors: Tensors = {
        "current": torch.stack([first, torch.ones_like(first)]).to(device), "mem": None, "beta": zero + 0.5,
        "threshold": zero, "graded_spikes_factor": zero + 1,
    }  # fmt: skip
    for flush, name in itertools.product((False, True), BY_SIDE):
        case = Case("leaky", "unroll", 2, (8,), torch.float64, "zero", states=False, spike_grad=SURROGATES[name])
        if flush and not torch.set_flush_denormal(True):
            pytest.skip("this processor can't flush denormal numbers")
        try:
            for which, exact, found in exact_and_rounded(case, tensors):
                assert_bits_equal(found, exact, f"{name}, flush {flush}: {which}")
        finally:
            torch.set_flush_denormal(False)


@emulated_if_thorough
@pytest.mark.parametrize("threshold", [1.0, 1e3, 1e9, float("inf"), -float("inf")])
def test_where_beta_learns_nothing_is_rounded(threshold: float, device: torch.device) -> None:
    """A rounded distance from a large threshold says nothing of the membrane, which beta's gradient is made of."""
    for dtype, record_mem in itertools.product(FLOATS, (True, False)):
        case = Case("leaky", "unroll", 25, (4, 10), dtype, "none", record_mem=record_mem)
        tensors = {**inputs(case, device), "threshold": torch.tensor(threshold, dtype=dtype)}
        wrt = ("current", "mem", "beta")
        rounded = replace(case, variant="rounded")
        exact, found = (gradients(fused, leaves(tensors, wrt), c, "states") for c in (case, rounded))
        for name in exact:
            assert_bits_equal(found[name], exact[name], f"{case}: {name}")  # type: ignore[arg-type]


@emulated_if_thorough
def test_what_is_not_finite_is_handed_on(device: torch.device) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.5], device=device)
    for name, reset in itertools.product(SURROGATES, RESETS):
        case = Case("leaky", "unroll", 1, (6,), torch.float32, reset, states=False, spike_grad=SURROGATES[name])
        tensors = {**inputs(case, device), "current": values.unsqueeze(0)}
        for which, exact, found in exact_and_rounded(case, tensors):
            assert_close(found, exact, 2**-8, f"{name}: {which}")


@emulated_if_thorough
@pytest.mark.parametrize("name", SMOOTH)
def test_the_distance_from_the_threshold_keeps_eight_bits(name: str, device: torch.device) -> None:
    """So the error is at most what a surrogate makes of one part in 2^8 of it, wherever the membrane is."""
    spike_grad = SURROGATES[name]
    x = torch.cat([torch.linspace(-4, 6, 20001), 1 + torch.logspace(-7, 0, 2000)]).to(device).unsqueeze(0)
    results = []
    for dtype in (None, torch.bfloat16):
        current = x.clone().requires_grad_()
        spk, _ = lif(current, beta=0.9, spike_grad=spike_grad, membrane_dtype=dtype)
        results += torch.autograd.grad(spk.sum(), [current])
    exact, found = results
    z = (x - 1).double().requires_grad_()
    (slope,) = torch.autograd.grad(spike_grad.derivative(z).sum(), [z])
    assert ((found - exact).abs() <= 2**-7.9 * (slope * z).abs() + 1e-6 * exact).all()
    if name in ("atan", "fast_sigmoid"):
        error = ((found - exact) / exact).abs().max().item()
        assert 2**-8 < error < 2**-7


# ---- layers -------------------------------------------------------------------------------------------------------


@emulated_if_thorough
def test_layers_hand_it_on(device: torch.device) -> None:
    x = (torch.rand(25, 3, 10) * 2).to(device)
    net = MultiStep(nn.Linear(10, 20), Leaky(0.8), nn.Linear(20, 6), Leaky(0.7, surrogate_disable=True)).to(device)
    layer = Leaky(0.9, torch.full((10,), 0.9), learn_threshold=True).to(device)
    for module, call_ in ((net, net), (layer, layer.unroll)):
        results = []
        for dtype in (None, torch.bfloat16):
            (spk, mem), kept = saved_by(partial(call_, x, membrane_dtype=dtype))
            held = sum(t.dtype == torch.bfloat16 for t in kept)
            assert held == (0 if dtype is None else 2 if module is net else 1)
            results.append((spk, mem, *torch.autograd.grad(mem.square().sum() + spk.sum(), list(module.parameters()))))
        for i, (exact, found) in enumerate(zip(*results, strict=True)):
            if i < 2:
                assert_bits_equal(found, exact)
            else:
                assert_close(found, exact, 2**-7)


def test_the_reference_ignores_it() -> None:
    current, results = torch.rand(4, 3, 10), []
    for options in ({}, {"membrane_dtype": torch.bfloat16}):
        x = current.clone().requires_grad_()
        spk, mem = reference.lif(x, beta=0.9, **options)
        results.append((spk, mem, *torch.autograd.grad(spk.sum() + mem.sum(), [x])))
    assert_all_bits_equal(*results)


@emulated_if_thorough
def test_it_has_no_second_derivative(device: torch.device) -> None:
    for wrt in ("current", "threshold"):
        case = Case("leaky", "rounded")
        tensors = leaves(inputs(case, device), (wrt,))
        outputs = fused(tensors, case)
        with pytest.raises(NotImplementedError, match="second derivative"):
            torch.autograd.grad(sum(t.sum() for t in outputs.values()), [tensors[wrt]], create_graph=True)  # type: ignore[list-item, arg-type]
