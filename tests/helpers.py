"""What several test files share: options with readable ids, random inputs, and comparison by bits."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnfast import surrogate
from snnfast.surrogate import Surrogate

RESETS = ("subtract", "zero", "none")
FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
PARAMETERS = ("scalar", "one", "neuron", "channel", "batch", "element", "exotic", "mixed")
TENSORS = ("current", "mem", "beta", "threshold", "graded_spikes_factor")

# Parameters other than the defaults, and derivatives small enough not to grow through an immediate reset.
SURROGATES: dict[str, Surrogate] = {
    "atan": surrogate.atan(alpha=1.5),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=4.0),
    "sigmoid": surrogate.sigmoid(slope=3.0),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "heaviside": surrogate.heaviside(),
    "triangular": surrogate.triangular(threshold=0.5),
    "spike_rate_escape": surrogate.spike_rate_escape(beta=1.3, slope=0.7),
    "SFS": surrogate.SFS(slope=2.0, B=0.2),
    "LSO": surrogate.LSO(slope=0.3),
}

_DIMENSIONS: dict[int, tuple[str, ...]] = {
    0: (), 1: ("N",), 2: ("B", "N"), 3: ("B", "C", "L"), 4: ("B", "C", "H", "W"), 5: ("B", "C", "D", "H", "W"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One call of ``lif``."""

    steps: int = 9
    shape: tuple[int, ...] = (3, 10)  # of one time step
    dtype: torch.dtype = torch.float32
    reset: str = "subtract"
    delay: bool = True
    record_mem: bool = True
    constant: bool = False
    parameters: str = "scalar"
    mem: bool = True
    spike_grad: Surrogate = SURROGATES["atan"]
    count: bool = False  # reduce="sum"

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def options(self) -> dict[str, Any]:
        return {
            "spike_grad": self.spike_grad,
            "reset_mechanism": self.reset,
            "reset_delay": self.delay,
            "num_steps": self.steps if self.constant else None,
            "record_mem": self.record_mem,
            "reduce": "sum" if self.count else None,
        }

    def __str__(self) -> str:
        words = [f"T{self.steps}", *(f"{d}{n}" for d, n in zip(_DIMENSIONS[len(self.shape)], self.shape, strict=True))]
        words += [str(self.dtype).removeprefix("torch."), self.reset]
        if self.parameters != "scalar":
            words.append(self.parameters)
        flags = {
            "nodelay": not self.delay,
            "last": not self.record_mem,
            "constant": self.constant,
            "zeros": not self.mem,
            "count": self.count,
        }
        return "-".join(words + [word for word, given in flags.items() if given])


class Bump(torch.autograd.Function):
    """A surrogate that the kernels do not know, as many users write theirs."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grads[0] * torch.exp(-z.abs())


def random_cases(number: int, seed: int, **choices: tuple[Any, ...]) -> Iterator[Case]:
    """Cases with every field that ``choices`` names drawn from its choices."""
    draw = random.Random(seed)
    for _ in range(number):
        yield Case(**{field: draw.choice(values) for field, values in choices.items()})


def parameter_shapes(kind: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of beta, threshold and graded_spikes_factor for one time step of ``shape``."""
    of = {
        "scalar": (),
        "one": (1,) if shape else (),
        "neuron": shape[-1:],
        "channel": (shape[1], *(1 for _ in shape[2:])) if len(shape) > 1 else shape,
        "batch": (*shape[:1], *(1 for _ in shape[1:])),
        "element": shape,
        "exotic": tuple(n if d % 2 else 1 for d, n in enumerate(shape)),
    }
    return (of["neuron"], of["scalar"], of["batch"]) if kind == "mixed" else (of[kind],) * 3


def inputs(
    case: Case, device: torch.device | str = "cpu", seed: int = 0, wild: bool = False
) -> dict[str, Tensor | None]:
    """Random tensors that make about a third of the neurons spike; with ``wild`` beta leaves [0, 1] here and there."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: tuple[int, ...], low: float, high: float, dtype: torch.dtype = case.acc) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return values.to(dtype).to(device)

    shapes = parameter_shapes(case.parameters, case.shape)
    return {
        "current": uniform(case.shape if case.constant else (case.steps, *case.shape), -0.6, 1.4, case.dtype),
        "mem": uniform(case.shape, -0.5, 2.0) if case.mem else None,
        "beta": uniform(shapes[0], -0.4, 1.3) if wild else uniform(shapes[0], 0.3, 0.98),
        "threshold": uniform(shapes[1], 0.6, 1.1),
        "graded_spikes_factor": uniform(shapes[2], 0.5, 2.0),
    }


def leaves(tensors: Mapping[str, Tensor | None], wrt: tuple[str, ...] = TENSORS) -> dict[str, Tensor | None]:
    """The same values, asking for gradients."""
    return {name: t if t is None else t.detach().clone().requires_grad_(name in wrt) for name, t in tensors.items()}


def call(
    lif: Callable[..., tuple[Tensor, Tensor]], tensors: Mapping[str, Tensor | None], case: Case
) -> tuple[Tensor, Tensor]:
    return lif(**tensors, **case.options)


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_bits_equal(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal dtype, shape and bits; so 0.0 differs from -0.0, while any NaN equals any other."""
    prefix = f"{what}: " if what else ""
    assert actual.dtype == expected.dtype, f"{prefix}dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{prefix}shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, b = (t.detach().cpu().contiguous() for t in (actual, expected))
    if a.is_floating_point():
        bits = _BITS[a.element_size()]
        differ = (a.view(bits) != b.view(bits)) & ~(a.isnan() & b.isnan())
    else:
        differ = a != b
    if differ.any():
        where = tuple(differ.nonzero()[0].tolist())
        raise AssertionError(
            f"{prefix}{int(differ.sum())} of {differ.numel()} elements differ, first at {where}: "
            f"{a[where].item()!r}, expected {b[where].item()!r}"
        )


def assert_close(
    actual: Tensor | None, expected: Tensor | None, relative: float, what: str = "", scale: float = 0.0
) -> None:
    """Equal up to ``relative`` times the largest finite magnitude expected, or ``scale`` if that is more.

    NaN and Inf must be in the same places.
    """
    if actual is None or expected is None:
        assert actual is expected, f"{what}: {actual} against {expected}"
        return
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, b = actual.detach().cpu().double(), expected.detach().cpu().double()
    if b.isfinite().any():
        scale = max(scale, b[b.isfinite()].abs().max().item())
    torch.testing.assert_close(a, b, rtol=0, atol=relative * scale, equal_nan=True, msg=lambda m: f"{what}: {m}")
