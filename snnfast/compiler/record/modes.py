"""Grad mode, autocast and inference mode of recorded calls."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from snnfast.compiler.graph.context import BLOCKS, ENTER_AUTOCAST, ENTER_INFERENCE

Modes = tuple[bool, tuple[tuple[str, torch.dtype], ...]]
"""Whether inference mode is on, and the devices with autocast and its dtypes."""

any_autocast = torch._C._is_any_autocast_enabled
infers = torch.is_inference_mode_enabled
NONE: Modes = (False, ())
"""Neither of them."""
_DEVICES = ("cpu", "cuda")


def modes() -> Modes:
    """The modes that are on, beside grad mode."""
    if not any_autocast() and not infers():
        return NONE
    casts = [(d, torch.get_autocast_dtype(d)) for d in _DEVICES if torch.is_autocast_enabled(d)]
    return infers(), tuple(casts)


@contextlib.contextmanager
def entered(grad: bool, wanted: Modes | None, ambient: Modes) -> Iterator[None]:
    """Run under a grad mode, and under modes that are not the ambient ones, if any are given."""
    if wanted is None:
        with torch.set_grad_enabled(grad):
            yield
        return
    with contextlib.ExitStack() as stack:
        for enter, given in blocks_between(ambient, wanted):
            stack.callback(BLOCKS[enter], enter(*given))
        stack.enter_context(torch.set_grad_enabled(grad))
        yield


def blocks_between(ambient: Modes, wanted: Modes) -> list[tuple[Any, tuple[Any, ...]]]:
    """The blocks that lead from the ambient modes to others: how each is entered, and with what."""
    found: list[tuple[Any, tuple[Any, ...]]] = []
    if wanted[0] != ambient[0]:
        found.append((ENTER_INFERENCE, (wanted[0],)))
    for device in _DEVICES:
        now, before = dict(wanted[1]).get(device), dict(ambient[1]).get(device)
        if now != before:
            found.append((ENTER_AUTOCAST, (device, now, now is not None, torch.is_autocast_cache_enabled())))
    return found
