"""What the tests of spikes as bits share: calls with a linear layer behind the neurons, and who computes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gradient_checks import RELATIVE, gradients, or_zeros
from helpers import Case, Tensors, assert_bits_equal, assert_close, expected, fused, inputs, leaves

from snnfast import _ops


@contextmanager
def counting() -> Iterator[list[str]]:
    """The products that are computed from bits, and the gradients of their weights, in order."""
    calls: list[str] = []
    forward, weight = _ops.spikes_linear, _ops.spikes_linear_weight

    def counted(op: Any, name: str) -> Any:
        def call(*args: Any) -> Any:
            calls.append(name)
            return op(*args)

        return call

    _ops.spikes_linear, _ops.spikes_linear_weight = counted(forward, "product"), counted(weight, "weight")
    try:
        yield calls
    finally:
        _ops.spikes_linear, _ops.spikes_linear_weight = forward, weight


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
    what = f"{case}, O{outputs}"
    tensors = leaves(with_linear(case, outputs, bias, seed), wrt)
    found, wanted = fused(tensors, case), expected(tensors, case)
    relative = RELATIVE[case.dtype]
    assert_close(found["spk"], wanted["spk"], relative, what)
    for name in case.kind.ops.states:
        assert_bits_equal(found[name], wanted[name], f"{what}: {name}")
    # A parameter's gradient is a sum over neurons that may cancel: rounding is measured by the sum of their magnitudes.
    each: Tensors = {}
    for name, t in tensors.items():
        shape = case.shape if name in case.kind.ops.parameters else () if t is None else t.shape
        each[name] = t if t is None else t.detach().expand(shape).clone().requires_grad_(t.requires_grad)
    actual = or_zeros(gradients(fused, tensors, case, flow), tensors)
    by_neuron = or_zeros(gradients(expected, each, case, flow), each)
    assert actual.keys() == by_neuron.keys()
    for name, grad in actual.items():
        total, magnitude = (g.sum_to_size(grad.shape) for g in (by_neuron[name], by_neuron[name].abs()))
        scale = magnitude.max().item() if magnitude.numel() else 0.0
        assert_close(grad, total, relative, f"{what}, loss of {flow}: grad of {name}", scale)


def fits(case: Case) -> bool:
    """Whether the height of a spike is the same in all rows, and there are neurons."""
    heights = inputs(case)["graded_spikes_factor"]
    assert heights is not None
    return case.steps > 0 and torch.Size(case.shape).numel() > 0 and all(n == 1 for n in heights.shape[:-1])
