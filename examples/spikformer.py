"""A small Spikformer, written as public code for SpikingJelly 0.0.0.0.12 has it, with the nodes of snnfast.

    python examples/spikformer.py                  # snnfast's nodes
    python examples/spikformer.py --spikingjelly   # those of an installed SpikingJelly 2

Against the code for SpikingJelly one line changes, the import of the nodes; ``backend="cupy"`` may stay. With
``--double``, the losses of both agree to the last digit shown. In float32 the gradients differ by rounding, and as soon
as a last digit decides about a spike, the two drift apart like runs on two machines.

Spikformer: Z. Zhou et al., *Spikformer: When spiking neural network meets transformer*, ICLR 2023.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from data import load
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from snnfast.spikingjelly import functional, layer
from snnfast.spikingjelly.neuron import MultiStepLIFNode  # was: from spikingjelly.clock_driven.neuron import ...

T, DIM, HEADS, BATCH_SIZE, LR = 4, 64, 4, 32, 2e-3


def node(v_threshold: float = 1.0) -> nn.Module:
    return MultiStepLIFNode(tau=2.0, v_threshold=v_threshold, detach_reset=True, backend="cupy")


class Project(nn.Module):
    """A linear layer, batch normalisation and neurons, on tokens ``[T, B, N, C]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.bn, self.lif = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), node()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.flatten(0, 1)).transpose(-1, -2)
        y = self.bn(y).transpose(-1, -2).reshape(*x.shape[:3], -1).contiguous()
        spikes: Tensor = self.lif(y)
        return spikes


class Attention(nn.Module):
    """Spiking self-attention: products of spikes, without a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (Project(DIM, DIM) for _ in range(4))
        self.lif = node(v_threshold=0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(2, 3) for p in (self.q, self.k, self.v))
        y = q @ k.transpose(-2, -1) @ v * 0.125  # [T, B, heads, N, C / heads]
        projected: Tensor = self.proj(self.lif(y.transpose(2, 3).flatten(3).contiguous()))
        return projected


class Spikformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential()
        for inputs, outputs in pairwise([3, DIM // 4, DIM // 2, DIM]):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            self.patches.append(layer.SeqToANNContainer(conv, nn.BatchNorm2d(outputs)))
            self.patches.extend([node(), layer.SeqToANNContainer(nn.MaxPool2d(2))])
        self.attention = Attention()
        self.mlp = nn.Sequential(Project(DIM, 4 * DIM), Project(4 * DIM, DIM))
        self.head = nn.Linear(DIM, 10)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, H, W] to [B, 10]
        x = self.patches(images.repeat(T, 1, 1, 1, 1)).flatten(3).transpose(-1, -2)  # [T, B, N, C]
        x = x + self.attention(x)
        x = x + self.mlp(x)
        logits: Tensor = self.head(x.mean((0, 2)))
        return logits


def take_spikingjellys_nodes(names: dict[str, Any]) -> None:
    """Give a network's module nodes of SpikingJelly 2: without a backend, and the surrogate that was the default."""
    from spikingjelly.activation_based.neuron import IFNode, LIFNode
    from spikingjelly.activation_based.surrogate import ATan

    names["MultiStepLIFNode"] = lambda backend, **options: LIFNode(step_mode="m", **options)
    names["MultiStepIFNode"] = lambda surrogate_function, **options: IFNode(
        step_mode="m", surrogate_function=ATan(), **options
    )


def main(argv: Sequence[str] | None = None, network: type[nn.Module] = Spikformer) -> None:
    parser = argparse.ArgumentParser(description=f"A small {network.__name__}.")
    parser.add_argument("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--spikingjelly", action="store_true", help="take the nodes of an installed SpikingJelly 2")
    parser.add_argument("--double", action="store_true", help="compute in double precision")
    args = parser.parse_args(argv)
    if args.spikingjelly:
        take_spikingjellys_nodes(vars(sys.modules[network.__module__]))

    data = load(args.data_path, "cpu")
    print(data, flush=True)
    torch.manual_seed(0)
    net = network().to(torch.float64 if args.double else torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)

    def forward(images: Tensor) -> Tensor:  # [B, 784], which become as large and as colourful as those of CIFAR-10
        functional.reset_net(net)
        grey = F.pad(images.view(-1, 1, 28, 28), (2, 2, 2, 2))
        logits: Tensor = net(grey.expand(-1, 3, -1, -1).to(next(net.parameters()).dtype))
        return logits

    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        for images, labels in data.batches(BATCH_SIZE):
            loss = F.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: last loss {loss.item():.8f}, {time.perf_counter() - start:.1f} s", flush=True)

    net.eval()
    with torch.no_grad():
        answers = torch.cat([forward(images).argmax(1) for images in data.test_images.split(BATCH_SIZE)])
    print(f"test accuracy: {(answers == data.test_labels).float().mean():.4f}")


if __name__ == "__main__":
    main()
