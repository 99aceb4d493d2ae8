"""The functions of neurons whose spikes come back to them, which :mod:`snnfast.functional` has among its own."""

from typing import Any

from torch import Tensor

from snnfast._core.ops import RLEAKY, RSYNAPTIC
from snnfast._unroll.call import StateQuant
from snnfast._unroll.checks import check_current, check_options
from snnfast._unroll.connected import check_connections
from snnfast._unroll.run import run_function
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["rleaky", "rsynaptic"]


def rleaky(
    current: Tensor,  # [T, *], or [*] with num_steps
    spk: Tensor | None = None,  # [*]
    mem: Tensor | None = None,  # [*]
    *,
    beta: float | Tensor,
    V: float | Tensor = 1.0,
    recurrent_weight: Tensor | None = None,  # [N, N], or [C, C, kH, kW]
    recurrent_bias: Tensor | None = None,  # [N], or [C]
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor]:
    r"""Unroll a layer of leaky integrate-and-fire neurons whose spikes come back to it, over time.

    Per neuron and step, with ``b = clamp(beta, 0, 1)``, ``u`` the membrane and ``spk'`` the spikes before the step, and
    the rest as in :func:`lif`::

        r = H(u - threshold)                                       (no gradient)
        base = b * u + x + rec(spk')
        subtract: v = base - r * threshold
        zero:     v = base - r * base
        none:     v = base
        s = H(v - threshold);  spk = s * graded_spikes_factor
        reset_delay=True:   mem = v
        reset_delay=False:  d = s - r;  subtract: mem = v - d * threshold;  zero: mem = v - d * v;  none: mem = v

    ``rec(spk')`` is one of two things. With ``V`` it is ``V * spk'``, each neuron's own spike, and all steps are one
    kernel. With a ``recurrent_weight`` it is a linear layer or a convolution of the spikes of all neurons. Each step is
    then one product, computed as in snnTorch, and one kernel, and the gradient of the weights is one product after all
    steps.

    Args:
        current: Input current of every step, as of :func:`lif`. With a ``recurrent_weight``, ``[T, *, N]`` or
            ``[T, B, C, H, W]``, in its dtype.
        spk: Spikes before the first step, ``[*]``. ``None``: zeros.
        mem: Membrane before the first step, ``[*]``. ``None``: zeros.
        V: Weight of a neuron's own last spike; a number, or a tensor broadcastable to ``[*]``.
        recurrent_weight: Instead of ``V``, the weights of a linear layer ``[N, N]``, or of a convolution
            ``[C, C, kH, kW]``. The sizes of its kernel must be odd, and it is padded to keep the size of its input.
        recurrent_bias: Bias of either. ``None``: none.
        inhibition: As of :func:`lif`; runs step by step, with one warning.
        spike_grad: As of :func:`lif`. With a ``recurrent_weight``, a callable that is not one of
            :mod:`snnfast.surrogate` makes each step an autograd graph of its own, which is slower.

    All other arguments are those of :func:`lif`.

    Returns:
        ``(spk, mem)``: as of :func:`lif`.

    Raises:
        TypeError, ValueError: As :func:`lif`.

    Example::

        >>> import torch, snnfast
        >>> spk, mem = snnfast.functional.rleaky(torch.full((3, 1), 0.75), beta=0.5, V=0.5)
        >>> spk.flatten(), mem.flatten()
        (tensor([0., 1., 0.]), tensor([0.7500, 1.1250, 0.8125]))

    Source: ``snntorch.RLeaky`` 1.0.0, whose order of operations this is.
    """
    check_current("current", current)
    parameters = check_connections(V, recurrent_weight, recurrent_bias, current), beta, threshold, graded_spikes_factor
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    return run_function(  # type: ignore[no-any-return]
        RLEAKY, options, current, (spk, mem), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


def rsynaptic(
    current: Tensor,  # [T, *], or [*] with num_steps
    spk: Tensor | None = None,  # [*]
    syn: Tensor | None = None,  # [*]
    mem: Tensor | None = None,  # [*]
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
    V: float | Tensor = 1.0,
    recurrent_weight: Tensor | None = None,  # [N, N], or [C, C, kH, kW]
    recurrent_bias: Tensor | None = None,  # [N], or [C]
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    spike_grad: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    num_steps: int | None = None,
    record_mem: bool = True,
    inhibition: bool = False,
    state_quant: StateQuant | bool | None = None,
    reduce: str | None = None,
    weight: Tensor | None = None,  # [O, N]
    bias: Tensor | None = None,  # [O]
    lengths: Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Unroll a layer of neurons with a decaying synaptic current, to which their spikes come back, over time.

    As :func:`rleaky`, but the spikes are added to the synaptic current. With ``a = clamp(alpha, 0, 1)`` and ``i`` the
    synaptic current before the step::

        syn = a * i + x + rec(spk');  base = b * u + syn

    Args:
        spk, syn, mem: The states before the first step, ``[*]`` each. ``None``: zeros.
        alpha: Decay of the synaptic current per time step, clamped to [0, 1]; a number or a tensor as ``beta``.

    All other arguments, and the errors, are those of :func:`rleaky`.

    Returns:
        ``(spk, syn, mem)``: as of :func:`synaptic`.

    Example::

        >>> import torch, snnfast
        >>> found = snnfast.functional.rsynaptic(torch.full((3, 1), 0.5), alpha=0.5, beta=0.5, V=0.25)
        >>> [t.flatten() for t in found]
        [tensor([0., 0., 1.]), tensor([0.5000, 0.7500, 0.8750]), tensor([0.5000, 1.0000, 1.3750])]

    Source: ``snntorch.RSynaptic`` 1.0.0, whose order of operations this is.
    """
    check_current("current", current)
    V_or: Any = check_connections(V, recurrent_weight, recurrent_bias, current)
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    parameters = V_or, alpha, beta, threshold, graded_spikes_factor
    return run_function(  # type: ignore[no-any-return]
        RSYNAPTIC, options, current, (spk, syn, mem), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )
