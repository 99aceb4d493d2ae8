"""Programs with products between their steps: against the same as a loop, and what their ops refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_bits_equal, gradients_of
from torch import Tensor

import snnfast
from snnfast._program.between import Between, Part, Product, Source, unroll
from snnfast._program.run import Program

pytestmark = pytest.mark.needs_extension

T = 5
V, W = Source(0, 0), Source(0, 1)
PRODUCTS = {
    "linear": [Product("linear", V, 0, 0, 2)],
    "linear without a bias": [Product("linear", W, 0, 0)],
    "mm": [Product("mm", V, 0, 0)],
    "bmm": [Product("bmm", W, 0, 0)],
    "several of one state": [Product("mm", V, 0, 0), Product("linear", V, 0, 0, 2), Product("bmm", V, 0, 1)],
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


def gated(x: Tensor, i: Tensor, f: Tensor, g: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    c = torch.sigmoid(f) * c + torch.sigmoid(i + x) * torch.tanh(g)
    return c * x, torch.tanh(c) + 0.1 * h, c


def first(x: Tensor, y: Tensor, v: Tensor, decay: Tensor) -> tuple[Tensor, ...]:
    v = decay * v + torch.tanh(x + y)
    return torch.sigmoid(v), v * x, v


def second(y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    w = 0.5 * w + torch.tanh(y)
    return w * w, w


def of(name: str) -> Between:
    """A recurrence; what it takes is of the sizes of :func:`given`."""
    if name in PRODUCTS:
        products = PRODUCTS[name]
        return Between((Part(program_of(len(products)), (0,), (0, 1), (3,)),), tuple(products), (1, 2, 4))
    if name == "gates":  # of which nothing reads one
        made = (Product("linear", V, 0, 0, 1, pieces=3), Product("mm", W, 0, 2))

        def step(x: Tensor, i: Tensor, f: Tensor, _: Tensor, y: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            return gated(x, i, f, y, *others)

        return Between((Part(Program(step, 5, 2, 0), (0,), (0, 1), ()),), made, (1, 2, 3))
    assert name == "layers of several widths"
    parts = Part(Program(first, 2, 1, 1, 2), (0,), (0,), (3,)), Part(Program(second, 1, 1, 0), (), (1,), ())
    made = Product("linear", Source(1, 0), 0, 0, 2), Product("mm", Source(0, 0, now=True), 1, 1)
    return Between(parts, made, (1, 2, 4))


NAMES = [*PRODUCTS, "gates", "layers of several widths"]


def given(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, name: str = "linear") -> list[Tensor]:
    """A series, two states, and the constants: weights, biases and parameters."""
    n, m = shape[-1], shape[-1] // 2 + 1
    sizes: list[tuple[int, ...]] = [(T, *shape), shape, shape, (n, n), (n, n), (n,), (n,)]
    if name == "gates":
        sizes = [(T, *shape), shape, shape, (3 * n, n), (3 * n,), (n, n)]
    elif name == "layers of several widths":
        sizes = [(T, *shape), shape, (*shape[:-1], m), (n, m), (n, m), (n,), (n,)]
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=g, dtype=dtype).mul_(0.5) for size in sizes]
    weights = {i for i, size in enumerate(sizes) if i > 2 and len(size) == 2}
    return [(t / n**0.5 if i in weights else t).requires_grad_() for i, t in enumerate(made)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 16), (3, 5), (2, 300)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_loop(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    between, tensors = of(name), given(shape, dtype, name)
    ours = unroll(between, tensors, T)
    with torch.no_grad():
        alone = unroll(between, tensors, T)
    with snnfast.use_backend("reference"):
        theirs = unroll(between, tensors, T)
    for a, b, c in zip(ours, theirs, alone, strict=True):
        torch.testing.assert_close(a, b)  # tanh and sigmoid are to rounding
        assert_bits_equal(a, c)
    for a, b in zip(gradients_of(list(ours), tensors), gradients_of(list(theirs), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["linear", "several of one state", "gates", "layers of several widths"])
def test_derivatives(name: str) -> None:
    between, tensors = of(name), given((2, 2), name=name)

    def f(*tensors: Tensor) -> tuple[Tensor, ...]:
        return unroll(between, tensors, T)

    assert torch.autograd.gradcheck(f, tensors)
    assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)


@pytest.mark.parametrize("shape", [(4, 16), (3, 5)], ids=str)
@pytest.mark.parametrize("decay", ["each", "one"])
def test_gradients_of_parameters_over_many_steps(shape: tuple[int, ...], decay: str) -> None:
    """Their sums of 16 steps at a time are in the dtype of the call, and those of all steps in float64."""
    between = of("linear")
    x, *others, each = given(shape, torch.float32)
    x = torch.cat([x.detach()] * 9)[:40].requires_grad_()
    last = each if decay == "each" else torch.tensor(0.7, requires_grad=True)
    found = gradients_of([unroll(between, [x, *others, last], 40)[0]], [*others, last])
    doubles = [t.detach().double().requires_grad_() for t in (x, *others, last)]
    with snnfast.use_backend("reference"):
        wanted = gradients_of([unroll(between, doubles, 40)[0]], doubles[1:])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_arguments_that_are_computed_from_one_another() -> None:
    """Where the gradients may be differentiated, none of them counts what comes by way of another argument."""
    between = of("linear")
    x, *others, decay = given((2, 3))
    outputs = unroll(between, [x * decay, *others, decay], T)
    found = torch.autograd.grad(outputs[0].sum(), [x, decay], create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(outputs[0].sum(), [x, decay]))


def test_steps_of_more_dimensions_and_states_that_are_numbers() -> None:
    between = of("linear")
    x, v, w, *constants = given((2, 3, 4), torch.float32)
    found = unroll(between, [x, v, 0.25, *constants], T)
    wanted = unroll(between, [x, v, torch.full_like(w, 0.25), *constants], T)
    for a, b in zip(found, wanted, strict=True):
        assert_bits_equal(a, b)
    assert found[0].shape == x.shape


@pytest.mark.parametrize("name", ["several of one state", "gates", "layers of several widths"])
def test_only_what_is_asked_for_has_a_gradient(name: str) -> None:
    between, everything = of(name), given((2, 3), name=name)
    wanted = torch.autograd.grad(unroll(between, everything, T)[0].sum(), everything)
    for chosen, gradient in enumerate(wanted):
        tensors = [t.detach().requires_grad_(i == chosen) for i, t in enumerate(everything)]
        (found,) = torch.autograd.grad(unroll(between, tensors, T)[0].sum(), tensors[chosen])
        torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("number", range(4))
def test_each_result_by_itself_has_the_gradients_of_the_loop(number: int) -> None:
    between, tensors = of("layers of several widths"), given((3, 6), name="layers of several widths")
    with snnfast.use_backend("reference"):
        wanted = gradients_of([unroll(between, tensors, T)[number]], tensors)
    for a, b in zip(gradients_of([unroll(between, tensors, T)[number]], tensors), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_an_output_that_a_product_reads_must_not_change_before_backward() -> None:
    between, tensors = of("layers of several widths"), given((3, 6), name="layers of several widths")
    found = unroll(between, tensors, T)
    found[0].detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found[2].sum().backward()


def test_a_buffer_may_change_before_backward() -> None:
    between, (*others, decay) = of("linear"), given((3, 6))
    decay = decay.detach()
    wanted = gradients_of([unroll(between, [*others, decay], T)[0]], others)
    found = unroll(between, [*others, decay], T)[0]
    decay.zero_()
    for a, b in zip(gradients_of([found], others), wanted, strict=True):
        assert_bits_equal(a, b)


# ---- what the ops refuse


def arguments(direction: str) -> dict[str, Any]:
    between = of("layers of several widths")
    x, v, w, back, there, bias, decay = (t.detach() for t in given((3, 4), torch.float32, "layers of several widths"))
    codes = [part.program.plain.codes(torch.float32, 2, (True,) * sum(part.program.counts)) for part in between.parts]
    forward = [c.forward for c in codes]
    products = [n for p in between.products for n in p.numbers()]
    found: dict[str, Any] = {
        "like": torch.empty(0), "series": [x.flatten(1)], "states": [v.flatten(), w.flatten()], "parameters": [decay],
        "codes": [c.words for c in forward], "constants": [c.constants for c in forward],
        "counts": [1, 1, 1, 4, 0, 1, 0, 3], "weights": [back, there], "biases": [bias, None], "products": products,
        "steps": T, "rows": 3, "keep": True,
    }  # fmt: skip
    if direction == "forward":
        return found
    *_, tape, other, piece, other_piece = torch.ops.snnfast.program_between_forward(*found.values())
    backward = [c.backward((0,), (True,) * (3, 1)[i]) for i, c in enumerate(codes)]
    return {
        "like": torch.empty(0), "series": [x.flatten(1), piece, other_piece], "parameters": [decay],
        "tapes": [tape, other], "grad_outputs": [None, torch.ones(T, 9)], "grad_last": [torch.zeros(())] * 2,
        "codes": [c.words for c in backward], "constants": [c.constants for c in backward],
        "counts": [2, 1, 1, 4, 1, 1, 0, 3], "outputs": [1, 1], "weights": [back, there.t()], "products": products,
        "steps": T, "rows": 3,
    }  # fmt: skip


WRONG: dict[str, Callable[[Any], Any]] = {
    "like": lambda _: torch.empty(0, dtype=torch.float16),
    "series": lambda given: [torch.rand(T, 11), *given[1:]],
    "weights": lambda given: [torch.rand(4, 4), given[1]],
    "counts": lambda given: given[:-1],
    "constants": lambda given: given[:1],
    "steps": lambda _: -1,
    "rows": lambda _: 13,
    "codes": lambda given: [torch.zeros(3, dtype=torch.int32), given[1]],
}
WRONG_FORWARD = {"biases": lambda _: [], "states": lambda given: [given[0], torch.rand(())]}
WRONG_BACKWARD = {
    "tapes": lambda given: [torch.rand(3, 12), given[1]],
    "grad_outputs": lambda given: given[:1],
    "grad_last": lambda _: [],
    "outputs": lambda _: [1, 2],
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ops_refuse_what_does_not_fit(direction: str) -> None:
    op = getattr(torch.ops.snnfast, f"program_between_{direction}")
    good = arguments(direction)
    op(*good.values())
    for name, wrong in (WRONG | (WRONG_FORWARD if direction == "forward" else WRONG_BACKWARD)).items():
        with pytest.raises(RuntimeError):
            op(*(good | {name: wrong(good[name])}).values())
    with pytest.raises(RuntimeError, match="weights: "):
        op(*(good | {"weights": [w.double() for w in good["weights"]]}).values())


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("place", "number"),
    [(0, 2), (0, -1), (1, 0), (1, 2), (2, 2), (2, -1), (4, 1), (4, -1), (5, 0), (9, 2)],
)
def test_ops_refuse_products_of_what_is_not_there(direction: str, place: int, number: int) -> None:
    """To a part, in pieces, from a part, of this step, of a result."""
    op = getattr(torch.ops.snnfast, f"program_between_{direction}")
    good = arguments(direction)
    products = [number if i == place else n for i, n in enumerate(good["products"])]
    with pytest.raises(RuntimeError, match=r"(products|weights|series): "):
        op(*(good | {"products": products}).values())
