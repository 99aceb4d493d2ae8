"""The implementations that are compared, each written as its own documentation does."""

from . import norse, ours, snntorch_loop, spikingjelly
from .base import Neuron, Peer, Unsupported

__all__ = ["PEERS", "Neuron", "Peer", "Unsupported"]

PEERS: dict[str, Peer] = {
    peer.name: peer for module in (ours, snntorch_loop, spikingjelly, norse) for peer in module.PEERS
}
