"""The suite `programs`: every loop of the tests, under snnfast.compile and as it is. It is never slower compiled."""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .peers import Peer
from .registry import Case


@cache
def programs() -> dict[str, Any]:
    """The programs by their names, from the folder of the tests, which is not always there."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from loop_programs import PROGRAMS

    return PROGRAMS


def cases() -> list[Case]:
    names = list(programs())
    from loop_programs import B, T

    return [Case("programs", "program", T, B, (), variant=name) for name in names]


def functions(case: Case, peer: Peer) -> tuple[Callable[[], object], Callable[[], tuple[Tensor, ...]], list[Tensor]]:
    """A training step of a program, as it is or compiled; its forward pass; and its weights."""
    import snntorch

    warnings.filterwarnings("ignore")  # of snnfast and of torch.compile: each says why a loop is not merged
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    program = programs()[case.variant]
    neurons = snntorch.SpikingNeuron.instances = []  # through which snntorch.utils.reset goes
    run = program.run("float32")
    inputs = run.inputs(run.settings["calls"][0]).values()
    function = run.net if peer.compile is None else peer.compile(run.net)

    def forward() -> tuple[Tensor, ...]:
        snntorch.SpikingNeuron.instances = neurons
        outputs, _ = torch.utils._pytree.tree_flatten(function(*inputs))
        return tuple(t for t in outputs if isinstance(t, Tensor) and t.requires_grad)

    def step() -> None:
        outputs = forward()
        if outputs:
            torch.stack([t.sum() for t in outputs]).sum().backward()
        run.net.zero_grad()

    return step, forward, list(run.net.parameters())
