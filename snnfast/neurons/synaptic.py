"""The neuron of :class:`Synaptic`."""

from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_options
from snnfast._unroll.run import run_function
from snnfast.neurons.base import SpikingLayer
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["SYNAPTIC", "Synaptic", "synaptic"]

SYNAPTIC = Neuron(
    "synaptic",
    states=("syn", "mem"),
    parameters=("alpha", "beta", "threshold", "graded_spikes_factor"),
    membrane_of_states=("subtract", "none"),  # after a reset to zero, snnTorch writes syn once more
)


@SYNAPTIC.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (syn, mem), (alpha, beta, threshold, _) = states, parameters
    syn = alpha.clamp(0, 1) * syn + x
    base = beta.clamp(0, 1) * mem + syn
    if mechanism == "subtract":
        return [syn, base - reset * threshold]
    if mechanism == "zero":
        return [syn - 0 * reset, base - base * reset]  # as in snnTorch, whose membrane is not made of this current
    return [syn, base]


def synaptic(
    current: Tensor,  # [T, *], or [*] with num_steps
    syn: Tensor | None = None,  # [*]
    mem: Tensor | None = None,  # [*]
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
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
    r"""Unroll a layer of neurons with a decaying synaptic current over time, in one kernel forward and one backward.

    Per neuron and step, with ``a = clamp(alpha, 0, 1)``, ``i`` the synaptic current and ``u`` the membrane before the
    step, and the rest as in :func:`lif`::

        r = H(u - threshold)                                       (no gradient)
        syn = a * i + x;  base = b * u + syn
        subtract: v = base - r * threshold
        zero:     v = base - base * r                              (syn is not reset)
        none:     v = base
        s = H(v - threshold);  spk = s * graded_spikes_factor
        reset_delay=True:   mem = v
        reset_delay=False:  d = s - r;  subtract: mem = v - d * threshold;  zero: mem = v - d * v;  none: mem = v

    Args:
        current: Input current of every step, as of :func:`lif`.
        syn: Synaptic current before the first step, ``[*]``. ``None``: zeros.
        mem: Membrane before the first step, ``[*]``. ``None``: zeros.
        alpha: Decay of the synaptic current per time step, clamped to [0, 1]; a number or a tensor as ``beta``.
        beta: Decay of the membrane per time step, as of :func:`lif`.
        record_mem: Return both states after every step, or only after the last one.
        state_quant: As of :func:`lif`, applied to both states.

    All other arguments are those of :func:`lif`.

    Returns:
        ``(spk, syn, mem)``: as of :func:`lif`, with the synaptic current as a second state.

    Raises:
        TypeError, ValueError: As :func:`lif`.

    Example::

        >>> import torch, snnfast
        >>> spk, syn, mem = snnfast.functional.synaptic(torch.full((3, 1), 0.5), alpha=0.5, beta=0.5)
        >>> spk.flatten(), syn.flatten(), mem.flatten()
        (tensor([0., 0., 1.]), tensor([0.5000, 0.7500, 0.8750]), tensor([0.5000, 1.0000, 1.3750]))

    Source: ``snntorch.Synaptic`` 1.0.0, whose order of operations this is.
    """
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    parameters = alpha, beta, threshold, graded_spikes_factor
    return run_function(  # type: ignore[no-any-return]
        SYNAPTIC, options, current, (syn, mem), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


class Synaptic(SpikingLayer):
    r"""A layer of neurons with a decaying synaptic current, argument for argument ``snntorch.Synaptic``.

    The equations are those of :func:`snnfast.functional.synaptic`. A reset changes the membrane, never the synaptic
    current. What :class:`snnfast.Leaky` says of steps, :meth:`unroll` and the ``state_dict`` holds here as well.

    Args:
        alpha: Decay of the synaptic current per time step, clamped to [0, 1] when used; a number, or a tensor
            broadcastable to one step of the input ``[B, *]`` (one per neuron, channel ...).
        beta: Decay of the membrane per time step; like ``alpha``.
        learn_alpha: Make ``alpha`` an ``nn.Parameter``.
        state_quant: A function that quantizes both states at every step; ``False``: none.

    All other arguments, and the errors, are those of :class:`snnfast.Leaky`.

    Attributes:
        syn: The synaptic current after the last step ``[B, *]``, empty at first.
        mem: The membrane after the last step ``[B, *]``, empty at first.
        instances: All layers that exist, held weakly.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.Synaptic(alpha=0.9, beta=0.8)
        >>> spk_rec, syn_rec, mem_rec = layer.unroll(torch.rand(25, 128, 1000))  # [T, B, N], in one kernel
        >>> spk, syn, mem = layer(torch.rand(128, 1000))                         # one step, as in snnTorch

    Source: ``snntorch.Synaptic`` 1.0.0.
    """

    alpha: Tensor
    beta: Tensor
    syn: Tensor

    neuron = SYNAPTIC

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant | bool = False,
        output: bool = False,
        reset_delay: bool = True,
    ) -> None:
        self._begin(
            threshold, learn_threshold, spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism,
            state_quant, output, reset_delay,
        )  # fmt: skip
        self._add("beta", beta, learn_beta)
        self._add("alpha", alpha, learn_alpha)
        self._finish()

    def forward(
        self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """One time step, as :meth:`snnfast.Leaky.forward`, with ``syn`` and ``mem`` as states.

        Returns:
            ``(spk, syn, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``.
        """
        return self._step(input_, (syn, mem))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        syn: Tensor | None = None,  # [B, *]
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All time steps in one kernel, as :meth:`snnfast.Leaky.unroll`, with ``syn`` and ``mem`` as states.

        Returns:
            ``(spk_rec, syn_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, states are those
            after the last step, ``[B, *]``. With ``reduce="sum"``, the first is the spike count ``[B, *]``.
        """
        return self._unroll(current, (syn, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_synaptic(self) -> tuple[Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]
