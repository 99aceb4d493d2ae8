"""See :class:`Leaky`."""

from typing import Any

import torch
from torch import Tensor, nn

from snnfast import functional
from snnfast._arguments import (
    RESET_MECHANISMS,
    SpikeGrad,
    check_current,
    check_flag,
    check_number,
    check_reset_mechanism,
    check_spike_grad,
)

__all__ = ["Leaky"]


class Leaky(nn.Module):
    r"""A layer of leaky integrate-and-fire neurons, argument for argument ``snntorch.Leaky``.

    Called, it computes one time step; :meth:`unroll` computes all of them in one kernel and equals that many calls,
    bit for bit in float32 and float64. The equations are those of :func:`snnfast.functional.lif`.

    Args:
        beta: Decay of the membrane per time step, clamped to [0, 1] when used; a number, or a tensor broadcastable to
            one step of the input ``[B, *]`` (one per neuron, channel ...).
        threshold: Membrane above which a neuron spikes; a number or a tensor like ``beta``.
        spike_grad: Surrogate gradient, one of :mod:`snnfast.surrogate` or any callable of ``mem - threshold`` that
            returns the spikes ``1[mem - threshold > 0]``. ``None``: ``surrogate.atan()``.
        surrogate_disable: Not supported yet; must be ``False``.
        init_hidden: Keep the membrane inside the layer: it is not passed, and one step returns only the spikes.
        inhibition: Not supported yet; must be ``False``.
        learn_beta: Make ``beta`` an ``nn.Parameter``.
        learn_threshold: Make ``threshold`` an ``nn.Parameter``.
        reset_mechanism: ``"subtract"`` the threshold, set to ``"zero"``, or ``"none"``.
        state_quant: Not supported yet; must be ``False``.
        output: With ``init_hidden``, return the membrane as well.
        graded_spikes_factor: Height of a spike; a number or a tensor like ``beta``.
        learn_graded_spikes_factor: Make ``graded_spikes_factor`` an ``nn.Parameter``.
        reset_delay: Reset one step after the spike (snnTorch's default) or at once.

    Attributes:
        mem: The membrane after the last step ``[B, *]``; a non-persistent buffer, empty at first.

    Raises:
        TypeError: An argument of a wrong type, named.
        ValueError: A wrong value, named; NaN in ``beta``, ``threshold`` or ``graded_spikes_factor``.
        NotImplementedError: An option that is not supported yet.

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
    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism_val: Tensor
    mem: Tensor

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
        state_quant: bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (
            ("surrogate_disable", surrogate_disable),
            ("inhibition", inhibition),
            ("state_quant", state_quant),
        ):
            if value is not False:
                raise NotImplementedError(f"{name}: not supported by snnfast.Leaky yet, only False; use snntorch.Leaky")
        self.spike_grad = check_spike_grad(spike_grad)
        self.init_hidden = check_flag("init_hidden", init_hidden)
        self.output = check_flag("output", output)
        self._reset_mechanism = check_reset_mechanism(reset_mechanism)
        self.reset_delay = check_flag("reset_delay", reset_delay)
        # The order is that of snntorch.Leaky's state_dict.
        self._add("threshold", threshold, learn_threshold)
        self._add("graded_spikes_factor", graded_spikes_factor, learn_graded_spikes_factor)
        self.register_buffer("reset_mechanism_val", torch.as_tensor(RESET_MECHANISMS.index(reset_mechanism)))
        self._add("beta", beta, learn_beta)
        self.register_buffer("mem", torch.zeros(0), persistent=False)

    def _add(self, name: str, value: float | Tensor, learn: bool) -> None:
        check_flag(f"learn_{name}", learn)
        if not isinstance(value, Tensor):
            value = torch.tensor(check_number(name, value))
        elif value.is_complex():
            raise TypeError(f"{name}: expected a real tensor, got {value.dtype}")
        elif not value.is_meta and value.isnan().any():
            raise ValueError(f"{name}: expected numbers, got a tensor with NaN")
        if learn:
            if not value.is_floating_point():
                raise TypeError(f"{name}: only a floating tensor can be learned, got {value.dtype}")
            setattr(self, name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @property
    def reset_mechanism(self) -> str:
        """``"subtract"``, ``"zero"`` or ``"none"``; setting it takes effect with the next step."""
        return self._reset_mechanism

    @reset_mechanism.setter
    def reset_mechanism(self, reset_mechanism: str) -> None:
        self._reset_mechanism = check_reset_mechanism(reset_mechanism)
        self.reset_mechanism_val.fill_(RESET_MECHANISMS.index(reset_mechanism))

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """One time step.

        Args:
            input_: Current ``[B, *]``.
            mem: Membrane before the step ``[B, *]``. ``None``: the one held from the last call. One of another shape
                than ``input_`` (as it is before the first call) is replaced by zeros, as in snnTorch.

        Returns:
            ``(spk, mem)``, both ``[B, *]``; with ``init_hidden`` and not ``output`` only ``spk``.

        Raises:
            TypeError: ``mem`` is given though ``init_hidden=True``; nothing is changed then.
        """
        if mem is not None and self.init_hidden:
            raise TypeError("mem: must not be passed to a layer with init_hidden=True, which holds its own")
        check_current("input_", input_)
        held = self.mem if mem is None else mem
        if not isinstance(held, Tensor):
            raise TypeError(f"mem: expected a torch.Tensor or None, got {type(mem).__name__}")
        spk, self.mem = self._lif(input_, held if held.shape == input_.shape else None, num_steps=1, record_mem=False)
        spk = spk.squeeze(0)
        return spk if self.init_hidden and not self.output else (spk, self.mem)

    def unroll(
        self,
        current: Tensor,  # [T, B, *], or [B, *] with num_steps
        mem: Tensor | None = None,  # [B, *]
        *,
        num_steps: int | None = None,
        record_mem: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """All time steps in one kernel.

        Starts from ``mem`` if given; else, with ``init_hidden``, from the held membrane (zeros if it has another
        shape); else from zeros. With ``init_hidden`` the layer then holds the last membrane.

        Args:
            current: Current of every step ``[T, B, *]``; with ``num_steps`` the same current ``[B, *]`` at each of
                that many steps.
            mem: Membrane before the first step ``[B, *]``; with ``init_hidden`` it must not be given.
            num_steps: Number of steps of a constant current.
            record_mem: Return the membrane of every step, or only the last.

        Returns:
            ``(spk_rec, mem_rec)``, both ``[T, B, *]``; with ``record_mem=False`` ``(spk_rec, mem)``, ``mem [B, *]``.

        Raises:
            TypeError, ValueError: As :func:`snnfast.functional.lif`.
        """
        if mem is not None and self.init_hidden:
            raise TypeError("mem: must not be passed to a layer with init_hidden=True, which holds its own")
        if self.init_hidden and isinstance(current, Tensor):
            step_shape = current.shape if num_steps is not None else current.shape[1:]
            mem = self.mem if self.mem.shape == step_shape else None
        spk_rec, mem_rec = self._lif(current, mem, num_steps, record_mem)
        if self.init_hidden:
            # A copy where it would be a view: detaching a view in place is an error.
            last = mem_rec if not record_mem else mem_rec[-1].clone() if mem_rec.shape[0] > 0 else mem
            self.mem = last if last is not None else mem_rec.new_zeros(mem_rec.shape[1:])
        return spk_rec, mem_rec

    def _lif(
        self, current: Tensor, mem: Tensor | None, num_steps: int | None, record_mem: bool
    ) -> tuple[Tensor, Tensor]:
        return functional.lif(
            current,
            mem,
            beta=self.beta,
            threshold=self.threshold,
            graded_spikes_factor=self.graded_spikes_factor,
            spike_grad=self.spike_grad,
            reset_mechanism=self.reset_mechanism,
            reset_delay=self.reset_delay,
            num_steps=num_steps,
            record_mem=record_mem,
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # What is loaded takes effect.
        if not self.reset_mechanism_val.is_meta:
            self._reset_mechanism = RESET_MECHANISMS[int(self.reset_mechanism_val)]

    def reset_mem(self) -> Tensor:
        """Set the held membrane to zeros (of its present shape) and return it."""
        self.mem = torch.zeros_like(self.mem)
        return self.mem

    def init_leaky(self) -> Tensor:
        """The old name of :meth:`reset_mem`, which snnTorch's tutorials use."""
        return self.reset_mem()

    def extra_repr(self) -> str:
        def show(parameter: Tensor) -> str:
            return f"{parameter.item():g}" if parameter.numel() == 1 else str(tuple(parameter.shape))

        return (
            f"beta={show(self.beta)}, threshold={show(self.threshold)}, reset_mechanism={self.reset_mechanism!r}, "
            f"reset_delay={self.reset_delay}, init_hidden={self.init_hidden}"
        )
