"""Checks of the fused gradients as plain functions, so that a test can assert that they catch a broken backward."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from helpers import (
    SURROGATES,
    Case,
    Outputs,
    Tensors,
    assert_close,
    assert_same_outputs,
    expected,
    fused,
    inputs,
    leaves,
    named,
)
from torch import Tensor
from torch.autograd.gradcheck import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

FLOWS = ("both", "spk", "states", "last", "first")
"""The outputs that a loss depends on; ``last``: the last states only; ``first``: the first state only."""

RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

Function = Callable[[Mapping[str, Any], Case], Outputs]


def loss_of(outputs: Outputs, case: Case, flow: str = "both") -> Tensor:
    generator = torch.Generator().manual_seed(5)
    states = case.kind.results[1:]
    wanted = {"both": tuple(outputs), "spk": ("spk",), "states": states, "last": states, "first": states[:1]}[flow]
    total = torch.zeros((), dtype=torch.float64, device=outputs["spk"].device)
    for name in wanted:
        t = outputs[name]
        if case.record_mem and flow == "last":
            t = t[-1:]
        weights = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        total = total + (t * weights).sum(dtype=torch.float64)
    return total


def gradients(function: Function, tensors: Mapping[str, Tensor | None], case: Case, flow: str = "both") -> Tensors:
    """The gradient for every tensor that asks for one; ``None`` where the loss does not depend on it."""
    return _gradients_of(function(tensors, case), tensors, case, flow)


def _gradients_of(outputs: Outputs, tensors: Mapping[str, Tensor | None], case: Case, flow: str) -> Tensors:
    asking = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
    loss = loss_of(outputs, case, flow)
    if not loss.requires_grad:
        return dict.fromkeys(asking)
    return dict(zip(asking, torch.autograd.grad(loss, list(asking.values()), allow_unused=True), strict=True))


def outputs_and_gradients(case: Case, tensors: Mapping[str, Tensor | None]) -> Tensors:
    """Of the kernels, by name."""
    outputs = fused(tensors, case)
    return {**outputs, **{f"grad of {name}": g for name, g in _gradients_of(outputs, tensors, case, "both").items()}}


def or_zeros(found: Tensors, tensors: Mapping[str, Tensor | None]) -> Outputs:
    """Where the loss does not depend on an input, "no gradient" and zeros are the same answer."""
    return {name: torch.zeros_like(tensors[name]) if g is None else g for name, g in found.items()}  # type: ignore[arg-type]


def check_against_reference(
    case: Case, device: torch.device, flow: str = "both", seed: int = 0, wild: bool = False,
    wrt: Sequence[str] | None = None, function: Function = fused, oracle: Function = expected,
    tensors: Tensors | None = None,
) -> None:  # fmt: skip
    """The fused call (or ``function``) has the reference's outputs, bit for bit, and its gradients to rounding.

    Or those of another ``oracle`` in plain PyTorch. ``wrt``: by default the inputs that the variant is about.
    ``tensors``: in place of random inputs, which may have a Linear behind the neurons with them.
    """
    wrt = case.wrt if wrt is None else wrt
    given = tensors or inputs(case, device, seed, wild)
    tensors = leaves({name: t for name, t in given.items() if t is not None}, wrt)
    # A parameter's gradient is a sum over neurons that may cancel: rounding is measured by the sum of their magnitudes.
    parameters = case.kind.ops.parameters
    each = {
        name: t.detach().expand(case.shape if name in parameters else t.shape).clone().requires_grad_(t.requires_grad)
        for name, t in tensors.items()
        if t is not None
    }
    none = dict.fromkeys(case.names)
    outputs, wanted = function({**none, **tensors}, case), oracle({**none, **each}, case)
    assert_same_outputs(outputs, wanted, case, product="weight" in tensors)
    actual = or_zeros(_gradients_of(outputs, tensors, case, flow), tensors)
    by_neuron = or_zeros(_gradients_of(wanted, each, case, flow), each)
    assert actual.keys() == by_neuron.keys()
    for name, found in actual.items():
        total = by_neuron[name].sum_to_size(found.shape)
        magnitude = by_neuron[name].abs().sum_to_size(found.shape)
        scale = magnitude.max().item() if magnitude.numel() else 0.0
        assert_close(found, total, RELATIVE[case.dtype], f"{case}, loss of {flow}: grad of {name}", scale)


# ---- memory -------------------------------------------------------------------------------------------------------


def saved_by(function: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """What a function returns, and the tensors that autograd keeps for its backward pass."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = function()
    return result, kept


def bytes_of(tensors: Iterable[Tensor], beyond: Iterable[Tensor | None] = ()) -> int:
    """Of the memory of tensors, each counted once, without that which belongs to others."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes[at] for at in sizes.keys() - {t.untyped_storage().data_ptr() for t in beyond if t is not None})


class Operators(TorchDispatchMode):
    """The names of those that run, and the most elements in any result; ``floating``: in any of floating point."""

    def __init__(self, floating: bool = False) -> None:
        super().__init__()
        self.names: list[str] = []
        self.elements, self._floating = 0, floating

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, Tensor) and (t.is_floating_point() or not self._floating):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return result


# ---- the backward pass is the gradient of a forward pass whose step is made smooth around the trajectory -----------

ANTIDERIVATIVES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "_ATan": lambda z, s: torch.atan(math.pi / 2 * s.alpha * z) / math.pi,
    "_FastSigmoid": lambda z, s: z / (1 + s.slope * z.abs()),
    "_Sigmoid": lambda z, s: torch.sigmoid(s.slope * z),
    "_StraightThrough": lambda z, s: z,
    "_Heaviside": lambda z, s: z.relu(),
    "_Triangular": lambda z, s: -s.threshold * z.abs(),
    "_SpikeRateEscape": lambda z, s: s.slope / s.beta * (z - 1).sign() * (1 - torch.exp(-s.beta * (z - 1).abs())),
    "_SFS": lambda z, s: torch.where(z > s.B, z / (1 + s.slope * z), z.new_tensor(s.B / (1 + s.slope * s.B))),
    "_LSO": lambda z, s: z.relu() + s.slope * z.clamp(max=0),
}


def kinks(spike_grad: Any) -> tuple[float, ...]:
    """Where the antiderivative has no two derivatives, which finite differences must keep away from."""
    more = {"_SpikeRateEscape": (1.0,), "_SFS": (getattr(spike_grad, "B", 0.0),)}
    return (0.0, *more.get(type(spike_grad).__name__, ()))


class Trajectory(NamedTuple):
    outputs: Outputs  # as of the call
    reset: Tensor  # [T, *] 1 where the membrane was above the threshold before the step
    z: Tensor  # [T, *] membrane before the immediate reset, less the threshold


def trajectory(tensors: Mapping[str, Tensor], case: Case, base: Trajectory | None = None) -> Trajectory:
    """The neuron's reference step. Around ``base``, resets are held and the firing is linearised there."""
    ops, states, th = case.kind.ops, case.kind.results[1:], tensors["threshold"]
    parameters = tuple(tensors[name] for name in ops.parameters)
    antiderivative = ANTIDERIVATIVES[type(case.spike_grad).__name__]
    now, record = {name: tensors[name] for name in ops.states}, []
    for t in range(case.steps):
        reset = (now["mem"] > th).to(now["mem"]) if base is None else base.reset[t]
        x = tensors["current"] if case.has("constant") else tensors["current"][t]
        after = ops.step(x, [now[name] for name in ops.states], parameters, reset, case.reset)
        now = dict(zip(states, after, strict=True))
        v = now["mem"]
        z = v - th
        if base is None:
            fired = (z > 0).to(z)
        else:
            smooth, there = (antiderivative(at, case.spike_grad) for at in (z, base.z[t]))
            fired = (base.z[t] > 0).to(z) + smooth - there
        if not case.delay:
            now["mem"] = v - (fired - reset) * {"subtract": th, "zero": v, "none": 0.0}[case.reset]
        spk = fired * tensors["graded_spikes_factor"]
        record.append((reset, z, spk, *(now[name] for name in states)))
        now["spk"] = spk
    resets, zs, spk, *recorded = (torch.stack(t) for t in zip(*record, strict=True))
    if case.has("count"):
        spk = spk.sum(0)
    recorded = recorded if case.record_mem else [t[-1].clone() for t in recorded]
    return Trajectory(named((spk, *recorded), case), resets, zs)


class _SmoothForwardFusedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, case: Case, base: Trajectory, *tensors: Tensor) -> Any:
        ctx.case = case
        ctx.save_for_backward(*tensors)
        return tuple(trajectory(dict(zip(case.names, tensors, strict=True)), case, base).outputs.values())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        tensors = leaves(dict(zip(ctx.case.names, ctx.saved_tensors, strict=True)), ctx.case.wrt)
        asking = [t for t in tensors.values() if t is not None and t.requires_grad]
        with torch.enable_grad():
            outputs = fused(tensors, ctx.case)
        found = iter(torch.autograd.grad(list(outputs.values()), asking, grads))
        return None, None, *(next(found) if t is not None and t.requires_grad else None for t in tensors.values())


def check_is_a_gradient(case: Case, device: torch.device) -> None:
    """The fused backward against finite differences, in float64."""
    for seed in range(100):
        tensors: dict[str, Tensor] = inputs(case, device, seed)  # type: ignore[assignment]
        base = trajectory(tensors, case)
        if all((base.z - kink).abs().min() > 1e-3 for kink in kinks(case.spike_grad)):
            break
    else:
        raise RuntimeError("no inputs found away from the kinks")
    for name, t in fused(tensors, case).items():
        assert_close(t, base.outputs[name], 1e-13, f"{name} of the equations")
    asking = [tensors[name].requires_grad_(name in case.wrt) for name in case.names]
    gradcheck(
        lambda *tensors: _SmoothForwardFusedBackward.apply(case, base, *tensors),
        asking,
        eps=1e-6,
        atol=1e-7,
        rtol=1e-5,
        fast_mode=True,
    )


# CUDA has kernels of its own for the calls of a training loop.

ORDINARY: dict[str, Any] = {
    "variant": ("unroll", "unroll", "count", "constant"), "steps": (1, 15, 16, 17, 18),
    "shape": ((7,), (3, 10), (1, 64), (2, 64)), "reset": ("subtract", "subtract", "zero"), "delay": (True,),
    "parameters": ("scalar", "one", "neuron"), "spike_grad": (SURROGATES["atan"], SURROGATES["fast_sigmoid"]),
}  # fmt: skip


def check_ordinary(case: Case, device: torch.device, i: int) -> None:
    """With gradients of the current alone, with the states, and with the parameters; the membrane recorded or not."""
    if case.reset == "zero":  # as other calls, if it is recorded or learns
        case = replace(case, record_mem=False)
    states = case.kind.ops.states if case.states else ()
    wrt = ("current", *states) if case.reset == "zero" else (("current",), ("current", *states), case.names)[i % 3]
    flow = "spk" if case.record_mem else ("spk", "both")[i % 2]
    check_against_reference(case, device, flow, i, wrt=[name for name in wrt if name not in states or case.states])
