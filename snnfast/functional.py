"""Stateless functions: the whole unroll of a layer of neurons over time in one call."""

from snnfast._unroll.functional import alpha, lapicque, lif, rleaky, rsynaptic, synaptic

__all__ = ["alpha", "lapicque", "lif", "rleaky", "rsynaptic", "synaptic"]
