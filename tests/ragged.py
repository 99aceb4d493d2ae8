"""Ragged batches for tests, and what they are defined by: a call for each sample alone."""

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from gradient_checks import Function
from helpers import Case, Outputs, expected, fused
from torch import Tensor


def some_lengths(steps: int, samples: int, seed: int = 0) -> Tensor:
    """From 0 to ``steps``; with both of them where there are samples enough, and neighbours of equal length."""
    draw = random.Random(seed)
    lengths = [draw.randint(0, steps) for _ in range(samples)]
    for i in range(1, samples):
        if draw.random() < 0.3:
            lengths[i] = lengths[i - 1]
    if samples > 2:
        lengths[draw.randrange(samples)], lengths[0] = steps, min(lengths[0], steps - 1)
    return torch.tensor(lengths)


def ragged(lengths: Tensor) -> Function:
    """What the kernels make of a case with these lengths."""
    return functools.partial(fused, lengths=lengths)


def alone(lengths: Tensor, function: Function = expected) -> Function:
    """Each sample by a call of its own, as long as it is, with its last state behind it."""

    def joined(tensors: Mapping[str, Any], case: Case) -> Outputs:
        found = [_one(function, tensors, case, b, n) for b, n in enumerate(lengths.tolist())]
        over_time = dict.fromkeys(case.names, case.record_mem) | {"spk": not case.has("count")}
        return {name: torch.cat([one[name] for one in found], 1 if over_time[name] else 0) for name in found[0]}

    return joined


def _one(function: Callable[..., Outputs], tensors: Mapping[str, Any], case: Case, b: int, n: int) -> Outputs:
    """Sample ``b``, padded to the steps of the batch."""
    own: dict[str, Any] = {}
    for name, t in tensors.items():
        if t is None:
            own[name] = None
        elif name == "current" and not case.has("constant"):
            own[name] = t[:n, b : b + 1]
        else:  # a parameter of fewer dimensions than a step is the same for all samples
            own[name] = t[b : b + 1] if t.dim() == len(case.shape) and t.shape[0] > 1 else t
    found = function(own, replace(case, steps=n, shape=(1, *case.shape[1:])))
    if not case.has("count"):
        spk = found["spk"]
        found["spk"] = torch.cat([spk, spk.new_zeros(case.steps - n, *spk.shape[1:])])
    for name in case.kind.results[1:] if case.record_mem else ():
        record, initial = found[name], own[name]
        if n > 0:
            last = record[-1:]
        else:
            last = record.new_zeros(1, *record.shape[1:]) if initial is None else initial.to(record.dtype)[None]
        found[name] = torch.cat([record, last.expand(case.steps - n, *last.shape[1:])])
    return found
