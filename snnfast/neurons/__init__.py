"""All neurons: a file of this folder each, with its spec, reference step, function and layer.

This is the one list of them. :mod:`snnfast` and :mod:`snnfast.snntorch` have the layers from here. Those of ``IFNODE``
are in :mod:`snnfast.spikingjelly`.
"""

from snnfast._core import fake, library, ops
from snnfast.neurons.alpha import Alpha
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.ifnode import IFNODE as IFNODE
from snnfast.neurons.lapicque import Lapicque
from snnfast.neurons.leaky import Leaky
from snnfast.neurons.rleaky import RLeaky
from snnfast.neurons.rsynaptic import RSynaptic
from snnfast.neurons.synaptic import Synaptic

__all__ = ["Alpha", "Lapicque", "Leaky", "RLeaky", "RSynaptic", "Synaptic"]

LAYERS: dict[str, type[SpikingLayer]] = {name: globals()[name] for name in __all__}

if ops.extension is not None:  # now that all specs are known
    ops.check_ops(library.PATH)
    ops.use(ops.NAMESPACE)
    fake.register(ops.NAMESPACE)
