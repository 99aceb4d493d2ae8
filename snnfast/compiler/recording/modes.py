"""Grad mode, autocast and inference mode of recorded calls."""

import contextlib
from collections.abc import Iterator

import torch

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
        if wanted[0] != ambient[0]:
            stack.enter_context(torch.inference_mode(wanted[0]))
        for device in _DEVICES:
            now, before = dict(wanted[1]).get(device), dict(ambient[1]).get(device)
            if now != before:
                stack.enter_context(torch.autocast(device, now, enabled=now is not None))
        stack.enter_context(torch.set_grad_enabled(grad))
        yield
