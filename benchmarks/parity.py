"""Bits that differ from snnTorch's loop over random configurations of each neuron."""

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import snnfast

from .bars import Bar, Found
from .peers import PEERS
from .peers.snntorch_loop import LOOP
from .registry import NEURONS

CHOICES = {"reset_mechanism": ("subtract", "zero", "none")}
OWN = {"all_to_all": (False,)}
DELAY, GRADED = {"reset_delay": (True, False)}, {"graded_spikes_factor": (1.0, 0.75)}


@dataclass(frozen=True)
class Drawn:
    """What is drawn for a neuron."""

    ranges: Mapping[str, tuple[float, float]]  # of its parameters
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    per_neuron: bool = True  # parameters may have a value for each neuron or channel


DECAY = (-0.1, 1.1)  # clamped to 0 to 1 in both libraries
TABLE = {
    "leaky": Drawn({"beta": DECAY, "threshold": (0.2, 1.5)}, CHOICES | DELAY | GRADED),
    "synaptic": Drawn({"alpha": DECAY, "beta": DECAY, "threshold": (0.2, 1.5)}, CHOICES | DELAY),
    "lapicque": Drawn({"beta": (0.05, 0.99), "threshold": (0.2, 1.5)}, CHOICES, per_neuron=False),
    "alpha": Drawn({"alpha": (0.6, 1.1), "beta": (-0.1, 0.5), "threshold": (0.2, 1.5)}, CHOICES),
    "rleaky": Drawn({"beta": DECAY, "V": (-1.0, 1.0), "threshold": (0.2, 1.5)}, CHOICES | DELAY | OWN),
    # Without the delay snnTorch's raises an error.
    "rsynaptic": Drawn({"alpha": DECAY, "beta": DECAY, "V": (-1.0, 1.0), "threshold": (0.2, 1.5)}, CHOICES | OWN),
    "connected": Drawn({"beta": DECAY, "threshold": (0.2, 1.5)}, CHOICES | DELAY),
}


def run(args: argparse.Namespace) -> Found:
    """Spikes and states, float32 and float64, random options, shapes and parameters."""
    if problem := PEERS[LOOP].missing(torch.device("cpu")):
        args.error(f"{LOOP}: {problem}")
    bars, rows = [], []
    for neuron, drawn in TABLE.items():
        name = NEURONS[neuron].name
        if not hasattr(snnfast, name):
            print(f"{neuron}: snnfast has no {name} yet")
            continue
        rng = random.Random(0)
        torch.manual_seed(0)
        different = compared = spikes = 0
        with snnfast.use_backend("fused"):
            for _ in range(args.configurations):
                ours, theirs = _records(rng, neuron, drawn)
                different += sum(map(bits, ours, theirs))
                compared += sum(record.numel() for record in theirs)
                spikes += int(theirs[0].count_nonzero())
        print(f"{neuron}: {args.configurations} random configurations, {compared} values ({spikes} spikes)")
        rows.append(
            {
                "neuron": neuron, "configurations": args.configurations, "values": compared, "spikes": spikes,
                "different": different,
            }
        )  # fmt: skip
        bars.append(Bar(f"{neuron}: values that differ from snnTorch's loop in any bit", different, 0))
    return Found(bars, rows)


def _records(rng: random.Random, neuron: str, drawn: Drawn) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes and states of all steps, of snnfast and of snnTorch."""
    import snntorch

    model = NEURONS[neuron]
    dtype = rng.choice((torch.float32, torch.float64))
    T, B = rng.choice((1, 2, 8, 17, 33, 129)), rng.choice((1, 3, 16))
    step = (B, *rng.choice([(1,), (10,), (127,), (3, 5, 7)]))

    def parameter(low: float, high: float) -> float | Tensor:
        shape = rng.choice([None, (), step[-1:], (*step[1:2], *[1] * (len(step) - 2))]) if drawn.per_neuron else None
        values = torch.rand(shape or (), dtype=dtype if shape else torch.float32) * (high - low) + low
        return values.item() if shape is None else values

    options: dict[str, Any] = {name: parameter(*limits) for name, limits in drawn.ranges.items()}
    options |= {name: rng.choice(values) for name, values in drawn.choices.items()}
    if model.connected:
        # A surrogate of ours in both: those of snnTorch return float32 spikes, which no float64 weights take.
        options |= {"linear_features": step[-1], "spike_grad": snnfast.surrogate.atan()}
    current = torch.randn(T, *step, dtype=dtype) * rng.choice((0.3, 1.0, 3.0))
    make = torch.randn if rng.random() < 0.5 else torch.zeros
    states = [make(step, dtype=dtype) for _ in model.states]
    layer, loop = (getattr(library, model.name)(**options) for library in (snnfast, snntorch))
    if model.connected:
        loop.load_state_dict(layer.to(dtype).state_dict())
        loop.to(dtype)
    with torch.no_grad():
        spk_rec, *ours = layer.unroll(current, *states)
        steps = []
        for x in current.unbind(0):
            spk, *after = loop(x, *states)
            states = [spk, *after] if model.fed_back else after
            steps.append((spk.float(), *after))
    return [spk_rec.float(), *ours], [torch.stack(record) for record in zip(*steps, strict=True)]


def bits(a: Tensor, b: Tensor) -> int:
    """How many elements are not the same bits."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    whole = torch.int64 if a.dtype == torch.float64 else torch.int32
    return int((a.contiguous().view(whole) != b.contiguous().view(whole)).sum())
