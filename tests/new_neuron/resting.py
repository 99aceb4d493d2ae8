"""A leaky neuron whose membrane decays to a resting one: :func:`resting` and :class:`Resting`."""

from torch import Tensor

from snnfast._core.ops import Neuron
from snnfast._unroll.call import Parameters, StateQuant
from snnfast._unroll.checks import check_options
from snnfast._unroll.run import run_function
from snnfast.neurons.base import SpikingLayer
from snnfast.surrogate.examine import SpikeGrad

__all__ = ["RESTING", "Resting", "resting"]

RESTING = Neuron(
    "resting",
    states=("mem",),
    parameters=("beta", "rest", "threshold", "graded_spikes_factor"),
    recorded_membrane_suffices=True,
)


@RESTING.reference_step
def step(x: Tensor, states: list[Tensor], parameters: Parameters, reset: Tensor, mechanism: str) -> list[Tensor]:
    (mem,), (beta, rest, threshold, _) = states, parameters
    base = beta.clamp(0, 1) * (mem - rest) + (x + rest)
    if mechanism == "subtract":
        return [base - reset * threshold]
    return [base - reset * base if mechanism == "zero" else base]


def resting(
    current: Tensor,  # [T, *], or [*] with num_steps
    mem: Tensor | None = None,  # [*]
    *,
    beta: float | Tensor,
    rest: float | Tensor = 0.0,
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
    """Unroll a layer of leaky neurons with a resting membrane over time.

    The equations are those of :func:`snnfast.functional.rleaky` with another ``base``::

        base = b * (u - rest) + (x + rest)

    Args:
        rest: Membrane that a neuron without a current decays to; a number, or a tensor broadcastable to ``[*]``.

    All other arguments, and the errors, are those of :func:`snnfast.functional.lif`.

    Returns:
        ``(spk, mem)``: as of :func:`snnfast.functional.lif`.
    """
    options = check_options(spike_grad, reset_mechanism, reset_delay, inhibition, state_quant)
    parameters = beta, rest, threshold, graded_spikes_factor
    return run_function(  # type: ignore[no-any-return]
        RESTING, options, current, (mem,), parameters, num_steps, record_mem, reduce, weight, bias, lengths
    )


class Resting(SpikingLayer):
    """A layer of leaky neurons with a resting membrane.

    Args:
        rest: Membrane that a neuron without a current decays to; a number or a tensor like ``beta``.
        learn_rest: Make ``rest`` an ``nn.Parameter``.

    All other arguments are those of :class:`snnfast.Leaky`.
    """

    beta: Tensor
    rest: Tensor

    neuron = RESTING

    def __init__(
        self,
        beta: float | Tensor,
        rest: float | Tensor = 0.0,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_rest: bool = False,
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
        self._add("rest", rest, learn_rest)
        self._finish()

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """One time step, as :meth:`snnfast.Leaky.forward`."""
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
        """All time steps, as :meth:`snnfast.Leaky.unroll`."""
        return self._unroll(current, (mem,), num_steps, record_mem, reduce, lengths=lengths)  # type: ignore[return-value]
