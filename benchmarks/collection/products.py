"""The convolutions and matrix products of a training step, called alone: no layer over time can make a step shorter."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

OURS = (
    "event_conv2d", "event_conv2d_weight", "spikes_linear", "spikes_linear_weight", "table_conv2d", "winograd_conv2d",
)  # fmt: skip


class _Products(TorchDispatchMode):
    """Keeps the calls whose floating-point operations PyTorch counts, and our own of spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The kernels of neurons count among these as well, if a product is a part of them.
        ours, packet = func.namespace == "snnfast", func.overloadpacket
        if packet.__name__ in OURS if ours else packet in flop_registry:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **kwargs or {})


def products_of(step: Callable[[], object]) -> list[tuple[Any, Any, Any]]:
    """The products that ``step`` calls, with their arguments."""
    with _Products() as products, mock.patch("snnfast.compiler.choice.may_record", return_value=True):
        step()  # though a mode sees it, as it runs else: by its graph
    return products.calls


def alone(step: Callable[[], object]) -> Callable[[], None]:
    """A function that calls the products of ``step`` on the same tensors."""
    calls = products_of(step)

    def run() -> None:
        with torch.no_grad():
            for func, args, kwargs in calls:
                func(*args, **kwargs)

    return run
