"""What several test files share: a call of a neuron, with a readable id, random inputs, and comparison by bits."""

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from neuron_kinds import KINDS, NEURONS, Kind, Outputs  # noqa: F401 - tests take NEURONS from here
from torch import Tensor

from snnfast import surrogate
from snnfast.surrogate import DISABLED, Surrogate

Tensors = dict[str, Tensor | None]

THOROUGH = os.environ.get("SNNFAST_THOROUGH") == "1"  # more random cases than a person wants to wait for
FIRST_SEED = int(os.environ.get("SNNFAST_EMULATOR_SEED", "0"))  # of the order of the emulator's threads
RESETS = ("subtract", "zero", "none")
FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
PARAMETERS = ("scalar", "one", "neuron", "channel", "batch", "element", "exotic", "mixed")

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
FROM_SPIKES = (SURROGATES["straight_through_estimator"], DISABLED)  # the derivative does not depend on the membrane


def every_other(choices: Iterable[Any], neuron: str, turn: int = 0) -> list[Any]:
    """Every other choice: what one neuron leaves out the next one takes, and this one at the next turn."""
    return list(choices)[(list(KINDS).index(neuron) + turn) % 2 :: 2]


def pairs(*choices: Iterable[Any]) -> list[Any]:
    """All combinations of some choices for ``parametrize``. `make test` has each choice once, `make test-all` all."""
    lists = [list(some) for some in choices]
    quick = {tuple(i % len(some) for some in lists) for i in range(max(map(len, lists)))}
    return [
        pytest.param(
            *[some[i] for some, i in zip(lists, at, strict=True)], marks=[] if at in quick else pytest.mark.thorough
        )
        for at in itertools.product(*[range(len(some)) for some in lists])
    ]


def _device(name: str, *marks: Any) -> Any:
    return pytest.param(name, marks=[pytest.mark.needs_extension, *marks])


# For the fixture ``device``: the emulator is slow, and for these tests the quick tier leaves it out.
emulated_if_thorough = pytest.mark.parametrize(
    "device",
    [_device("cpu"), _device("emulated", pytest.mark.emulated, pytest.mark.thorough), _device("cuda", pytest.mark.gpu)],
    indirect=True,
)


# ---- calls --------------------------------------------------------------------------------------------------------

# How a neuron is called. "step": its layer, one step after the other. "callable": with a surrogate that the kernels do
# not know. "bits": spikes are saved for backward as bits.
VARIANTS = (
    "unroll", "constant", "step", "count", "count+constant", "callable", "callable+constant", "callable+count",
    "callable+step", "bits", "bits+constant", "bits+count",
)  # fmt: skip


def _supports(neuron: str, variant: str) -> bool:
    return KINDS[neuron].ops.recorded_membrane_suffices or "bits" not in variant.split("+")


_DIMENSIONS: dict[int, tuple[str, ...]] = {
    0: (), 1: ("N",), 2: ("B", "N"), 3: ("B", "C", "L"), 4: ("B", "C", "H", "W"), 5: ("B", "C", "D", "H", "W"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One call of a neuron."""

    neuron: str = "leaky"
    variant: str = "unroll"  # one of VARIANTS
    steps: int = 9
    shape: tuple[int, ...] = (3, 10)  # of one time step
    dtype: torch.dtype = torch.float32
    reset: str = "subtract"
    delay: bool = True
    record_mem: bool = True
    parameters: str = "scalar"
    states: bool = True  # given, or zeros
    spike_grad: Any = SURROGATES["atan"]

    def has(self, word: str) -> bool:
        return word in self.variant.split("+")

    @property
    def kind(self) -> Kind:
        return KINDS[self.neuron]

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def names(self) -> tuple[str, ...]:
        return self.kind.names

    @property
    def wrt(self) -> tuple[str, ...]:
        """The inputs whose gradients the variant is about: bits tell no others."""
        untold = (*self.kind.decays, "graded_spikes_factor") if self.has("bits") else ()
        return tuple(name for name in self.names if name not in untold)

    @property
    def options(self) -> dict[str, Any]:
        return {
            "spike_grad": self.spike_grad, "reset_mechanism": self.reset, "reset_delay": self.delay,
            "num_steps": self.steps if self.has("constant") else None, "record_mem": self.record_mem,
            "reduce": "sum" if self.has("count") else None,
        }  # fmt: skip

    def fitted(self) -> "Case":
        """The nearest case that exists: not every variant goes with everything else."""
        case = self
        if not _supports(case.neuron, case.variant):
            case = replace(case, variant="unroll")
        if case.has("bits"):
            straight = case.spike_grad if case.spike_grad in FROM_SPIKES else FROM_SPIKES[0]
            case = replace(case, delay=True, record_mem=False, spike_grad=straight)
        if case.has("step"):
            case = replace(case, steps=max(1, case.steps))
            # Spikes that go from step to step are rounded.
            if case.kind.ops.has_spike_feedback and case.dtype in HALVES:
                case = replace(case, dtype=torch.float32)
        if case.parameters == "mixed" and len(case.shape) < 2:
            case = replace(case, parameters="neuron")
        return case

    def __str__(self) -> str:
        words = [self.neuron, self.variant, f"T{self.steps}"]
        words += [f"{d}{n}" for d, n in zip(_DIMENSIONS[len(self.shape)], self.shape, strict=True)]
        words += [str(self.dtype).removeprefix("torch."), self.reset]
        if self.parameters != "scalar":
            words.append(self.parameters)
        flags = {"nodelay": not self.delay, "last": not self.record_mem, "zeros": not self.states}
        words += [word for word, given in flags.items() if given]
        known = [name for name, own in SURROGATES.items() if own == self.spike_grad and name != "atan"]
        return "-".join(words + known)


ANY: dict[str, Sequence[Any]] = {
    "neuron": tuple(KINDS), "variant": VARIANTS, "steps": (0, 1, 2, 5, 15, 16, 17, 18, 33, 40),
    "shape": ((), (1,), (9,), (0, 4), (3, 10), (1, 64), (2, 3, 7), (2, 4, 3, 3), (2, 301)),
    "dtype": (*FLOATS, *FLOATS, *HALVES), "reset": RESETS, "delay": (True, False), "record_mem": (True, False),
    "parameters": PARAMETERS, "states": (True, True, False), "spike_grad": (*SURROGATES.values(), DISABLED),
}  # fmt: skip
"""Choices for every field of a case."""


def random_case(draw: random.Random, **choices: Sequence[Any]) -> Case:
    """A case with every field drawn from its ``choices``, by default from ``ANY``."""
    return Case(**{field: draw.choice(values) for field, values in {**ANY, **choices}.items()}).fitted()


def random_cases(number: int, seed: int | str, **choices: Sequence[Any]) -> Iterator[Case]:
    """Cases drawn one after the other, the same ones for the same seed."""
    draw = random.Random(seed)
    for _ in range(number):
        yield random_case(draw, **choices)


def parameter_shapes(kind: str, shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of so many parameters for one time step of ``shape``."""
    of = {
        "scalar": (), "one": (1,) if shape else (), "neuron": shape[-1:],
        "channel": (shape[1], *(1 for _ in shape[2:])) if len(shape) > 1 else shape,
        "batch": (*shape[:1], *(1 for _ in shape[1:])), "element": shape,
        "exotic": tuple(n if d % 2 else 1 for d, n in enumerate(shape)),
    }  # fmt: skip
    mixed = itertools.islice(itertools.cycle((of["neuron"], of["scalar"], of["batch"])), number)
    return tuple(mixed) if kind == "mixed" else (of[kind],) * number


def inputs(case: Case, device: torch.device | str = "cpu", seed: int = 0, wild: bool = False) -> Tensors:
    """Random tensors that make about a third of the neurons spike; with ``wild`` decays leave [0, 1] here and there."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: tuple[int, ...], low: float, high: float, dtype: torch.dtype) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return values.to(dtype).to(device)

    kind = case.kind
    parameters = kind.ops.parameters
    shapes = dict.fromkeys(kind.ops.states, case.shape)
    shapes |= dict(zip(parameters, parameter_shapes(case.parameters, case.shape, len(parameters)), strict=True))
    shapes["current"] = case.shape if case.has("constant") else (case.steps, *case.shape)
    made: Tensors = {}
    for name, limits in kind.ranges.items():
        low, high = (-0.4, 1.3) if wild and name in kind.decays else limits
        given = case.states or name not in kind.ops.states
        made[name] = uniform(shapes[name], low, high, case.dtype if name == "current" else case.acc) if given else None
    return made


def leaves(tensors: Mapping[str, Tensor | None], wrt: Sequence[str] | None = None) -> Tensors:
    """The same values, asking for gradients: all, or those of these names."""
    return {
        name: t if t is None else t.detach().clone().requires_grad_(wrt is None or name in wrt)
        for name, t in tensors.items()
    }


@functools.cache
def unknown(spike_grad: Any) -> Callable[[Tensor], Tensor]:
    """The same surrogate as a callable that the kernels do not know, and try out at its first use."""
    return lambda z: spike_grad(z)


def fused(tensors: Mapping[str, Any], case: Case, **more: Any) -> Outputs:
    """What the kernels make of a case, by name: the spikes or their count, and the states or the last ones.

    ``more``: options of the call that no case has.
    """
    spike_grad = unknown(case.spike_grad) if case.has("callable") else case.spike_grad
    if case.has("step"):
        assert not more
        return _step_by_step(tensors, case, spike_grad)
    options = {**case.options, "spike_grad": spike_grad, **more}
    return named(case.kind.function(**tensors, **options), case)


def expected(tensors: Mapping[str, Any], case: Case, **more: Any) -> Outputs:
    """What the reference makes of it: one loop over time, whatever the variant."""
    return named(case.kind.reference(**tensors, **case.options, **more), case)


def named(outputs: Sequence[Tensor], case: Case) -> Outputs:
    return dict(zip(case.kind.results, outputs, strict=True))


def layer_of(case: Case, tensors: Mapping[str, Any], **options: Any) -> Any:
    """A layer with the parameters of ``tensors`` themselves, whether they ask for gradients or not."""
    given = {"spike_grad": case.spike_grad, "reset_mechanism": case.reset, "reset_delay": case.delay, **options}
    layer = case.kind.layer(*(0.5 for _ in case.kind.decays), **given)
    for name in case.kind.ops.parameters:
        setattr(layer, name, tensors[name])
    return layer


def _step_by_step(tensors: Mapping[str, Any], case: Case, spike_grad: Any) -> Outputs:
    layer, states, steps = layer_of(case, tensors, spike_grad=spike_grad), case.kind.ops.states, []
    now = [tensors[name] for name in states]
    for x in tensors["current"]:
        spk, *now = layer(x, *now)
        steps.append((spk, *now))
        now = [spk, *now] if case.kind.ops.has_spike_feedback else now
    spk, *record = (torch.stack(t) for t in zip(*steps, strict=True))
    # The states that go from step to step are never rounded; a record is.
    last = now[case.kind.ops.has_spike_feedback :]
    return named((spk, *([t.to(case.dtype) for t in record] if case.record_mem else last)), case)


# ---- comparison ---------------------------------------------------------------------------------------------------

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

    Float32 has few digits below 1e-38, so that the difference of two subnormal numbers counts for nothing.

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
    torch.testing.assert_close(
        a, b, rtol=0, atol=max(relative * scale, 1e-40), equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def assert_each_equal(actual: Mapping[str, Any], expected: Mapping[str, Tensor | None], what: object = "") -> None:
    """By bits, or ``None`` where ``None`` is expected; of two mappings by name."""
    for name, t in expected.items():
        assert actual[name] is None if t is None else assert_bits_equal(actual[name], t, f"{what}: {name}") is None


def assert_all_bits_equal(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_bits_equal(a, b)


def assert_all_close(actual: Iterable[Tensor | None], expected: Iterable[Tensor | None], relative: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, relative)


def assert_same_outputs(found: Outputs, wanted: Outputs, case: Case, product: bool = False) -> None:
    """Outputs bit for bit as wanted; ``product``: the spikes have gone through a Linear, which adds in any order."""
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        # Spikes that a callable makes of recorded membranes are added by PyTorch.
        if name == "spk" and (product or (case.has("callable") and case.has("count"))):
            assert_close(found[name], t, {2: 2e-2, 4: 1e-5, 8: 1e-12}[case.dtype.itemsize], f"{case}: {name}")
        else:
            assert_bits_equal(found[name], t, f"{case}: {name}")
        assert found[name].device == t.device


def assert_equals_reference(case: Case, tensors: Tensors) -> Outputs:
    """Outputs bit for bit those of the reference."""
    found = fused(tensors, case)
    assert_same_outputs(found, expected(tensors, case), case)
    return found


def gradients_of(outputs: Iterable[Tensor], asking: Sequence[Tensor]) -> list[Tensor]:
    """Of a loss on all of the outputs with random weights; zeros where it does not depend on a tensor."""
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs if t.requires_grad)
    found = torch.autograd.grad(loss, asking, allow_unused=True)  # type: ignore[arg-type]
    return [torch.zeros_like(t) if g is None else g for t, g in zip(asking, found, strict=True)]
