"""This library: all steps in one kernel, or one call per step."""

from typing import Any

import torch
from torch import Tensor

import snnfast

from ..registry import DTYPES, Case
from .base import Neuron, Peer

OURS = "snnfast"


def layer_options(case: Case, **changed: Any) -> dict[str, Any]:
    """Arguments of ``Leaky`` for a case, in both libraries."""
    options = case.options
    return {
        "beta": options.beta,
        "reset_mechanism": options.reset_mechanism,
        "reset_delay": options.reset_delay,
        "learn_beta": options.learn_beta,
        **changed,
    }


def make(case: Case, device: torch.device, **changed: Any) -> Neuron:
    surrogate = getattr(snnfast.surrogate, case.options.surrogate)()
    lif = snnfast.Leaky(spike_grad=surrogate, **layer_options(case, **changed)).to(device)
    # Only where the case asks for it: an older revision, with --base, does not know the argument.
    kept = case.options.membrane_dtype
    keep = {} if kept is None else {"membrane_dtype": DTYPES[kept]}

    def unroll(x: Tensor, record_mem: bool) -> tuple[Tensor, Tensor | None]:
        spk_rec, mem_rec = lif.unroll(x, record_mem=record_mem, **keep)
        return spk_rec, mem_rec if record_mem else None

    def constant(x: Tensor, T: int, record_mem: bool) -> tuple[Tensor, Tensor | None]:
        spk_rec, mem_rec = lif.unroll(x, num_steps=T, record_mem=record_mem, **keep)
        return spk_rec, mem_rec if record_mem else None

    def step(x: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
        return lif(x, torch.zeros_like(x) if mem is None else mem)

    return Neuron(unroll, step, [p for p in lif.parameters() if p.requires_grad], constant)


PEERS = [Peer(OURS, "snnfast", "snnfast", "pip install --no-build-isolation .", make)]
