"""A neuron that a later version of snnTorch may have: it has no kernel, and nothing is done to it in silence."""

import pytest
import snntorch
import torch
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import MultiStep


class Custom(snntorch.SpikingNeuron):
    def __init__(self) -> None:
        super().__init__(init_hidden=True)
        self.register_buffer("v", torch.zeros(0), persistent=False)

    def reset_mem(self) -> None:
        self.v = torch.zeros_like(self.v)

    def forward(self, input_: Tensor) -> Tensor:
        self.v = 0.5 * self.v + input_ if self.v.shape == input_.shape else input_
        return self.fire(self.v)


Custom.__module__ = "snntorch._neurons.custom"  # by which it is known


def test_convert_leaves_it_alone() -> None:
    report = snn.convert(nn.Sequential(snntorch.Leaky(0.9), Custom()))
    assert report.swapped == ("0",)
    assert report.left == {"1": "snnfast has no kernel for Custom"}


def test_layers_over_time_refuse_it() -> None:
    with pytest.raises(TypeError, match=r"layers: Custom is or has a neuron of snnTorch \(Custom\), .*keep the loop"):
        MultiStep(nn.Linear(4, 5), Custom())


def test_reset_reaches_it() -> None:
    net = nn.Sequential(nn.Sequential(Custom(), snn.Leaky(0.9)))
    net(torch.rand(3, 4) + 1)
    assert net[0][0].v.any()
    snnfast.reset(net)
    assert not net[0][0].v.any()
