"""Grad mode, autocast and inference mode of a call."""

from typing import Any, NamedTuple

import torch

ENTER_INFERENCE = torch.autograd.grad_mode._enter_inference_mode
ENTER_AUTOCAST = torch.amp.autocast_mode._enter_autocast
BLOCKS = {
    ENTER_AUTOCAST: torch.amp.autocast_mode._exit_autocast,
    ENTER_INFERENCE: torch.autograd.grad_mode._exit_inference_mode,
}
"""How the blocks that a graph may enter are entered, and how left."""


class Context(NamedTuple):
    """The modes that a call runs under.

    Attributes:
        grad: Whether autograd records it.
        blocks: The blocks around it that the graph enters, outermost first: how each is entered, with what, and how it
            is left. These are autocast and inference mode.
    """

    grad: bool
    blocks: tuple[tuple[Any, tuple[Any, ...], Any], ...] = ()

    @property
    def infers(self) -> bool:
        """Whether results are inference tensors."""
        inside = [given[0] for enter, given, _ in self.blocks if enter is ENTER_INFERENCE]
        return bool(inside and inside[-1])

    @property
    def records(self) -> bool:
        """Whether results may require a gradient."""
        return self.grad and not self.infers
