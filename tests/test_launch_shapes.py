"""How many threads a block of the kernels has, which the number of neurons alone decides."""

import pytest
import torch
from emulator.build import Launch, last_launch

from snnfast.functional import lif

# Forward and backward: at least 128 blocks where warps suffice, and no more threads than the kernels are made for.
SHAPES = {
    1: (Launch(1, 32), Launch(1, 32)),
    1001: (Launch(32, 32), Launch(32, 32)),
    4095: (Launch(128, 32), Launch(128, 32)),
    8191: (Launch(256, 32), Launch(256, 32)),
    8193: (Launch(129, 64), Launch(129, 64)),
    16385: (Launch(129, 128), Launch(129, 128)),
    32769: (Launch(257, 128), Launch(257, 128)),
}


@pytest.mark.parametrize("device", [pytest.param("emulated", marks=pytest.mark.emulated)], indirect=True)
@pytest.mark.parametrize("neurons", SHAPES)
def test_few_neurons_spread_over_many_multiprocessors(neurons: int, device: torch.device) -> None:
    x = torch.rand(2, neurons, device=device).requires_grad_()
    spk, _ = lif(x, beta=0.9, record_mem=False)
    forward = last_launch()
    spk.sum().backward()
    assert (forward, last_launch()) == SHAPES[neurons]
