"""Whatever way the step of a neuron gets a number by: its program computes with what it is now, or it says why not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from ways_to_read import REFUSED, SEEN, Way, spike_whose_backward, undone

import snnfast
from snnfast import surrogate

WAYS = {**SEEN, **REFUSED}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with undone():
        yield


def forward(read: Any) -> Any:
    def step(x: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x * read()
        spk = snnfast.spike(v - 1.0, surrogate.atan())
        return spk, v - spk

    return snnfast.neuron(step)()


def backward(read: Any) -> Any:
    spike = spike_whose_backward(read)

    def step(x: Tensor, v: Tensor) -> Any:
        v = 0.9 * v + x
        spk = spike.apply(v - 1.0)
        return spk, v - spk

    return snnfast.neuron(step)()


@pytest.mark.filterwarnings("ignore:snnfast")
@pytest.mark.parametrize("layer_of", [forward, backward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", list(WAYS))
def test_a_number_that_changes_is_seen_or_refused(name: str, layer_of: Any) -> None:
    way: Way = WAYS[name]
    module = way.open()
    layer = layer_of(module["read"])
    x = torch.full((3, 1, 2), 0.6, requires_grad=True)

    def numbers(backend: str) -> list[Tensor]:
        with snnfast.use_backend(backend):
            results = layer.unroll(x)
            return [*results, *torch.autograd.grad(sum(r.sum() for r in results), x)]

    for change in (lambda: None, module["change"]):
        change()
        wanted = numbers("reference")
        torch.testing.assert_close(numbers("auto"), wanted)
        if name in SEEN:
            numbers("fused")
        else:
            with pytest.raises(RuntimeError, match=r"can't compute it \(step: "):
                numbers("fused")
