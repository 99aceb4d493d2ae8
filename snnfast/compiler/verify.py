"""``SNNFAST_VERIFY=1``: every call also runs the loop as it was, and compares the results."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from snnfast._core import backend
from snnfast.compiler.report import GraphReport

# One matrix product of all steps rounds in another way than one per step. A membrane within rounding of its threshold
# may then fall on the other side, and everything behind it in that sample differs. In float32 and below, this happens
# to a few elements; in float64 hardly ever.
_CLOSE = {torch.float64: 1e-7, torch.float32: 1e-4}
_SHARE = {torch.float64: 0.0, torch.float32: 1e-3}
_GRADIENT = {torch.float64: 1e-6, torch.float32: 1e-2}
_HALF = 5e-2


def is_wanted() -> bool:
    return os.environ.get("SNNFAST_VERIFY", "0") not in ("", "0")


def verified(loop: GraphModule, merged: Callable[..., Any], report: GraphReport) -> Callable[..., Any]:
    """A function that does what ``merged`` does, and raises ``RuntimeError`` where ``loop`` has other results."""
    where = report.where

    def both(*args: Any) -> Any:
        if report.random:
            backend.warn_once(f"snnfast: {where} draws random numbers: SNNFAST_VERIFY can't compare it")
            return merged(*args)
        devices = sorted({a.device.index for a in args if isinstance(a, Tensor) and a.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            wanted, found = _results(loop, args), _results(merged, args)
        largest = max((a.double().norm().item() for name, a in wanted if name.startswith("gradient")), default=0.0)
        for (name, a), (_, b) in zip(wanted, found, strict=True):
            message = _difference(a, b, largest if name.startswith("gradient") else None)
            if message:
                raise RuntimeError(
                    f"SNNFAST_VERIFY: {name} of the loop at {where} is not what the loop returns: {message}. This is a "
                    "fault of snnfast; please report it with the program that leads to it"
                )
        return merged(*args)

    return both


def _results(function: Callable[..., Any], args: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """Run on copies of the inputs. Returns outputs, inputs that were changed in place, and gradients."""
    leaves = [_copy(a) for a in args]
    given = [a.clone() if isinstance(a, Tensor) and a.requires_grad else a for a in leaves]
    outputs = [o for o in function(*given) if isinstance(o, Tensor)]
    named = [(f"output {i}", o) for i, o in enumerate(outputs)]
    named += [(f"input {i}", a) for i, a in enumerate(given) if isinstance(a, Tensor)]
    if torch.is_grad_enabled():
        asking = [o for o in outputs if o.requires_grad]
        weights = [torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype, device=o.device).view_as(o) for o in asking]
        wrt = {i: a for i, a in enumerate(leaves) if isinstance(a, Tensor) and a.requires_grad}
        gradients: Sequence[Tensor | None] = (None,) * len(wrt)
        if asking and wrt:
            roots = [o * 1 for o in asking]  # a view made under no_grad has no graph, a product of it has one
            gradients = torch.autograd.grad(roots, list(wrt.values()), weights, allow_unused=True)
        for (i, a), gradient in zip(wrt.items(), gradients, strict=True):
            named.append((f"gradient of input {i}", torch.zeros_like(a) if gradient is None else gradient))
    return [(name, torch.view_as_real(t.detach()) if t.is_complex() else t.detach()) for name, t in named]


def _copy(a: Any) -> Any:
    if not isinstance(a, Tensor):
        return a
    copied = a.detach().clone()
    if isinstance(a, nn.Parameter):
        return nn.Parameter(copied, a.requires_grad)
    return copied.requires_grad_(a.requires_grad)


def _difference(wanted: Tensor, found: Tensor, largest_gradient: float | None) -> str:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return f"{tuple(found.shape)} {found.dtype} in place of {tuple(wanted.shape)} {wanted.dtype}"
    if not wanted.is_floating_point():
        return "" if torch.equal(wanted, found) else "other integers"
    if wanted.numel() == 0 or torch.equal(wanted, found):
        return ""
    dtype, a, b = wanted.dtype, wanted.double().nan_to_num(), found.double().nan_to_num()
    if largest_gradient is not None:  # one that is zero but for rounding counts for nothing
        error = ((a - b).norm() / a.norm().clamp_min(max(1e-3 * largest_gradient, 1e-30))).item()
        return f"its relative error is {error:.1e}" if error > _GRADIENT.get(dtype, _HALF) else ""
    far = ((a - b).abs() > _CLOSE.get(dtype, _HALF) * a.abs().max().clamp_min(1e-30)).double().mean().item()
    return f"{far:.1%} of its elements differ" if far > _SHARE.get(dtype, _SHARE[torch.float32]) else ""
