"""What the kernels may assume of a ``spike_grad``: snnTorch's own are recognised, any other callable is examined."""

import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnfast import surrogate
from snnfast.surrogate import Surrogate

SpikeGrad = Callable[[Tensor], Tensor]


_BYPASS = ("snntorch._neurons.neurons", "SpikingNeuron._surrogate_bypass")


def recognise(spike_grad: Any) -> Any:
    """Return our equal of one of snnTorch's surrogates; anything else comes back as it is.

    snnTorch 1.0.0 returns closures ``atan.<locals>.inner`` whose free variables are the parameters; its main branch
    returns an object ``ATanSurrogate`` with the same names as attributes. They are told by name, so that snnTorch is
    never imported for it.
    """
    # The names of a function can't be traced by torch.compile; layers recognise theirs when they are made.
    if isinstance(spike_grad, Surrogate) or torch.compiler.is_compiling():
        return spike_grad
    if isinstance(spike_grad, types.FunctionType):
        if spike_grad.__qualname__ == "SpikingNeuron._surrogate_bypass" and spike_grad.__module__.startswith(
            "snntorch."
        ):
            return surrogate.DISABLED
        name, _, inner = spike_grad.__qualname__.partition(".<locals>.")
        if spike_grad.__module__ != "snntorch.surrogate" or inner != "inner":
            return spike_grad
        cells = (cell.cell_contents for cell in spike_grad.__closure__ or ())
        values = dict(zip(spike_grad.__code__.co_freevars, cells, strict=True))
        if name == "custom_surrogate" and "func" in values:
            return surrogate.custom_surrogate(values["func"])
    elif type(spike_grad).__module__ == "snntorch.surrogate" and type(spike_grad).__name__ == "ATanSurrogate":
        name, values = "atan", vars(spike_grad)
    else:
        return spike_grad
    factory = surrogate.FACTORIES.get(name)
    if factory is None or not all(map(_is_number, values.values())):
        return spike_grad
    return factory(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


class Traits(NamedTuple):
    """Why a callable can't run in the fused unroll, in words for the user; ``None`` where it can."""

    delayed: str | None  # with reset_delay=True
    immediate: str | None  # with reset_delay=False, where the derivative enters the recurrence


_examined: weakref.WeakKeyDictionary[Any, Traits] = weakref.WeakKeyDictionary()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile runs it while tracing
def examine(spike_grad: SpikeGrad, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Traits:
    """Try ``spike_grad`` on two made-up time steps of ``shape``, once per callable.

    The kernels reset by the step ``1[z > 0]``, call it on all time steps at once, and with an immediate reset take its
    derivative to be one number per neuron and step: a callable for which that is wrong must not reach them.
    """
    try:
        known = _examined.get(spike_grad)
    except TypeError:  # neither hashable nor weakly referable: examined at every call
        return _examine(spike_grad, shape, dtype, device)
    if known is None:
        known = _examine(spike_grad, shape, dtype, device)
        _examined[spike_grad] = known
    return known


_SAMPLES = (-3.0, 1e-3, -0.5, 0.0, 2.0, -1e-3, 1.0, -1.0, 0.25)


def _examine(spike_grad: SpikeGrad, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Traits:
    n = shape.numel()
    if n == 0:
        return Traits(None, None)
    samples = torch.tensor(_SAMPLES, dtype=dtype, device=device)
    z = samples.repeat(-(-2 * n // len(_SAMPLES)))[: 2 * n].view(2, *shape)
    weights = torch.linspace(-1, 2, 2 * n, dtype=dtype, device=device).view(2, *shape)
    with _random_numbers_kept(device), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        # Errors of these calls are the callable's own: a loop over time would meet them as well.
        learned = (
            "it has parameters of its own that ask for a gradient" if _asks_for_a_gradient(spike_grad(z[0])) else None
        )
        values, gradients = zip(*(_value_and_gradient(spike_grad, z[i], weights[i]) for i in range(2)), strict=True)
        if not torch.equal(torch.stack(values).to(dtype), (z > 0).to(dtype)):
            return Traits(*("its value is not the step 1[mem - threshold > 0]",) * 2)
        try:
            together = _value_and_gradient(spike_grad, z, weights)[1]
        except Exception as error:
            return Traits(*(f"it can't be called on all time steps at once ({error})",) * 2)
        if not _equal(_value_and_gradient(spike_grad, z, weights)[1], together):
            return Traits(None, learned)  # a random derivative: nothing to compare
        of_ones = _value_and_gradient(spike_grad, z, torch.ones_like(weights))[1]
    if not _equal(together, torch.stack(gradients)):
        return Traits(*("its derivative in one time step depends on the others",) * 2)
    if not _equal(together, weights * of_ones):
        return Traits(None, "its gradient is not the incoming one times a derivative of each neuron's own")
    return Traits(None, learned)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)


def _asks_for_a_gradient(spk: object) -> bool:
    if not isinstance(spk, Tensor):
        raise TypeError(f"spike_grad: expected a callable that returns a torch.Tensor, got {type(spk).__name__}")
    return spk.requires_grad


def _value_and_gradient(spike_grad: SpikeGrad, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    spk = spike_grad(z)
    if not spk.requires_grad:
        return spk, torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(spk, z, weights.to(spk.dtype), allow_unused=True)
    return spk.detach(), torch.zeros_like(z) if gradient is None else gradient


@contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type="cuda"):
        yield
