"""What the tests of spikes as bits share: calls with a linear layer behind the neurons, and who computes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gradient_checks import check_against_reference
from helpers import Case, Tensors, inputs

from snnfast._core import ops


@contextmanager
def counting() -> Iterator[list[str]]:
    """The products that are computed from bits, and the gradients of their weights, in order."""
    calls: list[str] = []
    forward, weight = ops.spikes_linear, ops.spikes_linear_weight

    def counted(op: Any, name: str) -> Any:
        def call(*args: Any) -> Any:
            calls.append(name)
            return op(*args)

        return call

    ops.spikes_linear, ops.spikes_linear_weight = counted(forward, "product"), counted(weight, "weight")
    try:
        yield calls
    finally:
        ops.spikes_linear, ops.spikes_linear_weight = forward, weight


def by_events(function: Any, *args: Any) -> bool:
    """Whether a call computes one product from bits, or none."""
    with counting() as calls, torch.no_grad():
        function(*args)
    assert calls in ([], ["product"])
    return bool(calls)


def with_linear(case: Case, outputs: int = 10, bias: bool = True, seed: int = 0) -> Tensors:
    """The inputs of a case, with a weight and a bias."""
    made = torch.Generator().manual_seed(seed)
    given = {"weight": (outputs, case.shape[-1]), **({"bias": (outputs,)} if bias else {})}
    tensors = {n: torch.randn(shape, generator=made, dtype=torch.float64).to(case.dtype) for n, shape in given.items()}
    return {**inputs(case, seed=seed), **tensors}


def check(
    case: Case,
    outputs: int = 10,
    bias: bool = True,
    flow: str = "both",
    wrt: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """States bit for bit those of the reference; the product and every gradient up to rounding."""
    tensors = with_linear(case, outputs, bias, seed)
    check_against_reference(case, torch.device("cpu"), flow, wrt=wrt or tuple(tensors), tensors=tensors)


def fits(case: Case) -> bool:
    """Whether the height of a spike is the same in all rows, and there are neurons."""
    heights = inputs(case)["graded_spikes_factor"]
    assert heights is not None
    return case.steps > 0 and torch.Size(case.shape).numel() > 0 and all(n == 1 for n in heights.shape[:-1])
