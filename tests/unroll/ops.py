"""The two ops of a neuron, called by the names of their arguments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from helpers import RESETS, Case, inputs
from torch import Tensor

from snnfast._core import ops as _ops
from snnfast._core.ops import CONSTANT, SAVE_CHECKPOINTS, SAVE_NOTHING, SAVE_SPIKES, SEQUENCE, STEP
from snnfast.surrogate import straight_through_estimator

Arguments = dict[str, Any]
Layout = Callable[[Tensor], Tensor]


def ordered(op: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of the op's schema, which must have just these; no lengths need be among them."""
    names = [argument.name for argument in op._schema.arguments]
    if "lengths" in names:
        given = {"lengths": None, **given}
    options = {name: int(given[name]) for name, _, _ in _ops.OPTION_FIELDS if name in given}
    packed = {"options": sum(options[name] << at for name, at, _ in _ops.OPTION_FIELDS if name in options)}
    given = {name: value for name, value in given.items() if name not in options} | packed
    assert sorted(names) == sorted(given)
    return tuple(given[name] for name in names)


def call_op(op: Any, given: Mapping[str, Any]) -> list[Tensor]:
    return op(*ordered(op, given))  # type: ignore[no-any-return]


# ---- layouts ------------------------------------------------------------------------------------------------------


def contiguous(t: Tensor) -> Tensor:
    return t


def permuted(t: Tensor) -> Tensor:
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def channels_last(t: Tensor) -> Tensor:
    """A tensor ``[T, B, C, L]``, one step of it, or something smaller, with the channels innermost."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t


def expanded(t: Tensor) -> Tensor:
    return t[..., :1].expand(t.shape) if t.dim() else t


LAYOUTS = (contiguous, permuted, channels_last, expanded)


# ---- arguments ----------------------------------------------------------------------------------------------------


def time_of(case: Case) -> int:
    return STEP if case.has("step") else CONSTANT if case.has("constant") else SEQUENCE


def _shared(case: Case, tensors: Mapping[str, Any], layout: Layout, saved: int) -> Arguments:
    tells = case.kind.ops.recorded_membrane_suffices and case.delay and not case.has("step")
    return {
        **{name: t if t is None else layout(t) for name, t in tensors.items() if name != "current"},
        "steps": 1 if case.has("step") else case.steps, "time": time_of(case), "reset": RESETS.index(case.reset),
        "reset_delay": case.delay, "reduce": case.has("count"),
        "saved": saved if tells else min(saved, SAVE_CHECKPOINTS),
    }  # fmt: skip


def forward_arguments(
    case: Case, device: torch.device, layout: Layout = contiguous, saved: int = SAVE_CHECKPOINTS,
    record: int | None = None, last: bool | None = None, seed: int = 0,
) -> Arguments:  # fmt: skip
    """By default all states are recorded, or with ``record_mem=False`` the last ones returned."""
    tensors = inputs(case, device, seed)
    x = tensors["current"]
    assert x is not None
    return {
        "x": layout(x[0] if case.has("step") else x),
        **_shared(case, tensors, layout, saved),
        "record": record if record is not None else case.kind.ops.every_state if case.record_mem else 0,
        "last": last if last is not None else not case.record_mem,
    }


def every_input(case: Case) -> int:
    """``needs`` for the gradients of all inputs."""
    return (1 << len(case.names)) - 1


def told(case: Case, saved: int) -> int:
    """``needs`` for the gradients that what is saved tells."""
    needs = every_input(case)
    if saved == SAVE_SPIKES:
        for name in (*case.kind.decays, "graded_spikes_factor"):
            needs &= ~(1 << case.names.index(name))
    return needs


def backward_arguments(
    case: Case, device: torch.device, layout: Layout = contiguous, needs: int | None = None,
    saved: int = SAVE_CHECKPOINTS, derivative: bool = False, seed: int = 0,
) -> Arguments:  # fmt: skip
    """Of a forward pass that saved what ``saved`` says; with a gradient for everything that it returned."""
    forward = forward_arguments(case, device, layout, saved, seed=seed)
    saved, ops, states = forward["saved"], case.kind.ops, case.kind.ops.states
    # The recorded membrane tells all, where nothing else is saved.
    given = {**forward, "record": forward["record"] | (ops.membrane if saved == SAVE_NOTHING else 0)}
    spk, *others = call_op(ops.forward, given)
    mem_rec = None
    if saved == SAVE_NOTHING:
        mem_rec = others[-1] if case.record_mem else others.pop(0)
    rows = others.pop() if saved != SAVE_NOTHING and not case.has("step") else None
    generator = torch.Generator().manual_seed(seed + 1)

    def like(t: Tensor) -> Tensor:
        return layout((torch.rand(t.shape, generator=generator, dtype=torch.float64) - 0.3).to(t))

    grads: Arguments = {"grad_spk": like(spk), "weight": None}
    for name in states:
        grads |= {f"grad_{name}_rec": None, f"grad_{name}_last": None}
    # The last spike is never recorded, and one step returns it but once.
    once = ops.has_spike_feedback and (case.record_mem or case.has("step"))
    for name, t in zip(states[once:], others, strict=False):
        grads[f"grad_{name}_{'rec' if case.record_mem else 'last'}"] = like(t)
    steps = () if case.has("step") else (case.steps,)
    spike_grad = straight_through_estimator() if saved == SAVE_SPIKES else case.spike_grad
    p0, p1 = spike_grad.parameters()
    return grads | {
        "x": forward["x"] if saved == SAVE_CHECKPOINTS else None, "mem_rec": mem_rec, "rows": rows,
        "derivative": like(torch.empty((*steps, *case.shape), dtype=case.acc, device=device)) if derivative else None,
        **{name: forward[name] for name in _shared(case, dict.fromkeys(case.names), contiguous, saved)},
        "surrogate": spike_grad.kernel_id, "p0": p0, "p1": p1, "clamp_closed": _ops.CLAMP_CLOSED,
        "needs": told(case, saved) if needs is None else needs & told(case, saved),
    }  # fmt: skip


def shapes(results: Sequence[Tensor]) -> list[Any]:
    """All that a fake result must have in common with a real one."""
    return [(t.shape, t.dtype, t.stride(), t.device.type) for t in results]
