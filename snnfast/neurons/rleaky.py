"""The neuron of :class:`RLeaky`."""

from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_current, check_options
from snnfast._unroll.connected import check_connections
from snnfast._unroll.run import run_function
from snnfast.neurons.recurrent import RecurrentLayer
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["RLEAKY", "RLeaky", "rleaky"]

RLEAKY = Neuron("rleaky", states=("spk", "mem"), parameters=("V", "beta", "threshold", "graded_spikes_factor"))


@RLEAKY.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (spk, mem), (V, beta, threshold, _) = states, parameters
    base = beta.clamp(0, 1) * mem + x + spk * V
    if mechanism == "subtract":
        return [base - reset * threshold]
    return [base - reset * base if mechanism == "zero" else base]


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
    recurrence = check_connections(V, recurrent_weight, recurrent_bias, current)
    parameters = recurrence, beta, threshold, graded_spikes_factor
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    return run_function(  # type: ignore[no-any-return]
        RLEAKY, options, current, (spk, mem), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


class RLeaky(RecurrentLayer):
    r"""A layer of leaky integrate-and-fire neurons whose spikes come back to it, argument for argument
    ``snntorch.RLeaky``.

    The equations are those of :func:`snnfast.functional.rleaky`. What :class:`snnfast.Leaky` says of steps,
    :meth:`unroll` and the ``state_dict`` holds here as well.

    Args:
        beta: Decay of the membrane per time step, as of :class:`snnfast.Leaky`.
        V: Weight of a neuron's own last spike, with ``all_to_all=False``; a number, or a tensor broadcastable to one
            step of the input ``[B, *]``.
        all_to_all: Connect all neurons of the layer by ``recurrent``, an ``nn.Linear`` or ``nn.Conv2d``. ``False``: the
            spike of a neuron comes back only to that neuron, times ``V``, and all steps are one kernel.
        linear_features: Number of features of that ``nn.Linear``, the last dimension of the input.
        conv2d_channels, kernel_size: Channels and kernel size of that ``nn.Conv2d``, for inputs ``[B, C, H, W]``. The
            kernel sizes must be odd.
        learn_recurrent: Learn the weights of ``recurrent``, or make ``V`` an ``nn.Parameter``.

    All other arguments, and the errors, are those of :class:`snnfast.Leaky`.

    Attributes:
        spk: The spikes of the last step ``[B, *]``, which are a state; empty at first.
        mem: The membrane after the last step ``[B, *]``, empty at first.
        recurrent: The connections; with ``all_to_all=False`` the product with ``V``.
        instances: All layers that exist, held weakly.

    Example::

        >>> import torch, snnfast
        >>> layer = snnfast.RLeaky(beta=0.9, linear_features=100)
        >>> spk_rec, mem_rec = layer.unroll(torch.rand(25, 128, 100))  # [T, B, N]
        >>> spk, mem = layer(torch.rand(128, 100))  # one step, as in snnTorch
        >>> own = snnfast.RLeaky(beta=0.9, V=0.5, all_to_all=False)  # in one kernel over time

    Source: ``snntorch.RLeaky`` 1.0.0.
    """

    beta: Tensor

    neuron = RLEAKY

    def __init__(
        self,
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
        self._finish()

    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One time step, as :meth:`snnfast.Leaky.forward`, with the last spikes as a state.

        Returns:
            ``(spk, mem)``, all ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``.
        """
        return self._step(input_, (spk, mem))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        spk: Tensor | None = None,  # [B, *]
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor]:
        """All time steps, as :meth:`snnfast.Leaky.unroll`, with the last spikes as a state.

        Returns:
            ``(spk_rec, mem_rec)``, all ``[T, B, *]``. With ``record_mem=False``, states are those
            after the last step, ``[B, *]``. With ``reduce="sum"``, the first is the spike count ``[B, *]``.
        """
        return self._unroll(current, (spk, mem), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_rleaky(self) -> tuple[Tensor, Tensor]:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]
