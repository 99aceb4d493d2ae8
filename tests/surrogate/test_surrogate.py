"""Surrogates have snnTorch's names, defaults and derivatives, keep the dtype, and can be copied."""

import copy
import inspect
import math
import pickle
from typing import Any

import pytest
import snntorch.surrogate as theirs
import torch
from helpers import FLOATS, HALVES, SURROGATES, assert_bits_equal
from torch import Tensor

from snnfast import functional, reference, surrogate
from snnfast.surrogate import Surrogate

RANDOM_OR_YOUR_OWN = ("SSO", "custom_surrogate")
NAMES = [name for name in surrogate.__all__ if name not in ("Surrogate", *RANDOM_OR_YOUR_OWN)]
WORKING_IN_SNNTORCH = [name for name in NAMES if name != "LSO"]  # its LSO raises


def derivative(fire: Any, z: Tensor) -> Tensor:
    z = z.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(fire(z).sum(), [z])
    return grad


def points(dtype: torch.dtype = torch.float32, reach: float = 3.0) -> Tensor:
    return torch.cat([torch.linspace(-reach, reach, 1201), torch.tensor([0.0, -0.0, 1.0, 0.2])]).to(dtype)


@pytest.mark.parametrize("name", WORKING_IN_SNNTORCH)
def test_derivative_equals_snntorch(name: str) -> None:
    own = SURROGATES[name]
    for ours, original in (
        (getattr(surrogate, name)(), getattr(theirs, name)()),
        (own, getattr(theirs, name)(*vars(own).values())),
    ):
        expected = derivative(original, points())
        assert expected.isfinite().all()
        # Below 1e-17 snnTorch's sigmoid is 0, where the square in its denominator overflows.
        torch.testing.assert_close(derivative(ours, points()), expected, rtol=1e-6, atol=1e-17)


def test_lso_is_the_operator_that_snntorch_documents() -> None:
    for slope in (0.1, 0.3):
        z = points().requires_grad_()
        ours, (expected,) = derivative(surrogate.LSO(slope), z), torch.autograd.grad(z.relu().sum(), [z])
        assert_bits_equal(ours, torch.where(z > 0, expected, torch.full_like(z, slope)))


@pytest.mark.parametrize("name", [*NAMES, *RANDOM_OR_YOUR_OWN])
def test_names_and_defaults_are_those_of_snntorch(name: str) -> None:
    ours, reference = (inspect.signature(getattr(m, name)).parameters for m in (surrogate, theirs))
    assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in reference.items()]


@pytest.mark.parametrize("name", NAMES)
def test_a_surrogate_is_the_strict_step_with_a_finite_derivative_in_the_dtype_of_its_argument(name: str) -> None:
    own = SURROGATES[name]
    far = torch.tensor([-1e30, -1e4, -10.0, 10.0, 1e4, 1e30, math.inf, -math.inf])
    for dtype in FLOATS + HALVES:
        z = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 1e-7, 1.0, math.inf, math.nan]).to(dtype)
        assert_bits_equal(own(z), torch.tensor([0, 0, 0, 0, 1, 1, 1, 0], dtype=dtype))
        assert derivative(own, z).dtype == dtype
        assert_bits_equal(own.derivative(z), derivative(own, z))
        if dtype in FLOATS:
            everywhere = torch.cat([far.to(dtype), points(dtype, 1e3)])
            assert getattr(surrogate, name)().derivative(everywhere).isfinite().all()
    z, weights = points(torch.float64).requires_grad_(), torch.randn(1205, dtype=torch.float64)
    (grad,) = torch.autograd.grad(own(z), [z], weights)
    assert_bits_equal(grad, weights * own.derivative(z.detach()))


def test_each_has_a_kernel_of_its_own_and_hands_it_its_parameters() -> None:
    made = [SURROGATES[name] for name in NAMES]
    assert sorted(s.kernel_id for s in made) == list(range(len(NAMES)))
    for s in made:
        given = tuple(vars(s).values())
        assert s.parameters() == given + (0.0,) * (2 - len(given))


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_equal_and_other_parameters_are_not(name: str) -> None:
    own = SURROGATES[name]
    assert pickle.loads(pickle.dumps(own)) == copy.deepcopy(own) == own == type(own)(*vars(own).values())
    assert hash(own) == hash(copy.deepcopy(own))
    if vars(own):
        assert getattr(surrogate, name)() != own
    assert isinstance(own, Surrogate)
    with pytest.raises(AttributeError):
        own.slope = 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("base", [surrogate.Surrogate, type(surrogate.atan())], ids=["new", "derived"])
def test_a_surrogate_of_ones_own_keeps_its_derivative(base):
    class Mine(base):
        def derivative(self, z):
            return torch.full_like(z, 0.25)

    spike_grad = Mine() if base is surrogate.Surrogate else Mine(2.0)
    grads = []
    for lif in (functional.lif, reference.lif):
        current = torch.linspace(0, 1, 12).view(4, 3).requires_grad_()
        spk, _ = lif(current, beta=0.9, spike_grad=spike_grad)
        spk.sum().backward()
        grads.append(current.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_sso_draws_its_derivative_below_the_threshold_in_each_backward_pass():
    z = points().requires_grad_()
    fire = surrogate.SSO(mean=0.25, variance=0.4)
    assert_bits_equal(fire(z), (z > 0).float())
    first, second = derivative(fire, z), derivative(fire, z)
    assert_bits_equal(first[z > 0], torch.ones(int((z > 0).sum())))
    low, high = (-0.5 + 0.25) * 0.4, (0.5 + 0.25) * 0.4
    for drawn in (first, second):
        below = drawn[z <= 0]
        assert low <= below.min() < low + 0.02
        assert high - 0.02 < below.max() < high
        assert abs(below.mean() - 0.25 * 0.4) < 0.02
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    expected = derivative(theirs.SSO(mean=0.25, variance=0.4), z)
    torch.set_rng_state(state)
    torch.testing.assert_close(derivative(fire, z), expected)


def cubed(z: Tensor, grad: Tensor, spk: Tensor) -> Tensor:
    return grad / (1 + 3 * z.abs()) ** 3 + 0.1 * grad * spk


def test_custom_surrogate_calls_the_function_as_snntorch_does():
    z, weights = points(torch.float64).requires_grad_(), torch.randn(1205, dtype=torch.float64)
    ours, original = surrogate.custom_surrogate(cubed), theirs.custom_surrogate(cubed)
    assert_bits_equal(ours(z), (z > 0).double())
    (grad,) = torch.autograd.grad(ours(z), [z], weights)
    (expected,) = torch.autograd.grad(original(z), [z], weights.float())
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)
    assert_bits_equal(ours.derivative(z), derivative(ours, z))
    assert pickle.loads(pickle.dumps(ours)) == copy.deepcopy(ours) == ours
    with pytest.raises(TypeError, match=r"^custom_surrogate_function: expected a callable"):
        surrogate.custom_surrogate(0.5)  # type: ignore[arg-type]
