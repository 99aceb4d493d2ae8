"""Programs with products between their steps: against the same as a loop, and what their ops refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_bits_equal, gradients_of
from torch import Tensor

import snnfast
from snnfast._program.between import Between, Product, unroll
from snnfast._program.run import Program

pytestmark = pytest.mark.needs_extension

T = 5
PRODUCTS = {
    "linear": [Product("linear", 0, 0, 2)],
    "linear without a bias": [Product("linear", 1, 0)],
    "mm": [Product("mm", 0, 0)],
    "bmm": [Product("bmm", 1, 0)],
    "several of one state": [Product("mm", 0, 0), Product("linear", 0, 0, 2), Product("bmm", 0, 1)],
}


def program_of(count: int) -> Program:
    """Two states, a series, and a parameter of the last dimension; smooth, so that it can be checked."""

    def step(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        *made, v, w, decay = others
        total = x
        for y in made:
            total = total + y
        after = decay * v + torch.tanh(total) - 0.5 * w
        return after * v, after, torch.sigmoid(after) + 0.1 * total

    return Program(step, 1 + count, 2, 1)


def given(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A series, two states, two weights, a bias and the parameter."""
    g, n = torch.Generator().manual_seed(0), shape[-1]
    sizes = (T, *shape), shape, shape, (n, n), (n, n), (n,), (n,)
    made = [torch.randn(size, generator=g, dtype=dtype).mul_(0.5) for size in sizes]
    return [(t / n**0.5 if t.shape == (n, n) else t).requires_grad_() for t in made]


def of(name: str) -> tuple[Program, Between]:
    products = PRODUCTS[name]
    return program_of(len(products)), Between(tuple(products), (1, 2, 4), (3,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 16), (3, 5), (2, 300)], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_the_loop(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    program, between = of(name)
    tensors = given(shape, dtype)
    ours = unroll(program, between, tensors, T)
    with torch.no_grad():
        alone = unroll(program, between, tensors, T)
    with snnfast.use_backend("reference"):
        theirs = unroll(program, between, tensors, T)
    for a, b, c in zip(ours, theirs, alone, strict=True):
        torch.testing.assert_close(a, b)  # tanh and sigmoid are to rounding
        assert_bits_equal(a, c)
    for a, b in zip(gradients_of(list(ours), tensors), gradients_of(list(theirs), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["linear", "several of one state"])
def test_derivatives(name: str) -> None:
    program, between = of(name)
    tensors = given((2, 2))

    def f(*tensors: Tensor) -> tuple[Tensor, ...]:
        return unroll(program, between, tensors, T)

    assert torch.autograd.gradcheck(f, tensors)
    assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)


def test_arguments_that_are_computed_from_one_another() -> None:
    """Where the gradients may be differentiated, none of them counts what comes by way of another argument."""
    program, between = of("linear")
    x, *others, decay = given((2, 3))
    outputs = unroll(program, between, [x * decay, *others, decay], T)
    found = torch.autograd.grad(outputs[0].sum(), [x, decay], create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(outputs[0].sum(), [x, decay]))


def test_steps_of_more_dimensions_and_states_that_are_numbers() -> None:
    program, between = of("linear")
    x, v, w, *constants = given((2, 3, 4), torch.float32)
    found = unroll(program, between, [x, v, 0.25, *constants], T)
    wanted = unroll(program, between, [x, v, torch.full_like(w, 0.25), *constants], T)
    for a, b in zip(found, wanted, strict=True):
        assert_bits_equal(a, b)
    assert found[0].shape == x.shape


def test_only_what_is_asked_for_has_a_gradient() -> None:
    program, between = of("several of one state")
    everything = given((2, 3))
    wanted = torch.autograd.grad(unroll(program, between, everything, T)[0].sum(), everything)
    for chosen, gradient in enumerate(wanted):
        tensors = [t.detach().requires_grad_(i == chosen) for i, t in enumerate(everything)]
        (found,) = torch.autograd.grad(unroll(program, between, tensors, T)[0].sum(), tensors[chosen])
        torch.testing.assert_close(found, gradient)


# ---- what the ops refuse


def arguments(direction: str) -> dict[str, Any]:
    program, _ = of("linear")
    x, v, w, weight, _, bias, decay = (t.detach() for t in given((3, 4), torch.float32))
    codes = program.plain.codes(torch.float32, 2, (True,) * sum(program.counts))
    forward = codes.forward
    found: dict[str, Any] = {
        "like": torch.empty(0), "series": [x.flatten(1)], "states": [v.flatten(), w.flatten()], "parameters": [decay],
        "weights": [weight], "biases": [bias], "of_states": [0], "columns": 4, "code": forward.words,
        "constants": forward.constants, "steps": T, "neurons": 12, "keep": True,
    }  # fmt: skip
    if direction == "forward":
        return found
    *_, tape, made = torch.ops.snnfast.program_between_forward(*found.values())
    code = codes.backward((0,), (True, True, True))
    return {
        "like": torch.empty(0), "series": [x.flatten(1), made], "parameters": [decay], "tape": tape,
        "grad_outputs": [torch.ones(T, 12)], "grad_last": [torch.zeros(())] * 2, "weights": [weight],
        "of_states": [0], "columns": 4, "code": code.words, "constants": code.constants, "steps": T, "neurons": 12,
    }  # fmt: skip


WRONG: dict[str, Callable[[], Any]] = {
    "like": lambda: torch.empty(0, dtype=torch.float16),
    "series": lambda: [torch.rand(T, 11)],
    "weights": lambda: [torch.rand(4, 3)],
    "of_states": lambda: [2],
    "columns": lambda: 5,
    "steps": lambda: -1,
    "neurons": lambda: 13,
    "code": lambda: torch.zeros(3, dtype=torch.int32),
}
WRONG_FORWARD = {"biases": list, "states": lambda: [torch.rand(12), torch.rand(())]}
WRONG_BACKWARD = {"tape": lambda: torch.rand(3, 12), "grad_outputs": list, "grad_last": list}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ops_refuse_what_does_not_fit(direction: str) -> None:
    op = getattr(torch.ops.snnfast, f"program_between_{direction}")
    good = arguments(direction)
    op(*good.values())
    for name, wrong in (WRONG | (WRONG_FORWARD if direction == "forward" else WRONG_BACKWARD)).items():
        with pytest.raises(RuntimeError):
            op(*(good | {name: wrong()}).values())
    for changed in ({"weights": [torch.rand(4, 4, dtype=torch.float64)]}, {"of_states": [-1]}, {"of_states": []}):
        with pytest.raises(RuntimeError, match=r"(weights|of_states): "):
            op(*(good | changed).values())
