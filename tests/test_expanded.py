"""What is the same at every step, as the gradient of a sum over time is, is read from one row: to the same bits."""

from collections.abc import Callable, Iterator
from dataclasses import replace

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
    fused,
    inputs,
    random_cases,
)
from test_layout import CHANNELS_LAST, assert_same, in_order, in_place, with_gradients
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from snnfast.functional import lif

neurons = pytest.mark.parametrize("neuron", NEURONS)
# Where time is a dimension of what is returned.
OVER_TIME = [v for v in VARIANTS if "step" not in v and "count" not in v]
SHAPE = (2, 3, 4, 5)

# What a gradient [T, *] that repeats its rows may look like in memory, of a row [*].
ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda row: row,
    "channels last": lambda row: in_order(row, CHANNELS_LAST),
    "of each neuron": lambda row: row[:1].expand_as(row),
    "one number": lambda row: row[0, 0, 0, 0].expand_as(row),
    "gaps": lambda row: torch.stack([row, row + 1], dim=-1)[..., 0],
}


def gradients(tensors: Tensors, case: Case, of: Callable[[Tensor], Tensor]) -> Outputs:
    """Of all inputs, by name; ``of``: the gradient of an output."""
    given = in_place(tensors, case.wrt)
    asking = {n: t for n, t in given.items() if t is not None and t.requires_grad}
    outputs = [t for t in fused(given, case).values() if t.requires_grad]
    weights = [of(t) if t.dim() > len(case.shape) else torch.ones_like(t) for t in outputs]
    found = torch.autograd.grad(outputs, list(asking.values()), weights)
    return {f"grad of {name}": g for name, g in zip(asking, found, strict=True)}


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

        found = gradients(tensors, case, repeated)
        expected = gradients(tensors, case, lambda t, repeated=repeated: repeated(t).contiguous())
        assert_same(found, expected, case, row)


@neurons
def test_a_current_that_repeats_its_rows(neuron: str, device: torch.device) -> None:
    for i, case in enumerate(cases(neuron, 16)):
        if case.has("constant"):
            continue
        plain = inputs(case, device, seed=i)
        current = plain["current"]
        assert current is not None
        for name, row in ROWS.items():
            repeated = row(current[0]).expand_as(current)
            found = with_gradients({**plain, "current": repeated}, case)
            assert_same(found, with_gradients({**plain, "current": repeated.contiguous()}, case), case, name)
            assert found["spk"].shape == found["grad of current"].shape == current.shape
            assert not found["spk"]._is_view()


def copied(function: Callable[[], object]) -> list[int]:
    """How many elements each copy of a tensor copied while a function ran."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        function()
    return [
        torch.Size(e.input_shapes[0]).numel() for e in profiled.events() if e.name in ("aten::copy_", "aten::clone")
    ]


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


def test_a_current_that_repeats_its_rows_is_not_copied(device: torch.device) -> None:
    x = torch.rand(4, 30, device=device).expand(12, 4, 30).requires_grad_()
    spk, mem = lif(x, beta=0.9)
    assert copied(lambda: lif(x, beta=0.9)) == []
    assert copied(lambda: torch.autograd.grad(spk, x, torch.ones_like(spk))) == []
    assert spk.is_contiguous()
    assert mem.is_contiguous()


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_wrong_shape_is_still_refused(device: torch.device) -> None:
    from snnfast import _ops

    x, number = torch.rand(5, 3), torch.tensor(0.5)
    needs = _ops.pack(time=_ops.SEQUENCE, reset_delay=1, saved=_ops.SAVE_CHECKPOINTS, needs=1)
    arguments = (None, None, None, x, None, None, None, None, number, number, number, 5, needs, 2.0, 0.0)
    for grad in (torch.ones(()).expand(6, 3), torch.ones(()).expand(5, 4), torch.ones(()).expand(5, 3, 1)):
        with pytest.raises(RuntimeError, match="grad_spk: wrong shape"):
            _ops.LEAKY.backward(grad, *arguments)
    with pytest.raises(RuntimeError, match="wrong dtype"):
        _ops.LEAKY.backward(torch.ones((), dtype=torch.float64).expand(5, 3), *arguments)
    (found,) = _ops.LEAKY.backward(torch.ones(()).expand(5, 3), *arguments)
    (expected,) = _ops.LEAKY.backward(torch.ones(5, 3), *arguments)
    assert_bits_equal(found, expected)
