"""Random calls of every neuron against its reference: outputs by their bits, every gradient to rounding.

``python tests/fuzz.py --cases 100000`` draws that many calls over all options, dtypes, shapes, layouts and kinds of
parameters, with decays at exactly 0 and 1 and thresholds at and beyond every edge. It prints each call that differs
with its number, which ``--first N --cases 1`` repeats.
"""

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers import KINDS, SURROGATES, Bump, assert_bits_equal, parameter_shapes
from torch import Tensor

import snnfast

STEPS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 25, 33, 40)
SIZES = (0, 1, 1, 2, 3, 4, 7, 10, 16, 17, 33)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMBER_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
DECAYS = (0.0, 1.0, 0.999, 0.5, 0.9, -0.2, 1.3)
THRESHOLDS = (1.0, 1.0, 0.5, 0.7, 0.0, -0.3, 1e-30, 1e30, float("inf"), -float("inf"))
# Derivatives that a rounded membrane tells exactly.
BY_SIDE = ("straight_through_estimator", "heaviside", "triangular", "LSO")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def quantized(mem: Tensor) -> Tensor:
    return (mem * 8).round() / 8 + (mem - mem.detach())


@dataclass
class Call:
    """One call, drawn from its number."""

    number: int
    neuron: str = ""
    tensors: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    wrt: list[str] = field(default_factory=list)
    known: bool = True  # the kernels sum the spikes themselves
    exact: bool = True  # the gradients are not those of rounded membranes

    def __post_init__(self) -> None:
        self.draw = random.Random(self.number)
        self.random = torch.Generator().manual_seed(self.number)
        self.neuron = self.draw.choice(list(KINDS))
        self.kind = KINDS[self.neuron]
        self.dtype = self.draw.choice(DTYPES)
        self.acc = torch.float64 if self.dtype == torch.float64 else torch.float32
        self._options()
        self._tensors()

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def _options(self) -> None:
        draw = self.draw
        self.inhibition = self.some(0.06)
        self.shape = tuple(
            draw.choice(SIZES) for _ in range(2 if self.inhibition else draw.choice((0, 1, 2, 2, 2, 3, 4)))
        )
        self.steps = draw.choice(STEPS)
        self.constant = self.some(0.25)
        delay = self.some(0.6)
        name = draw.choice(list(SURROGATES))
        spike_grad: Any = SURROGATES[name]
        if self.some(0.05):
            spike_grad, name = snnfast.surrogate.DISABLED, "none"
        rounded = self.kind.ops.record_tells and delay and not self.inhibition and self.some(0.1)
        if not rounded and self.some(0.1):
            spike_grad, self.known = Bump.apply, False
        quantizes = not rounded and self.some(0.04)
        self.known &= not self.inhibition
        self.exact = not rounded or name in (*BY_SIDE, "none")
        self.options = {
            "spike_grad": spike_grad,
            "reset_mechanism": draw.choice(("subtract", "subtract", "zero", "none")),
            "reset_delay": delay,
            "num_steps": self.steps if self.constant else None,
            "record_mem": self.some(0.6),
            "inhibition": self.inhibition,
            "state_quant": quantized if quantizes else None,
            "reduce": "sum" if self.some(0.3) else None,
        }
        if self.kind.ops.record_tells:
            self.options["membrane_dtype"] = torch.bfloat16 if rounded else None
        of_lengths = random.Random(~self.number)  # so that calls without them stay what they were
        if self.shape and of_lengths.random() < 0.2:
            lengths = [of_lengths.randint(0, self.steps) for _ in range(self.shape[0])]
            self.options["lengths"] = torch.tensor(lengths, dtype=torch.int64)

    def _uniform(self, shape: Sequence[int], low: float, high: float, dtype: torch.dtype) -> Tensor:
        return (torch.rand(tuple(shape), generator=self.random, dtype=torch.float64) * (high - low) + low).to(dtype)

    def _laid_out(self, t: Tensor, lead: int) -> Tensor:
        """The same values in another layout: steps permuted in memory, with gaps, or time not outermost."""
        how = self.draw.choice(("dense", "dense", "permuted", "gaps", "time inside"))
        dims = list(range(t.dim()))
        if how == "permuted":
            inner = dims[lead:]
            self.draw.shuffle(inner)
            order = dims[:lead] + inner
        elif how == "time inside":
            order = dims[1:] + dims[:1]
        elif how == "gaps" and t.dim():
            return torch.stack([t, t], -1)[..., 0]
        else:
            return t
        return t.permute(order).contiguous().permute([order.index(d) for d in dims])

    def _parameter(self, shape: Sequence[int], values: Sequence[float], low: float, high: float) -> Any:
        value = self.draw.choice(values) if self.some(0.5) else self.draw.uniform(low, high)
        if self.some(0.15):
            return value
        if self.some(0.4):
            dtype = self.draw.choice(NUMBER_DTYPES)
            number = 0.0 if dtype == torch.int64 and abs(value) > 1e9 else value
            return torch.tensor(number, dtype=torch.float64).to(dtype)
        wide = self.draw.choice((self.acc, self.acc, self.acc, self.dtype, torch.float64))
        t = self._uniform(shape, low, high, torch.float64)
        edges = torch.rand(t.shape, generator=self.random) < 0.3
        return torch.where(edges, torch.tensor(value, dtype=torch.float64), t).to(wide)

    def _tensors(self) -> None:
        kind = self.draw.choice(("scalar", "one", "neuron", "channel", "batch", "element", "exotic", "mixed"))
        if not self.shape:
            kind = "scalar"
        ops = self.kind.ops
        shapes = dict(zip(ops.parameters, parameter_shapes(kind, self.shape, len(ops.parameters)), strict=True))
        lead = 0 if self.constant else 1
        current = self._uniform((self.steps, *self.shape)[1 - lead :], -0.6, 1.4, self.dtype)
        self.tensors = {"current": self._laid_out(current, lead)}
        for name in ops.states:
            self.tensors[name] = None
            if self.some(0.6):
                dtype = self.draw.choice((self.acc, self.acc, self.dtype, torch.float64))
                self.tensors[name] = self._laid_out(self._uniform(self.shape, -0.5, 2.0, dtype), 0)
        for name in self.kind.decays:
            self.tensors[name] = self._parameter(shapes[name], DECAYS, -0.2, 1.2)
        self.tensors["threshold"] = self._parameter(shapes["threshold"], THRESHOLDS, 0.4, 1.2)
        heights = (1.0, 1.0, 2.0, 0.5)
        self.tensors["graded_spikes_factor"] = self._parameter(shapes["graded_spikes_factor"], heights, 0.5, 2.0)
        self.wrt = [
            name
            for name, t in self.tensors.items()
            if isinstance(t, Tensor) and t.is_floating_point() and self.some(0.6)
        ]
        others = [self.draw.choice((True, False)) for _ in self.kind.results[1:]]
        self.weights = [self.draw.choice((True, True, False)), *others]

    def run(self, function: Callable[..., Any], each: bool = False) -> tuple[Any, dict[str, Tensor]]:
        """Outputs and gradients. ``each``: of a parameter by neuron, in place of the sum."""
        tensors = dict(self.tensors)
        for name in self.wrt:
            t = tensors[name].detach()
            # A parameter of no dimensions does not widen the arithmetic, which one for each neuron would.
            if each and name in self.kind.ops.parameters:
                t = (t if t.dim() else t.to(self.wide())).expand(self.shape)
            tensors[name] = (t.clone(memory_format=torch.preserve_format) if name != "current" else t).requires_grad_()
        outputs = function(**tensors, **self.options)
        random_numbers = torch.Generator().manual_seed(self.number)
        loss = torch.zeros((), dtype=torch.float64)
        for out, counts in zip(outputs, self.weights, strict=True):
            weights = torch.randn(out.shape, generator=random_numbers, dtype=torch.float64).to(out.dtype)
            if counts and out.requires_grad:
                loss = loss + (out * weights).sum(dtype=torch.float64)
        asking = [tensors[name] for name in self.wrt]
        # Where the loss does not depend on a tensor, "no gradient" and zeros are the same answer.
        found = torch.autograd.grad(loss, asking, allow_unused=True) if loss.requires_grad else [None] * len(asking)
        return outputs, {
            name: torch.zeros_like(t) if g is None else g for name, t, g in zip(self.wrt, asking, found, strict=True)
        }

    def wide(self) -> torch.dtype:
        """The dtype of the arithmetic of this call."""
        given = [t for t in self.tensors.values() if isinstance(t, Tensor)]
        states = [self.tensors[name] for name in self.kind.ops.states]
        widens = any(t.dtype == torch.float64 and (t.dim() > 0 or any(t is s for s in states)) for t in given[1:])
        return torch.float64 if widens else self.acc

    def check(self) -> str | None:
        """What differs; ``None``: nothing."""
        outputs, found = self.run(self.kind.function)
        expected_outputs, _ = self.run(self.kind.reference)
        for name, a, b in zip(self.kind.results, outputs, expected_outputs, strict=True):
            try:
                if name == "spk" and self.options["reduce"] and not self.known:  # PyTorch's sum
                    torch.testing.assert_close(a, b)
                else:
                    assert_bits_equal(a, b, name)
            except AssertionError as error:
                return str(error)
        # Of membranes that are not finite, as with an infinite threshold that is subtracted, the gradient is anything.
        if not self.exact or not all(t.isfinite().all() for t in outputs[1:]):
            return None
        _, each = self.run(self.kind.reference, each=True)
        for name in found:
            a, b = found[name].double(), each[name].double()
            if found[name].dtype != self.tensors[name].dtype:
                return f"grad of {name}: dtype {found[name].dtype}"
            tolerance = max(TOLERANCES[self.dtype], TOLERANCES[found[name].dtype])
            total, magnitude = b.sum_to_size(a.shape).to(found[name].dtype).double(), b.abs().sum_to_size(a.shape)
            scale = magnitude[magnitude.isfinite()].max().item() if magnitude.isfinite().any() else 0.0
            off = (a - total).abs()
            if ((off > tolerance * max(scale, 1e-30)) & total.isfinite()).any() or (a.isnan() & total.isfinite()).any():
                return f"grad of {name}: off by {off[total.isfinite()].max().item():.3g}, scale {scale:.3g}"
        return None

    def __str__(self) -> str:
        def show(t: Any) -> str:
            return f"{str(t.dtype)[6:]}{list(t.shape)}" if isinstance(t, Tensor) and t.numel() != 1 else repr(t)

        given = {**self.tensors, **{k: v for k, v in self.options.items() if v is not None and v is not False}}
        return f"{self.neuron}: " + ", ".join(f"{k}={show(v)}" for k, v in given.items()) + f", wrt {self.wrt}"


def wrong(numbers: Sequence[int], report: Callable[[str], None] = print) -> int:
    """How many of the calls with these numbers differ."""
    count = 0
    for number in numbers:
        call = Call(number)
        try:
            difference = call.check()
        except Exception as error:
            difference = f"{type(error).__name__}: {error}"
        if difference is not None:
            count += 1
            report(f"{number}: {difference}\n    {call}")
    return count


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000, help="calls to draw (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a layer that runs step by step says so
    start = time.perf_counter()
    with snnfast.use_backend("auto"):
        count = wrong(range(args.first, args.first + args.cases))
    seconds = time.perf_counter() - start
    print(f"torch {torch.__version__}: {args.cases} calls, {count} wrong, {seconds:.0f} s")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
