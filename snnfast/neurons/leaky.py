"""The neuron of :class:`Leaky`."""

from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_options
from snnfast._unroll.run import run_function
from snnfast.neurons.base import SpikingLayer
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["LEAKY", "Leaky", "lif"]

LEAKY = Neuron(
    "leaky",
    states=("mem",),
    parameters=("beta", "threshold", "graded_spikes_factor"),
    recorded_membrane_suffices=True,
    may_vary=("beta", "threshold"),
)


@LEAKY.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (mem,), (beta, threshold, _) = states, parameters
    beta = beta.clamp(0, 1)
    if mechanism == "subtract":
        return [(beta * mem + x) - reset * threshold]
    if mechanism == "zero":
        return [beta * ((1 - reset) * mem) + x]
    return [beta * mem + x]


def lif(
    current: Tensor,  # [T, *], or [*] with num_steps
    mem: Tensor | None = None,  # [*]
    *,
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
) -> tuple[Tensor, Tensor]:
    r"""Unroll a layer of leaky integrate-and-fire neurons over time, in one kernel forward and one backward.

    Per neuron and step, with ``H(z) = 1`` if ``z > 0`` else ``0``, ``b = clamp(beta, 0, 1)``, ``u`` the membrane
    before the step and ``x`` the current::

        r = H(u - threshold)                                       (no gradient)
        subtract: v = (b * u + x) - r * threshold
        zero:     v = b * ((1 - r) * u) + x
        none:     v = b * u + x
        s = H(v - threshold);  spk = s * graded_spikes_factor
        reset_delay=True:   mem = v
        reset_delay=False:  d = s - r;  subtract: mem = v - d * threshold;  zero: mem = v - d * v;  none: mem = v

    Spikes and membranes equal snnTorch's bit for bit in float32 and float64. The kernels compute, and carry the
    membrane from step to step, in the *opmath dtype*: float32 in half precision, otherwise the dtype of ``current``.
    Spikes and recorded membranes are rounded to the dtype of ``current`` when they are returned. The last membrane with
    ``record_mem=False`` is not rounded, so that the next call can continue from it.

    Args:
        current: Input current of every step, ``[T, *]``, in units of the threshold; float32, float64, float16 or
            bfloat16. With ``num_steps``, ``[*]``: the same current at every step, which never exists over time.
        mem: Membrane before the first step, ``[*]``, any floating dtype. ``None``: zeros.
        beta: Decay per time step, clamped to [0, 1]; a number, or a tensor broadcastable to ``[*]`` (one per layer,
            neuron, channel ...). Like every tensor argument, it may require a gradient. It may vary with time: pass a
            tensor with all dimensions of ``[T, *]``, whose first is ``T`` and whose others broadcast to ``[*]``. Each
            step is then one kernel.
        threshold: Membrane above which a neuron spikes; a number or a tensor broadcastable to ``[*]``, or one that
            varies with time, like ``beta``. The reset of step ``t`` then uses the threshold of that step,
            ``r = H(u - threshold[t])``, not the one under which the membrane spiked before.
        graded_spikes_factor: Height of a spike; a number or a tensor broadcastable to ``[*]``.
        spike_grad: Derivative of a spike in the backward pass. One of :mod:`snnfast.surrogate` or of
            ``snntorch.surrogate``, or any callable of ``mem - threshold`` that returns the spikes
            ``1[mem - threshold > 0]``. A callable must be a pure function, the same forward and backward. When it is
            first used for a shape, a dtype and a device, it is tested on made-up values. It is then called on all time
            steps at once, ``[T, *]``. If it does not support that, or returns other values, the layer runs step by
            step, with one warning. ``None``: ``surrogate.atan()``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.
        num_steps: Number of steps of a constant current. ``None``: time is the leading dimension of ``current``.
        record_mem: Return the membrane after every step, or only after the last one (less memory).
        inhibition: In each sample, only the neuron with the largest ``mem - threshold`` may spike (with height 1, as in
            snnTorch). Others above the threshold are reset all the same. A step must be ``[B, N]``. With
            ``reset_delay=False`` the layer runs step by step, with one warning.
        state_quant: A function that is applied to the membrane at every step, such as
            ``snntorch.functional.quant.state_quant`` makes. ``False`` or ``None``: none. The layer runs step by step,
            with one warning.
        reduce: ``"sum"``: return the spike count over time, as for a rate code. The kernels then never write the
            spikes. ``None``: return the spikes.
        weight: Weights ``[O, N]`` of a linear layer behind the neurons, in the dtype of ``current``, whose last
            dimension is ``N``. The first result is then ``linear(spk, weight, bias)`` instead of the spikes. The CPU
            kernels pass the spikes on as bits, and never write them or their gradient as numbers
            (:func:`snnfast.use_events`). Results are the same up to the order of the sums. ``None``: return the spikes.
        bias: Bias ``[O]`` of that layer. ``None``: none.
        lengths: The number of steps of each sample, integers ``[B]`` from 0 to ``T``, where ``B`` is the first
            dimension of a step; on the CPU or the device of ``current``. After its last step a sample keeps its states
            and does not spike, so records repeat its last state. Results and gradients are those of a separate call for
            each sample, whatever the padding of ``current`` contains. Other numbers are an error if ``lengths`` is on
            the CPU; on CUDA they are clamped to the range. ``None``: all samples have ``T`` steps.

    Returns:
        ``(spk, mem)``, both ``[T, *]`` in the dtype of ``current``.

        - With ``record_mem=False``, ``mem`` is the last membrane ``[*]`` in the opmath dtype.
        - A float64 ``mem``, or a float64 parameter with dimensions, makes the opmath dtype and the membranes float64.
        - With ``reduce="sum"``, ``spk`` is the spike count ``[*]``, added up in the opmath dtype and rounded once.
        - With ``weight``, the output of the linear layer ``[T, *, O]`` replaces ``spk``. With ``reduce="sum"`` as well,
          the linear layer gets the spike count and returns ``[*, O]``.

    Raises:
        TypeError: An argument has a wrong type or dtype. The message names it.
        ValueError: An argument has a wrong shape, device or value. Values of tensors are not checked: NaN propagates.

    Example::

        >>> import torch, snnfast
        >>> cur = torch.full((3, 1), 0.6, requires_grad=True)  # [T=3, B=1]
        >>> spk, mem = snnfast.functional.lif(cur, beta=1.0)
        >>> spk.detach().flatten(), mem.detach().flatten()
        (tensor([0., 1., 0.]), tensor([0.6000, 1.2000, 0.8000]))
        >>> weight = torch.tensor([[0.5], [2.0]])  # [O=2, N=1]
        >>> out, mem = snnfast.functional.lif(cur, beta=1.0, weight=weight)
        >>> out.detach()
        tensor([[0.0000, 0.0000],
                [0.5000, 2.0000],
                [0.0000, 0.0000]])

    Source: J. K. Eshraghian et al., *Training spiking neural networks using lessons from deep learning*, Proc. IEEE
    111 (2023), and ``snntorch.Leaky`` 1.0.0, whose order of operations this is.
    """
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    parameters = beta, threshold, graded_spikes_factor
    return run_function(  # type: ignore[no-any-return]
        LEAKY, options, current, (mem,), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


class Leaky(SpikingLayer):
    r"""A layer of leaky integrate-and-fire neurons, argument for argument ``snntorch.Leaky``.

    A call computes one time step. :meth:`unroll` computes all time steps in one kernel. It equals that many calls, bit
    for bit in float32 and float64. The equations are those of :func:`snnfast.functional.lif`.

    The ``state_dict`` has the keys, order, shapes and dtypes of ``snntorch.Leaky``'s, so that checkpoints load both
    ways. :class:`snnfast.snntorch.Leaky` is the same layer as an instance of ``snntorch.Leaky``.

    Args:
        beta: Decay of the membrane per time step, clamped to [0, 1] when used; a number, or a tensor broadcastable to
            one step of the input ``[B, *]`` (one per neuron, channel ...).
        threshold: Membrane above which a neuron spikes; a number or a tensor like ``beta``.
        spike_grad: Surrogate gradient, one of :mod:`snnfast.surrogate` or ``snntorch.surrogate``, or any callable of
            ``mem - threshold`` that returns the spikes ``1[mem - threshold > 0]``. ``None``: ``surrogate.atan()``.
        surrogate_disable: Let no gradient pass through the spikes, whatever ``spike_grad`` is.
        init_hidden: Keep the membrane inside the layer. It must not be passed then, and one step returns only the
            spikes. Call :func:`snnfast.reset` between samples to set it to zeros.
        inhibition: In each sample, only the neuron with the largest ``mem - threshold`` may spike. Needs ``[B, N]``.
        learn_beta: Make ``beta`` an ``nn.Parameter``.
        learn_threshold: Make ``threshold`` an ``nn.Parameter``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        state_quant: A function that quantizes the membrane at every step, for example from
            ``snntorch.functional.quant``. ``False``: none. The layer then runs step by step, at the speed of snnTorch.
        output: With ``init_hidden``, return the membrane as well.
        graded_spikes_factor: Height of a spike; a number or a tensor like ``beta``.
        learn_graded_spikes_factor: Make ``graded_spikes_factor`` an ``nn.Parameter``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.

    Flags may also be numpy's bools, or 1 and 0. Flags whose default is False may be ``None``.

    Attributes:
        mem: The membrane after the last step ``[B, *]``, empty at first. It follows the layer to another device or
            dtype. It is not a buffer: ``DistributedDataParallel`` would overwrite it with another process's.
        instances: All layers that exist, held weakly.

    Raises:
        TypeError: An argument has a wrong type. The message names it.
        ValueError: An argument has a wrong value, such as NaN in ``beta``, ``threshold`` or ``graded_spikes_factor``.

    Example::

        >>> import torch, snnfast
        >>> lif = snnfast.Leaky(beta=0.95)
        >>> cur = torch.rand(25, 128, 1000, requires_grad=True)  # [T, B, N]
        >>> spk_rec, mem_rec = lif.unroll(cur)                   # every step in one kernel
        >>> spk_rec.shape, mem_rec.shape
        (torch.Size([25, 128, 1000]), torch.Size([25, 128, 1000]))
        >>> spk, mem = lif(cur[0], torch.zeros(128, 1000))       # one step, as in snnTorch

    Source: ``snntorch.Leaky`` 1.0.0; J. K. Eshraghian et al., Proc. IEEE 111 (2023).
    """

    beta: Tensor

    neuron = LEAKY

    def __init__(
        self,
        beta: float | Tensor,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant | bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
    ) -> None:
        self._begin(
            threshold, learn_threshold, spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism,
            state_quant, output, reset_delay, graded_spikes_factor, learn_graded_spikes_factor,
        )  # fmt: skip
        self._add("beta", beta, learn_beta)
        self._finish()

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """One time step.

        Args:
            input_: Current ``[B, *]``.
            mem: Membrane before the step ``[B, *]``. ``None``: the membrane that the layer holds from the last call. A
                membrane of another shape than ``input_`` (as before the first call) is replaced by zeros, as in
                snnTorch. A float64 membrane makes the step float64.

        Returns:
            ``(spk, mem)``, both ``[B, *]``. With ``init_hidden`` and without ``output``, only ``spk``. ``spk`` has the
            dtype of ``input_``. ``mem`` has the opmath dtype: float32 for a half-precision ``input_``, and float64 if
            the membrane before was. Hooks of ``mem`` and its own gradient need :func:`snnfast.use_state_gradients`.

        Raises:
            TypeError: ``mem`` is given though ``init_hidden=True``. Nothing is changed then.
            ValueError: A parameter does not broadcast to ``input_``, or is on another device.
            RuntimeError: The layer would have to use the held membrane where this would be wrong: when activation
                checkpointing recomputes the step, or under a transform of ``torch.func``.
        """
        return self._step(input_, (mem,))  # type: ignore[no-any-return]

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
        reduce: str | None = None,
        lengths: Tensor | None = None,  # [B]
    ) -> tuple[Tensor, Tensor]:
        """All time steps in one kernel.

        It starts from ``mem``, or from zeros if ``mem`` is not given. With ``init_hidden``, it starts from the held
        membrane (or from zeros if that has another shape), and the layer then holds the last membrane.

        Args:
            current: Current of every step ``[T, B, *]``. With ``num_steps``, ``[B, *]``: the same current at each step.
            mem: Membrane before the first step ``[B, *]``. With ``init_hidden`` it must not be given.
            num_steps: Number of steps of a constant current.
            record_mem: Return the membrane of every step, or only the last.
            reduce: ``"sum"``: return the spike count over time. The spikes are then never written. ``None``: return the
                spikes.
            lengths: The number of steps of each sample, integers ``[B]`` from 0 to ``T``, on the CPU or the device of
                ``current``. After its last step a sample keeps its states and does not spike (see
                :func:`snnfast.functional.lif`). ``None``: all samples have ``T`` steps.

        Returns:
            ``(spk_rec, mem_rec)``, both ``[T, B, *]``. With ``record_mem=False``, ``(spk_rec, mem)`` with
            ``mem [B, *]``. With ``reduce="sum"`` the first is the spike count ``[B, *]``. For a half-precision
            ``current``, ``mem`` is float32, but ``mem_rec`` is rounded: to continue a sequence, use ``mem`` or
            ``init_hidden``, not the last record. The gradient of ``mem_rec``, which a hook or ``retain_grad`` sees, is
            the one that the loss has for it. What passes from step to step inside of the kernel is not in it.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.lif`.
            RuntimeError: As for one step.
        """
        return self._unroll(current, (mem,), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]

    def init_leaky(self) -> Tensor:
        """The old name of ``reset_mem``, which snnTorch's tutorials use."""
        return self.reset_mem()  # type: ignore[no-any-return]
