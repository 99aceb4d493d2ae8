"""Steps that lie in memory in another order, such as channels_last, are read and written in place, to the same bits."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    FLOATS,
    HALVES,
    NEURONS,
    VARIANTS,
    Case,
    Outputs,
    Tensors,
    assert_bits_equal,
    assert_close,
    emulated_if_thorough,
    fused,
    inputs,
    layer_of,
    leaves,
    random_cases,
)
from layouts import CHANNELS_LAST, ORDERS, SHAPES, in_order, in_place, moved, strides_in
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

import snnfast
from snnfast._core import ops
from snnfast.functional import lif

PLAIN = (0, 1, 2, 3)

neurons = pytest.mark.parametrize("neuron", NEURONS)
orders = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


def with_gradients(
    tensors: Tensors, case: Case, of: Callable[[Tensor], Tensor] | None = None, outputs_too: bool = True
) -> Outputs:
    """Outputs, and the gradients of all inputs; ``of``: the gradient of an output, by default in its own layout."""
    asking = {n: t for n, t in in_place(tensors, case.wrt).items() if t is not None}
    outputs = fused({**tensors, **asking}, case)
    asked = [t for t in outputs.values() if t.requires_grad]
    weights = [(of or in_own_layout)(t) for t in asked]
    wanted = {f"grad of {n}": t for n, t in asking.items() if t.requires_grad}
    found = dict(zip(wanted, torch.autograd.grad(asked, list(wanted.values()), weights), strict=True))
    return outputs | found if outputs_too else found


def in_own_layout(t: Tensor) -> Tensor:
    values = torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64).view(t.shape)
    return torch.empty_like(t).copy_(values.to(t))


def assert_same(found: Outputs, plain: Outputs, case: Case, what: object = "") -> None:
    for name, t in plain.items():
        # PyTorch adds up what it makes of a recorded membrane in the order of the memory.
        if case.has("callable") and name in ("grad of threshold", "grad of graded_spikes_factor"):
            assert_close(found[name], t, 1e-2 if case.dtype in HALVES else 1e-5, f"{case}: {name}")
        elif _summed_by_the_kernel(name, t, case):
            assert_close(found[name], t, 1e-11 if case.acc == torch.float64 else 1e-6, f"{case}: {name}")
        else:
            assert_bits_equal(found[name], t, f"{case}, {what}: {name}")


def _summed_by_the_kernel(name: str, grad: Tensor, case: Case) -> bool:
    """In the order of the memory: on CUDA, the gradient of a parameter that is one number."""
    on_cuda = grad.is_cuda or ops.spikes_linear is None  # the emulated kernels have none
    return on_cuda and grad.numel() == 1 and name.removeprefix("grad of ") in case.kind.ops.parameters


@orders
@neurons
def test_equals_the_contiguous_copy_in_its_own_layout(neuron: str, order: Sequence[int], device: torch.device) -> None:
    variants = [v for v in VARIANTS if v != "callable+count"]  # added up by PyTorch
    shape = SHAPES[len(order)]
    for i, case in enumerate(random_cases(30, 1, neuron=(neuron,), variant=variants, shape=(shape,), steps=(2, 5, 20))):
        plain = inputs(case, device, seed=i)
        found = with_gradients(moved(plain, order), case)
        assert_same(found, with_gradients(plain, case), case)
        states = case.kind.ops.states
        for name in ("spk", *states, "grad of current", *(f"grad of {s}" for s in states)):
            if name in found and not case.has("step"):  # those are stacked by PyTorch
                assert found[name].stride() == strides_in(order, found[name]), f"{case}: {name}"
                assert not found[name]._is_view(), f"{case}: {name}"


def copied(function: Callable[[], object]) -> list[int]:
    """How many elements each copy of a tensor copied while a function ran, but for thresholds, which may move."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        function()
    copies = [e.input_shapes[0] for e in profiled.events() if e.name in ("aten::copy_", "aten::clone")]
    return [n for n in (torch.Size(shape).numel() for shape in copies) if n > SHAPES[4][1]]  # channels


@emulated_if_thorough
@neurons
def test_nothing_is_copied(neuron: str, device: torch.device) -> None:
    """Neither tensors over time nor parameters for each channel; nor in the backward pass of the current and states."""
    variants = ("unroll", "constant", "count", "step")
    for order, variant, record_mem in itertools.product(ORDERS.values(), variants, (True, False)):
        parameters = "channel" if len(order) > 3 else "scalar"
        unrolled = variant.replace("step", "unroll")
        case = Case(neuron, unrolled, 3, SHAPES[len(order)], record_mem=record_mem, parameters=parameters)
        given = in_place(moved(inputs(case, device), order), ("current", *case.kind.ops.states))

        def train(case: Case = case, given: Tensors = given) -> None:
            outputs = list(fused(given, case).values())
            asking = [t for t in given.values() if t is not None and t.requires_grad]
            torch.autograd.grad(outputs, asking, [torch.ones_like(t) for t in outputs])

        layer = layer_of(case, given)

        def step(case: Case = case, given: Tensors = given, layer: Any = layer) -> None:
            x = given["current"][0]  # type: ignore[index]
            for t in layer(x, *(given[s] for s in case.kind.ops.states)):
                assert t.stride() == x.stride()
                torch.autograd.grad(t, x, torch.ones_like(t), retain_graph=True)

        assert copied(step if variant == "step" else train) == [], str(case)
    gaps = torch.rand(3, 10, 2, device=device)[..., 0]
    assert copied(lambda: lif(gaps, beta=0.9))  # what is not dense is


# What a gradient [T, *] that repeats its rows may look like in memory, of a row [*].
ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda row: row,
    "channels last": lambda row: in_order(row, CHANNELS_LAST),
    "of each neuron": lambda row: row[:1].expand_as(row),
    "one number": lambda row: row[0, 0, 0, 0].expand_as(row),
    "gaps": lambda row: torch.stack([row, row + 1], dim=-1)[..., 0],
}


def beside_nan(t: Tensor, dim: int) -> Tensor:
    return torch.cat([t, torch.full_like(t, math.nan)], dim=dim)


# How a current [T, B, C, H, W] may lie in memory. What is not dense with time first is copied.
CURRENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "between gaps": lambda x: in_order(beside_nan(x, 2), CHANNELS_LAST)[:, :, : x.shape[2]],
    "every other one": lambda x: torch.stack([x, torch.full_like(x, math.nan)], dim=-1).flatten(-2)[..., ::2],
    "misaligned": lambda x: torch.cat([x.new_full((1,), math.nan), x.flatten()])[1:].view(x.shape),
    "one channel": lambda x: x[:, :, :1].expand_as(x),
    "one sample": lambda x: x[:, :1].expand_as(x),
    "time innermost": lambda x: x.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    "time second": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "some steps": lambda x: in_order(x.repeat_interleave(2, 0), CHANNELS_LAST)[::2],
    "some samples": lambda x: in_order(torch.cat([x[:, :1], x], 1), CHANNELS_LAST)[:, 1:],
    **{f"one step, {name}": lambda x, row=row: row(x[0]).expand_as(x) for name, row in ROWS.items()},
}


def with_states(tensors: Tensors, current: Sequence[int], *orders: Sequence[int]) -> Tensors:
    """The current, and each state, in an order of its own."""
    tensors = moved(tensors, current, ("current",))
    for name, order in zip(("mem", "syn"), orders, strict=True):
        tensors = moved(tensors, order, (name,))
    return tensors


# How the tensors of a call may lie in memory.
CALLS: dict[str, Callable[[Tensors], Tensors]] = {
    **{name: lambda given, how=how: {**given, "current": how(given["current"])} for name, how in CURRENTS.items()},
    **{
        f"states {i}": lambda given, orders=orders: with_states(given, *orders)
        for i, orders in enumerate(itertools.permutations((PLAIN, CHANNELS_LAST, (3, 2, 1, 0))))
    },
    "all": lambda given: moved(given, CHANNELS_LAST, given),
    "parameters": lambda given: moved(given, CHANNELS_LAST, given.keys() - {"current", "syn", "mem"}),
    "states of one number": lambda given: {
        name: t[:1, :1, :1, :1].expand_as(t) if name in ("syn", "mem") else t for name, t in given.items()
    },
    "parameters of one number": lambda given: {
        name: t if name in ("current", "syn", "mem") else t[:1, :1, :1, :1].expand_as(t) for name, t in given.items()
    },
}


@neurons
@pytest.mark.parametrize("name", CALLS)
def test_equals_a_call_of_contiguous_tensors(name: str, neuron: str, device: torch.device) -> None:
    for variant, dtype in (("unroll", torch.float32), ("step", torch.float64)):
        case = Case(neuron, variant, 6, SHAPES[4], dtype, parameters="element")
        given = CALLS[name](inputs(case, device))
        plain = {n: t if t is None else t.contiguous() for n, t in given.items()}
        found = with_gradients(given, case)
        assert_same(found, with_gradients(plain, case), case, name)
        assert variant == "step" or not found["spk"]._is_view()


@emulated_if_thorough
@neurons
def test_a_gradient_in_another_layout(neuron: str, device: torch.device) -> None:
    for variant in ("unroll", "step", "count"):
        case = Case(neuron, variant, 6, SHAPES[4], states=False)
        tensors = in_place(moved(inputs(case, device), CHANNELS_LAST))
        current = tensors["current"]
        assert current is not None
        spk = fused(tensors, case)["spk"]
        weights = torch.rand(spk.shape, device=device)
        for given in (weights, weights[..., :1].expand_as(spk)):
            moved_there, at_home = (
                torch.autograd.grad(spk, current, w, retain_graph=True)[0]
                for w in (in_order(given, CHANNELS_LAST), given)
            )
            assert_bits_equal(moved_there, at_home)
            assert moved_there.stride() == at_home.stride() == current.stride()


@emulated_if_thorough
@neurons
def test_held_states_can_be_detached_and_changed_in_place(neuron: str, device: torch.device) -> None:
    case = Case(neuron, "unroll", 5, (2, 3, 4, 4))
    given = leaves(inputs(case, device), ())
    layer = layer_of(case, given, init_hidden=True)
    x = in_order(torch.rand(5, 2, 3, 4, 4, device=device), CHANNELS_LAST).requires_grad_()
    for call in (lambda: layer(x[0]), lambda: layer.unroll(x), lambda: layer.unroll(x, record_mem=False)):
        call()
        assert all(getattr(layer, name).stride() == x[0].stride() for name in case.kind.ops.states)
        type(layer).detach_hidden()
    spk, *states = layer_of(case, given).unroll(x, record_mem=False)
    for state in states:
        state += 1
    (spk.sum() + sum(s.sum() for s in states)).backward()
    assert x.grad is not None


# ---- what is the same at every step, as the gradient of a sum over time is, is read from one row ------------------

# Where time is a dimension of what is returned.
OVER_TIME = [v for v in VARIANTS if "step" not in v and "count" not in v]
SHAPE = (2, 3, 4, 5)


def cases(neuron: str, number: int) -> Iterator[Case]:
    dtypes = FLOATS + HALVES
    drawn = random_cases(number, 3, neuron=(neuron,), variant=OVER_TIME, shape=(SHAPE,), steps=(2, 5, 20, 33))
    return (replace(case, dtype=dtypes[i % len(dtypes)]).fitted() for i, case in enumerate(drawn))


@neurons
@pytest.mark.parametrize("row", ROWS)
def test_a_gradient_that_repeats_its_rows(row: str, neuron: str, device: torch.device) -> None:
    for i, case in enumerate(cases(neuron, 16)):
        plain = inputs(case, device, seed=i)
        tensors = plain if i % 2 else {**plain, "current": in_order(plain["current"], CHANNELS_LAST)}  # type: ignore[arg-type]
        values = ROWS[row](torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(i)))

        def repeated(t: Tensor, values: Tensor = values) -> Tensor:
            return values.to(t).expand(t.shape)

        def over_time(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda t: of(t) if t.dim() > len(SHAPE) else torch.ones_like(t)

        found = with_gradients(tensors, case, over_time(repeated), outputs_too=False)
        dense = over_time(lambda t, repeated=repeated: repeated(t).contiguous())
        expected = with_gradients(tensors, case, dense, outputs_too=False)
        assert_same(found, expected, case, row)


@emulated_if_thorough
@neurons
def test_one_row_is_copied_at_most(neuron: str, device: torch.device) -> None:
    """Of a gradient that is a number only that; and none of one that is a row."""
    steps, shape = 12, (4, 30)
    for record_mem in (True, False):
        case = Case(neuron, "unroll", steps, shape, record_mem=record_mem)
        given = in_place(inputs(case, device), ("current",))
        outputs = [t for t in fused(given, case).values() if t.dim() == 3]
        total = sum(t.sum() for t in outputs)
        assert max(copied(total.backward)) <= 4 * 30  # type: ignore[union-attr]
        spk = fused(given, case)["spk"]
        weights = torch.rand(shape, device=device)
        assert copied(lambda spk=spk, weights=weights: spk.backward(weights.expand_as(spk), retain_graph=True)) == []
        count = spk.sum(0)
        assert copied(lambda count=count, weights=weights: count.backward(weights)) == []


@emulated_if_thorough
def test_a_current_that_repeats_its_rows_is_not_copied(device: torch.device) -> None:
    x = torch.rand(4, 30, device=device).expand(12, 4, 30).requires_grad_()
    spk, mem = lif(x, beta=0.9)
    assert copied(lambda: lif(x, beta=0.9)) == []
    assert copied(lambda: torch.autograd.grad(spk, x, torch.ones_like(spk))) == []
    assert spk.is_contiguous()
    assert mem.is_contiguous()


@snnfast.neuron
def filtered(x: Tensor, mem: Tensor, trace: Tensor, *, beta: Any = 0.9, rho: Any = 0.8) -> Any:
    mem = beta * mem + x
    spk = snnfast.spike(mem - 1.0, snnfast.surrogate.fast_sigmoid())
    return spk, mem - spk.detach(), rho * trace + spk


@orders
@pytest.mark.parametrize("how", ["unroll", "lengths", "sum"])
def test_a_neuron_of_the_users_own_has_the_order_of_its_current(
    how: str, order: Sequence[int], device: torch.device
) -> None:
    shape = SHAPES[len(order)]
    x, mem, trace = (torch.rand(*t, *shape, device=device) for t in ((5,), (), ()))
    beta = torch.rand(shape[1], *(1,) * (len(shape) - 2), device=device)
    options: dict[str, Any] = {} if how == "unroll" else {"reduce": "sum"}
    if how == "lengths":
        options = {"lengths": torch.tensor([5, 0, 2, 3][: shape[0]], device=device)}
    results = []
    for now in (order, range(len(order))):
        layer = filtered(beta=nn.Parameter(beta.clone()), rho=nn.Parameter(torch.tensor(0.8, device=device)))
        given = [in_order(t, now).requires_grad_() for t in (x, mem, trace)]
        found = pytree.tree_leaves(layer.unroll(given[0], *given[1:], **options))
        grads = torch.autograd.grad(sum(in_own_layout(t).mul(t).sum() for t in found), [*given, *layer.parameters()])
        results.append([*found, *grads])
    for i, (t, plain) in enumerate(zip(*results, strict=True)):
        if t.numel() == 1:  # summed over the neurons
            assert_close(t, plain, 1e-6)
        else:
            assert_bits_equal(t, plain, str(i))
        if t.shape[-len(shape) :] == shape:
            assert t.stride() == strides_in(order, t), i
    for spk, *_ in results:
        spk.mul_(2.0)  # an output may be changed in place
