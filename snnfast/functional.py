"""Stateless functions: the whole unroll of a layer of neurons over time in one call."""

from snnfast.neurons.alpha import alpha
from snnfast.neurons.lapicque import lapicque
from snnfast.neurons.leaky import lif
from snnfast.neurons.rleaky import rleaky
from snnfast.neurons.rsynaptic import rsynaptic
from snnfast.neurons.synaptic import synaptic

__all__ = ["alpha", "lapicque", "lif", "rleaky", "rsynaptic", "synaptic"]
