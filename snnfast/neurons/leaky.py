"""See :class:`Leaky`."""

from typing import ClassVar

from torch import Tensor, nn

from snnfast._core import ops
from snnfast._unroll.call import StateQuant
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.instances import Instances
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["Leaky"]


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

    neuron = ops.LEAKY
    instances: ClassVar[Instances] = Instances()

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
        nn.Module.__init__(self)  # by name: a subclass may have snntorch.Leaky as its next base
        self._set_options(
            spike_grad, surrogate_disable, init_hidden, inhibition, reset_mechanism, state_quant, output, reset_delay
        )
        # The order is that of snntorch.Leaky's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", graded_spikes_factor, learn_graded_spikes_factor)
        self._add_reset_mechanism()
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
