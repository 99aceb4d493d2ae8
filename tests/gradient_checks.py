"""Checks of the fused gradients as plain functions, so that a test can assert that they catch a broken backward."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from helpers import TENSORS, Case, assert_close, call, inputs, leaves
from torch import Tensor
from torch.autograd.gradcheck import gradcheck

from snnfast import reference
from snnfast.functional import lif

FLOWS = ("spk", "mem", "both", "last")
"""The outputs that a loss depends on; ``last`` is the last membrane only."""

RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def loss_of(spk: Tensor, mem: Tensor, case: Case, flow: str = "both") -> Tensor:
    generator = torch.Generator().manual_seed(5)
    last = mem[-1] if case.record_mem and flow == "last" else mem
    outputs = {"spk": (spk,), "mem": (mem,), "both": (spk, mem), "last": (last,)}[flow]
    total = torch.zeros((), dtype=torch.float64, device=spk.device)
    for t in outputs:
        weights = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        total = total + (t * weights).sum(dtype=torch.float64)
    return total


def gradients(
    function: Callable[..., tuple[Tensor, Tensor]], tensors: Mapping[str, Tensor | None], case: Case, flow: str = "both"
) -> dict[str, Tensor | None]:
    """The gradient for every tensor that asks for one; ``None`` where the loss does not depend on it."""
    asking = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
    spk, mem = call(function, tensors, case)
    loss = loss_of(spk, mem, case, flow)
    if not loss.requires_grad:
        return dict.fromkeys(asking)
    return dict(zip(asking, torch.autograd.grad(loss, list(asking.values()), allow_unused=True), strict=True))


def check_against_reference(
    case: Case,
    device: torch.device,
    flow: str = "both",
    seed: int = 0,
    wild: bool = False,
    wrt: tuple[str, ...] = TENSORS,
    function: Callable[..., tuple[Tensor, Tensor]] = lif,
    oracle: Callable[..., tuple[Tensor, Tensor]] = reference.lif,
    relative: float | None = None,
) -> None:
    """Every gradient of the fused unroll (or of ``function``) equals what autograd makes of the reference.

    Or of another ``oracle`` in plain PyTorch.
    """
    tensors = {name: t for name, t in inputs(case, device, seed, wild).items() if t is not None}
    for name, t in tensors.items():
        t.requires_grad_(name in wrt)
    # A parameter's gradient is a sum over neurons that may cancel: rounding is measured by the sum of their magnitudes.
    shapes = {name: case.shape if name in TENSORS[2:] else t.shape for name, t in tensors.items()}
    each = {
        name: t.detach().expand(shapes[name]).clone().requires_grad_(t.requires_grad) for name, t in tensors.items()
    }
    actual, expected = gradients(function, tensors, case, flow), gradients(oracle, each, case, flow)
    assert actual.keys() == expected.keys()
    for name, found in actual.items():
        # Where the loss does not depend on an input, "no gradient" and zeros are the same answer.
        grad = torch.zeros_like(each[name]) if expected[name] is None else expected[name]
        found = torch.zeros_like(tensors[name]) if found is None else found
        assert grad is not None
        total = grad.sum_to_size(found.shape)
        magnitude = grad.abs().sum_to_size(found.shape)
        scale = magnitude.max().item() if magnitude.numel() else 0.0
        assert_close(found, total, relative or RELATIVE[case.dtype], f"{case}, loss of {flow}: grad of {name}", scale)


def check_chained(case: Case, device: torch.device) -> None:
    """Two unrolls joined by the last membrane, with a loss on both outputs of each, equal one of the reference."""
    tensors = leaves(inputs(case, device))
    others = {name: t for name, t in tensors.items() if name not in ("current", "mem")}
    current, mem = tensors["current"], tensors["mem"]
    assert current is not None
    half = case.steps // 2
    options = {**case.options, "record_mem": False}
    spk1, mem1 = lif(current[:half], mem, **others, **options)  # type: ignore[arg-type]
    spk2, mem2 = lif(current[half:], mem1, **others, **options)  # type: ignore[arg-type]
    spk_rec, mem_rec = reference.lif(**tensors, **{**case.options, "record_mem": True})  # type: ignore[arg-type]
    asking = [t for t in tensors.values() if t is not None]
    joined = loss_of(torch.cat([spk1, spk2]), torch.stack([mem1, mem2]), case)
    whole = loss_of(spk_rec, mem_rec[[half - 1, -1]], case)
    found = zip(TENSORS, torch.autograd.grad(joined, asking), torch.autograd.grad(whole, asking), strict=True)
    for name, a, b in found:
        assert_close(a, b, RELATIVE[case.dtype], f"{case}: grad of {name}")


# ---- the backward pass is the gradient of a forward pass whose step is made smooth around the trajectory ----

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
    spk: Tensor  # [T, *]
    mem: Tensor  # [T, *]
    reset: Tensor  # [T, *] 1 where the membrane was above the threshold before the step
    z: Tensor  # [T, *] membrane before the immediate reset, less the threshold


def trajectory(tensors: dict[str, Tensor], case: Case, base: Trajectory | None = None) -> Trajectory:
    """The equations in words of their own. Around ``base``, resets are held and the step is linearised there."""
    current, u, beta, th, graded = (tensors[name] for name in TENSORS)
    antiderivative = ANTIDERIVATIVES[type(case.spike_grad).__name__]
    record = []
    for t in range(case.steps):
        reset = (u > th).to(u) if base is None else base.reset[t]
        kept = u * (1 - reset) if case.reset == "zero" else u
        taken = reset * th if case.reset == "subtract" else 0.0
        v = beta.clamp(0, 1) * kept + (current if case.constant else current[t]) - taken
        z = v - th
        if base is None:
            fired = (z > 0).to(z)
        else:
            smooth, there = (antiderivative(x, case.spike_grad) for x in (z, base.z[t]))
            fired = (base.z[t] > 0).to(z) + smooth - there
        u = v
        if not case.delay:
            u = v - (fired - reset) * {"subtract": th, "zero": v, "none": 0.0}[case.reset]
        record.append((fired * graded, u, reset, z))
    return Trajectory(*map(torch.stack, zip(*record, strict=True)))


class _SmoothForwardFusedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, case: Case, base: Trajectory, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.case = case
        ctx.save_for_backward(*tensors)
        spk, mem, _, _ = trajectory(dict(zip(TENSORS, tensors, strict=True)), case, base)
        return spk.sum(0) if case.count else spk, mem if case.record_mem else mem[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        tensors = leaves(dict(zip(TENSORS, ctx.saved_tensors, strict=True)))
        with torch.enable_grad():
            outputs = call(lif, tensors, ctx.case)
        return None, None, *torch.autograd.grad(outputs, list(tensors.values()), grads)


def check_is_a_gradient(case: Case, device: torch.device) -> None:
    """The fused backward against finite differences, in float64."""
    for seed in range(50):
        tensors: dict[str, Tensor] = inputs(case, device, seed)  # type: ignore[assignment]
        base = trajectory(tensors, case)
        if all((base.z - kink).abs().min() > 1e-3 for kink in kinks(case.spike_grad)):
            break
    else:
        raise RuntimeError("no inputs found away from the kinks")
    spk, mem = call(lif, tensors, case)  # type: ignore[arg-type]
    assert_close(spk, base.spk.sum(0) if case.count else base.spk, 1e-14, "spikes of the equations")
    assert_close(mem, base.mem if case.record_mem else base.mem[-1], 1e-13, "membranes of the equations")
    asking = [tensors[name].requires_grad_() for name in TENSORS]
    gradcheck(
        lambda *tensors: _SmoothForwardFusedBackward.apply(case, base, *tensors), asking, eps=1e-6, atol=1e-7, rtol=1e-5
    )
