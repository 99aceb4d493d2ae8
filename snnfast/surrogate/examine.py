"""The properties of a ``spike_grad`` that kernels rely on. snnTorch's are recognised, other callables examined."""

import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnfast import surrogate
from snnfast._core.pytorch import constant_while_tracing, unrecorded
from snnfast.surrogate import Surrogate
from snnfast.surrogate.base import FACTORIES

SpikeGrad = Callable[[Tensor], Tensor]


_BYPASS = ("snntorch._neurons.neurons", "SpikingNeuron._surrogate_bypass")


@dataclass(frozen=True)
class Applied:
    """The ``apply`` of an ``autograd.Function`` as one object. Each access to ``Function.apply`` makes a new one.

    ``torch.compile`` takes it for a constant. It does not do so with a built-in method.
    """

    function: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return recognise, (self.function.apply,)

    def __call__(self, z: Tensor) -> Tensor:
        return self.function.apply(z)  # type: ignore[no-any-return]


_applied: weakref.WeakKeyDictionary[type, Applied] = weakref.WeakKeyDictionary()
_customs: weakref.WeakKeyDictionary[types.FunctionType, Surrogate] = weakref.WeakKeyDictionary()


def recognise(spike_grad: Any) -> Any:
    """Return our equal of one of snnTorch's surrogates, and anything else as it is.

    snnTorch 1.0.0 returns closures ``atan.<locals>.inner``, whose free variables are the parameters. They are
    recognised by name, so that snnTorch is never imported for it.
    """
    # The names of a function can't be traced by torch.compile; layers recognise theirs when they are made.
    if isinstance(spike_grad, Surrogate) or torch.compiler.is_compiling():
        return spike_grad
    owner = getattr(spike_grad, "__self__", None)  # of a method, whose type depends on torch, and on a recorder
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) and spike_grad.__name__ == "apply":
        return _applied.setdefault(owner, Applied(owner))
    if not isinstance(spike_grad, types.FunctionType):
        return spike_grad
    if (spike_grad.__module__, spike_grad.__qualname__) == _BYPASS:
        return surrogate.DISABLED
    name, _, inner = spike_grad.__qualname__.partition(".<locals>.")
    if spike_grad.__module__ != "snntorch.surrogate" or inner != "inner":
        return spike_grad
    cells = (cell.cell_contents for cell in spike_grad.__closure__ or ())
    values = dict(zip(spike_grad.__code__.co_freevars, cells, strict=True))
    if name == "custom_surrogate" and "func" in values:
        # One object for one closure: what has been examined is known by its identity.
        return _customs.setdefault(spike_grad, surrogate.custom_surrogate(values["func"]))
    factory = FACTORIES.get(name)
    if factory is None or not all(map(_is_number, values.values())):
        return spike_grad
    return factory(**values)


def how_to_make(given: Any) -> str | None:
    """The argument that a user meant who gave a factory of surrogates, or a class, without brackets; else ``None``."""
    if isinstance(given, Surrogate) or torch.compiler.is_compiling():
        return None
    if isinstance(given, type):
        return f"{given.__name__}.apply" if issubclass(given, torch.autograd.Function) else f"{given.__name__}()"
    if not isinstance(given, types.FunctionType) or given.__module__ not in ("snnfast.surrogate", "snntorch.surrogate"):
        return None
    if given.__qualname__ == "custom_surrogate":
        return "surrogate.custom_surrogate(function)"
    return f"surrogate.{given.__qualname__}()" if given.__qualname__ in FACTORIES else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


class Traits(NamedTuple):
    """Why a callable can't run in the fused unroll, in words for the user. ``None``: it can."""

    delayed: str | None  # with reset_delay=True
    immediate: str | None  # with reset_delay=False, where the derivative enters the recurrence


class _Examined(NamedTuple):
    spike_grad: weakref.ref[Any]
    verdicts: dict[Any, Traits]


# By identity: two callables that are equal may differ in what they compute.
_examined: dict[int, _Examined] = {}

# The most neurons in a trial. For a larger layer it takes fewer samples.
_MOST = 1 << 15


@constant_while_tracing
def examine(spike_grad: SpikeGrad, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Traits:
    """Try ``spike_grad`` on made-up time steps of ``shape``, once per callable, shape, dtype and device.

    The kernels assume three things: the value is the step ``1[z > 0]``, it can be called on all time steps at once,
    and, with an immediate reset, the derivative is one number per neuron and step. A callable for which one of these is
    wrong must not reach them.
    """
    if shape.numel() == 0:
        return Traits(None, None)  # nothing can go wrong, and nothing is learned of it
    key: tuple[Any, ...] = (shape, dtype, device)
    if isinstance(spike_grad, nn.Module):
        key += (spike_grad.training, tuple(p.requires_grad for p in spike_grad.parameters()))
    known = _examined.get(id(spike_grad))
    if known is not None and known.spike_grad() is spike_grad and key in known.verdicts:
        return known.verdicts[key]
    with unrecorded():
        verdict = _verdict(spike_grad, shape, dtype, device)
    if known is None or known.spike_grad() is not spike_grad:
        try:
            known = _Examined(weakref.ref(spike_grad, partial(_forget, id(spike_grad))), {})
        except TypeError:  # can't be referred to weakly: examined at every call
            return verdict
        _examined[id(spike_grad)] = known
    known.verdicts[key] = verdict
    return verdict


def _verdict(spike_grad: SpikeGrad, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Traits:
    fewer = _fewer_samples(shape)
    try:
        return _examine(spike_grad, fewer, dtype, device)
    except Exception:
        if fewer == shape:
            raise
        return _examine(spike_grad, shape, dtype, device)  # it may know the batch


def _forget(number: int, _: object) -> None:
    _examined.pop(number, None)


def _fewer_samples(shape: torch.Size) -> torch.Size:
    if shape.numel() <= _MOST or len(shape) < 2 or shape[0] <= 2:
        return shape
    return torch.Size((max(2, min(shape[0], _MOST // shape[1:].numel())), *shape[1:]))


# Distances from the threshold: of every size, and on it.
_SAMPLES = tuple(
    sign * size
    for size in (0.0, 1e-30, 1e-6, 1e-3, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0, 1e3)
    for sign in (1, -1)
)


def _steps(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Time steps that hold every sample, and that differ from one another in every statistic."""
    n = shape.numel()
    first = torch.tensor(_SAMPLES, dtype=dtype, device=device)
    count = -(-len(_SAMPLES) // n)
    steps = first.repeat(-(-count * n // len(_SAMPLES)))[: count * n].view(count, n)
    ramp = torch.linspace(0.2, 0.9, n, dtype=dtype, device=device)
    others = torch.stack([-0.37 * ramp.flip(0) + 0.1, torch.full_like(ramp, -0.4), 7 * ramp - 2, 0.01 * ramp])
    return torch.cat([steps, others]).view(-1, *shape)


def _examine(spike_grad: SpikeGrad, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Traits:
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _random_numbers_kept(device),
    ):
        z = _steps(shape, dtype, device)
        weights = torch.linspace(-1, 2, z.numel(), dtype=dtype, device=device).view_as(z)
        # An error in these calls is the callable's own: a loop over time would raise it as well.
        asks = check_spikes(spike_grad(z[0]), z[0]).requires_grad
        learned = "it has parameters of its own that ask for a gradient" if asks else None
        values, gradients = zip(
            *(_value_and_gradient(spike_grad, z[i], weights[i]) for i in range(len(z))), strict=True
        )
        try:
            value, together = _value_and_gradient(spike_grad, z, weights)
        except Exception as error:
            return Traits(*(f"it can't be called on all time steps at once ({error})",) * 2)
        step = (z > 0).to(dtype)
        if not (torch.equal(torch.stack(values).to(dtype), step) and torch.equal(value.to(dtype), step)):
            return Traits(*("its value is not the step 1[mem - threshold > 0]",) * 2)
        if not _equal(_value_and_gradient(spike_grad, z, weights)[1], together):
            return Traits(None, learned)  # a random derivative: nothing to compare
        of_ones = _value_and_gradient(spike_grad, z, torch.ones_like(weights))[1]
    if not _equal(together, torch.stack(gradients)):
        return Traits(*("its derivative in one time step depends on the others",) * 2)
    if not _equal(together, weights * of_ones):
        return Traits(None, "its gradient is not the incoming one times a derivative of each neuron's own")
    return Traits(None, learned)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, also that of sums in another order."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-7, equal_nan=True)


def check_spikes(spk: object, z: Tensor) -> Tensor:
    """Check the result of a ``spike_grad`` for one step of ``mem - threshold``, and return it."""
    if not isinstance(spk, Tensor):
        raise TypeError(f"spike_grad: expected a callable that returns a torch.Tensor, got {type(spk).__name__}")
    if spk.shape != z.shape:
        raise ValueError(
            f"spike_grad: expected a callable that returns spikes of the shape that it is given, {tuple(z.shape)}, "
            f"got {tuple(spk.shape)}"
        )
    return spk


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
