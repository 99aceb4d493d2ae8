"""Count what a network computes: spikes, synaptic operations, multiplications, and what keeps it from learning."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from snnfast._activity.report import Activity, LayerActivity
from snnfast._activity.tally import Bits

__all__ = ["Activity", "Bits", "LayerActivity", "activity"]


def activity(net: nn.Module, *inputs: Any, record: Sequence[str] = (), **named: Any) -> Activity:
    """Count what a network computes: spikes, synaptic operations, multiplications, silent neurons.

    With inputs, ``net(*inputs)`` is called once, without gradients. Without, the result is a context manager, which
    adds up all calls in its block, in training, too, and can be entered again.

    A *spike* is an output of a layer of neurons that is not 0. A *synaptic operation* is a spike times an output that
    it reaches through a weight: one addition. In a convolution it reaches fewer outputs at a border, by its stride, and
    in a group. Where a weight is ever given another number than 0 or 1, all its products are multiplications (*MACs*)
    instead, as in a first layer of images, also with zeros and padding: half of PyTorch's count of FLOPs. Biases,
    normalisations, pooling and the neurons themselves are not counted, nor is a backward pass.

    Counted are layers of snnfast, snnTorch, SpikingJelly and Norse, modules of yours that return spikes for other
    numbers, and the products of any module, however they are written: ``nn.Linear``, ``nn.Conv2d``, ``nn.LSTM``,
    ``F.linear``, ``@``, ``torch.einsum``. In a product of two activations, the spikes are those of the first. Each
    product is counted as often as it is computed. No records are kept.

    A compiled network runs as its loop while it is counted, with the loop's numbers, time and memory.

    Args:
        net: The network, compiled or not; or a single layer.
        *inputs: Arguments of one call.
        record: Names of layers of neurons whose spikes are kept as bits, those of the last call of the network; see
            :class:`Activity`.
        **named: Named arguments of one call.

    Returns:
        An :class:`Activity`, which prints as a table. ``a.layers["lif1"]`` has ``spikes``, ``rate`` (spikes a neuron
        and step), ``silent`` and ``saturated`` (shares of the neurons), ``rate_by_step``, ``membrane`` and ``bits``;
        ``a.layers["fc2"]`` has ``synops`` and ``macs``. ``a.spikes``, ``a.rate``, ``a.synops`` and ``a.macs`` are those
        of all layers, and ``a.energy()`` is in joules. ``a.health()`` says what may keep the network from learning.

    Raises:
        TypeError: ``net`` is no module, or there are named arguments of a call and none by position.
        ValueError: ``record`` has a name that is no layer of neurons of the network.
        RuntimeError: A block is entered that is entered already.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> net = snnfast.MultiStep(nn.Linear(8, 4, bias=False), snnfast.Leaky(0.5), nn.Linear(4, 2))
        >>> _ = nn.init.ones_(net[0].weight)
        >>> a = snnfast.activity(net, torch.ones(10, 1, 8))
        >>> a.layers["1"].spikes, a.layers["1"].rate, a.layers["2"].synops
        (40, 1.0, 80)
        >>> a.layers["1"].saturated, a.macs, a.synops
        (1.0, 0, 400)
        >>> with snnfast.activity(net) as a:
        ...     for x in torch.rand(3, 10, 1, 8):
        ...         net(x).sum().backward()
        >>> a.calls
        3

    Source: synaptic operations as in P. A. Merolla et al., *A million spiking-neuron integrated circuit with a scalable
    communication network and interface*, Science 345 (2014).
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if named and not inputs:
        raise TypeError(f"{next(iter(named))}: a call needs an argument by position; enter a block for other calls")
    if isinstance(record, str):
        record = (record,)
    found = Activity(net, record)
    if inputs:
        with found, torch.no_grad():
            net(*inputs, **named)
    return found
