"""``SNNFAST_VERIFY=1``: every call also runs the loop as it was, and compares what both return, write and draw."""

import gc
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
            wanted = _results(loop, args)
            state = _random_state(devices)
            found = _results(merged, args)
            same_state = all(map(torch.equal, state, _random_state(devices)))  # the loop draws nothing
        largest = max((a.double().norm().item() for name, a in wanted if name.startswith("gradient")), default=0.0)
        for (name, a), (_, b) in zip(wanted, found, strict=True):
            kind, _, number = name.partition(" ")
            if kind == "input":
                given = args[int(number)]
                message = _wrong_write(given, a, b)
                name += f" ({_owner_of(given)})" if message else ""
            else:
                message = _difference(a, b, largest if kind == "gradient" else None)
            if message:
                raise _fault(f"{name} of the loop at {where} is not what the loop makes of it: {message}")
        if not same_state:
            raise _fault(f"the random state after the loop at {where} is not what the loop leaves: it draws nothing")
        return merged(*args)

    return both


def _fault(what: str) -> RuntimeError:
    return RuntimeError(
        f"SNNFAST_VERIFY: {what}. This is a fault of snnfast; please report it with the program that leads to it"
    )


def _random_state(devices: Sequence[int]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def _wrong_write(before: Tensor, wanted: Tensor, found: Tensor) -> str:
    """The fault of a tensor that the call was given, after it."""
    before = _comparable(before)
    if _is_same(before, wanted):
        return "" if _is_same(before, found) else "the loop does not write to it"
    if _is_same(before, found):  # but for rounding, every element counts
        return "nothing was written to it" if _difference(wanted, found, None, share=0.0) else ""
    return _difference(wanted, found, None)


def _is_same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _owner_of(given: Tensor) -> str:
    """The words for a tensor that a call was given."""
    if isinstance(given, nn.Parameter):
        return "a parameter"
    holders = {id(d) for d in gc.get_referrers(given) if isinstance(d, dict)}
    for module in gc.get_objects():
        if issubclass(type(module), nn.Module) and id(vars(module).get("_buffers")) in holders:
            name = next(name for name, t in module._buffers.items() if t is given)
            return f"the buffer {name!r} of {type(module).__name__}"
    return "a tensor of the caller"


def _results(function: Callable[..., Any], args: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """Run on copies of the inputs. Returns outputs, inputs that were changed in place, and gradients."""
    leaves = [_copy(a) for a in args]
    given = [a.clone() if isinstance(a, Tensor) and a.requires_grad else a for a in leaves]
    outputs = [o for o in function(*given) if isinstance(o, Tensor)]
    # First what was written: outputs may depend on it.
    named = [(f"input {i}", a) for i, a in enumerate(given) if isinstance(a, Tensor)]
    named += [(f"output {i}", o) for i, o in enumerate(outputs)]
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
    return [(name, _comparable(t)) for name, t in named]


def _comparable(t: Tensor) -> Tensor:
    return torch.view_as_real(t.detach()) if t.is_complex() else t.detach()


def _copy(a: Any) -> Any:
    if not isinstance(a, Tensor):
        return a
    copied = a.detach().clone()
    if isinstance(a, nn.Parameter):
        return nn.Parameter(copied, a.requires_grad)
    return copied.requires_grad_(a.requires_grad)


def _difference(wanted: Tensor, found: Tensor, largest_gradient: float | None, share: float | None = None) -> str:
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
    share = _SHARE.get(dtype, _SHARE[torch.float32]) if share is None else share
    return f"{far:.1%} of its elements differ" if far > share else ""
