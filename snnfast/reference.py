"""The neurons in plain PyTorch, one time step after the other: the definition, the fall-back and the gradient oracle.

The arithmetic is snnTorch 1.0.0's, operation for operation, so spikes and states are bit-identical to it in float32 and
float64, and the gradients are what autograd makes of these lines. The fused kernels are tested against this module.
"""

from snnfast._unroll.reference import alpha, lapicque, lif, rleaky, rsynaptic, synaptic

__all__ = ["alpha", "lapicque", "lif", "rleaky", "rsynaptic", "synaptic"]
