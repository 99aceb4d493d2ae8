"""A small SEW-ResNet, written as its authors' code for SpikingJelly 0.0.0.0.4 has it, with the nodes of snnfast.

    python examples/sew_resnet.py                  # snnfast's nodes
    python examples/sew_resnet.py --spikingjelly   # those of an installed SpikingJelly 2

Against that code one line changes, the import of the nodes. Training and options are those of ``spikformer.py``.

SEW-ResNet: W. Fang et al., *Deep residual learning in spiking neural networks*, NeurIPS 2021. Spikes of a block are
added to those of its input, so a later block may get 2, 3 ... in place of 1.
"""

from collections.abc import Sequence
from itertools import pairwise

import spikformer
from torch import Tensor, nn

from snnfast.spikingjelly import layer
from snnfast.spikingjelly.cext import MultiStepIFNode  # was: from spikingjelly.cext.neuron import MultiStepIFNode

DIM = 16


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return layer.SeqToANNContainer(conv, nn.BatchNorm2d(outputs))


def node() -> nn.Module:
    return MultiStepIFNode(detach_reset=True, surrogate_function="ATan")


class Block(nn.Module):
    """Two convolutions with their neurons, and the spikes of the input on top."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.sn1 = convolution(inputs, outputs, 3, stride=2), node()
        self.conv2, self.sn2 = convolution(outputs, outputs, 3), node()
        self.downsample = nn.Sequential(convolution(inputs, outputs, 1, stride=2), node())

    def forward(self, x: Tensor) -> Tensor:
        out, shortcut = self.sn2(self.conv2(self.sn1(self.conv1(x)))), self.downsample(x)
        summed: Tensor = out + shortcut
        return summed


class SEWResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.sn1 = nn.Conv2d(3, DIM, 3, padding=1, bias=False), nn.BatchNorm2d(DIM), node()
        self.maxpool = layer.SeqToANNContainer(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise([DIM, 2 * DIM, 4 * DIM])))
        self.avgpool = layer.SeqToANNContainer(nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(4 * DIM, 10)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] to [B, 10]
        x = self.bn1(self.conv1(images)).unsqueeze(0).repeat(spikformer.T, 1, 1, 1, 1)
        x = self.avgpool(self.blocks(self.maxpool(self.sn1(x)))).flatten(2)
        logits: Tensor = self.fc(x.mean(0))
        return logits


def main(argv: Sequence[str] | None = None) -> None:
    spikformer.main(argv, SEWResNet)


if __name__ == "__main__":
    main()
