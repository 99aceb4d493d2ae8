"""The suite `spikingjelly`: its nodes, and the networks of the examples with them, of snnfast and of SpikingJelly."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

from .peers import Peer
from .peers.ours import OURS
from .registry import CLASSES, Case

NODE = "LIFNode"
NETWORKS = {"Spikformer": ("spikformer", "Spikformer"), "SEW-ResNet": ("sew_resnet", "SEWResNet")}  # file, class


def node(peer: Peer, **options: Any) -> Any:
    """A ``LIFNode`` for all steps, with the default surrogate."""
    if peer.name == OURS:
        from snnfast.spikingjelly.neuron import LIFNode
    else:
        from spikingjelly.activation_based.neuron import LIFNode
    return LIFNode(step_mode="m", **options)


def _modules(peer: Peer) -> tuple[Any, Any]:
    if peer.name == OURS:
        from snnfast.spikingjelly import functional, layer
    else:
        from spikingjelly.activation_based import functional, layer
    return layer, functional


def functions(
    case: Case, peer: Peer, x: Tensor, grad: Tensor
) -> tuple[Callable[[], object], Callable[[], tuple[Tensor, ...]], list[Tensor]]:
    """A training step without its optimizer, its forward pass, and the tensors that the caller holds."""
    if case.variant == NODE:
        layer = node(peer, tau=2.0, detach_reset=True).to(x.device)

        def spikes() -> tuple[Tensor, ...]:
            layer.reset()
            return (layer(x),)

        return lambda: torch.autograd.grad(spikes(), x, grad), spikes, [x, grad]
    net, reset = _network(case.variant, peer)
    net = net.to(x.device)
    images, labels = x.detach()[0], torch.randint(CLASSES, (case.B,), device=x.device)

    def loss() -> tuple[Tensor, ...]:
        reset(net)
        return (F.cross_entropy(net(images), labels),)

    def step() -> None:
        net.zero_grad()
        loss()[0].backward()

    return step, loss, [images, labels, *net.parameters(), *net.buffers()]


def _network(variant: str, peer: Peer) -> tuple[nn.Module, Callable[[nn.Module], None]]:
    """A network of the examples, and what resets it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    file, network = NETWORKS[variant]
    module = import_module(file)
    names = dict(vars(module))
    if peer.name != OURS:
        import_module("spikformer").take_spikingjellys_nodes(vars(module))
    module.layer, functional = _modules(peer)  # type: ignore[attr-defined]
    torch.manual_seed(0)
    net = getattr(module, network)()
    vars(module).update(names)
    return net, functional.reset_net
