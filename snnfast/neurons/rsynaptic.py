"""The neuron of :class:`RSynaptic`."""

from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_current, check_options
from snnfast._unroll.connected import check_connections
from snnfast._unroll.run import run_function
from snnfast.neurons.recurrent import RecurrentLayer
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["RSYNAPTIC", "RSynaptic", "rsynaptic"]

RSYNAPTIC = Neuron(
    "rsynaptic",
    states=("spk", "syn", "mem"),
    parameters=("V", "alpha", "beta", "threshold", "graded_spikes_factor"),
    membrane_of_states=("subtract", "none"),  # as of Synaptic
)


@RSYNAPTIC.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (spk, syn, mem), (V, alpha, beta, threshold, _) = states, parameters
    syn = alpha.clamp(0, 1) * syn + x + spk * V
    base = beta.clamp(0, 1) * mem + syn
    if mechanism == "subtract":
        return [syn, base - reset * threshold]
    return [syn - 0 * reset, base - base * reset] if mechanism == "zero" else [syn, base]


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
    recurrence = check_connections(V, recurrent_weight, recurrent_bias, current)
    parameters = recurrence, alpha, beta, threshold, graded_spikes_factor
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    return run_function(  # type: ignore[no-any-return]
        RSYNAPTIC, options, current, (spk, syn, mem), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


class RSynaptic(RecurrentLayer):
    r"""A layer of neurons with a synaptic current to which their spikes come back, argument for argument
    ``snntorch.RSynaptic``.

    The equations are those of :func:`snnfast.functional.rsynaptic`. What :class:`snnfast.Leaky` says of steps,
    :meth:`unroll` and the ``state_dict`` holds here as well.

    Args:
        alpha: Decay of the synaptic current per time step, as of :class:`snnfast.Synaptic`.
        beta: Decay of the membrane per time step, as of :class:`snnfast.Leaky`.

    All other arguments, the attributes and the errors are those of :class:`snnfast.RLeaky` and
    :class:`snnfast.Synaptic`.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.RSynaptic(alpha=0.9, beta=0.8, linear_features=100)
        >>> spk_rec, syn_rec, mem_rec = layer.unroll(torch.rand(25, 128, 100))  # [T, B, N]
        >>> spk, syn, mem = layer(torch.rand(128, 100))  # one step, as in snnTorch
        >>> own = snnfast.RSynaptic(alpha=0.9, beta=0.8, V=0.5, all_to_all=False)  # in one kernel over time

    Source: ``snntorch.RSynaptic`` 1.0.0.
    """

    alpha: Tensor
    beta: Tensor
    syn: Tensor

    neuron = RSYNAPTIC

    def __init__(
        self,
        alpha: float | Tensor,
        beta: float | Tensor,
        V: float | Tensor = 1.0,
        all_to_all: bool = True,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_recurrent: bool = True,
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
        self._add_recurrence(V, all_to_all, linear_features, conv2d_channels, kernel_size, learn_recurrent)
        self._add("alpha", alpha, learn_alpha)
        self._finish()

    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """One time step, as :meth:`snnfast.Leaky.forward`, with the last spikes as a state.

        Returns:
            ``(spk, syn, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``.
        """
        return self._step(input_, (spk, syn, mem))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        spk: Tensor | None = None,  # [B, *]
        syn: Tensor | None = None,  # [B, *]
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All time steps, as :meth:`snnfast.Leaky.unroll`, with the last spikes as a state.

        Returns:
            ``(spk_rec, syn_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, states are those
            after the last step, ``[B, *]``. With ``reduce="sum"``, the first is the spike count ``[B, *]``.
        """
        return self._unroll(current, (spk, syn, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_rsynaptic(self) -> tuple[Tensor, Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]
