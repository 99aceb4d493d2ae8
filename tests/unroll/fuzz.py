"""Random calls of every neuron against its reference: outputs by their bits, every gradient to rounding.

``python tests/unroll/fuzz.py --cases 100000`` draws that many calls over all options, dtypes, shapes, layouts and kinds
of parameters, with decays at exactly 0 and 1 and thresholds at and beyond every edge. It prints each call that differs
with its number, which ``--first N --cases 1`` repeats.

``--digest`` prints the SHA-256 of the outputs and gradients of each call instead. A change that is to change no number
leaves every line as it is. ``--emulated`` runs the CUDA sources in the emulator.
"""

import hashlib
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it
import fuzzing
from fuzzing import Found
from helpers import VARIANTS, Outputs, assert_same_outputs, expected, fused, parameter_shapes, random_case

from snnfast._core import ops

STEPS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 25, 33, 40)
SIZES = (0, 1, 1, 2, 3, 4, 7, 10, 16, 17, 33)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMBER_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
DECAYS = (0.0, 1.0, 0.999, 0.5, 0.9, -0.2, 1.3)
THRESHOLDS = (1.0, 1.0, 0.5, 0.7, 0.0, -0.3, 1e-30, 1e30, float("inf"), -float("inf"))
FUNCTIONS = [variant for variant in VARIANTS if "step" not in variant]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def quantized(mem: Tensor) -> Tensor:
    return (mem * 8).round() / 8 + (mem - mem.detach())


class Call:
    """One call, drawn from its number: a random case, and what else a call can be given."""

    def __init__(self, number: int) -> None:
        self.number, self.draw = number, random.Random(number)
        self.random = torch.Generator().manual_seed(number)
        inhibition = self.some(0.06)
        dims = 2 if inhibition else self.draw.choice((0, 1, 2, 2, 2, 3, 4))
        shape = tuple(self.draw.choice(SIZES) for _ in range(dims))
        variants = [v for v in FUNCTIONS if not inhibition or "bits" not in v]
        self.case = random_case(self.draw, variant=variants, steps=STEPS, shape=(shape,), dtype=DTYPES)
        self.more: dict[str, Any] = {"inhibition": inhibition}
        if self.some(0.04):
            self.more["state_quant"] = quantized
        if shape and self.some(0.2):
            lengths = [self.draw.randint(0, self.case.steps) for _ in range(shape[0])]
            self.more["lengths"] = torch.tensor(lengths, dtype=torch.int64)
        self._tensors()

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

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
        wide = self.draw.choice((self.case.acc, self.case.acc, self.case.acc, self.case.dtype, torch.float64))
        t = self._uniform(shape, low, high, torch.float64)
        edges = torch.rand(t.shape, generator=self.random) < 0.3
        return torch.where(edges, torch.tensor(value, dtype=torch.float64), t).to(wide)

    def _tensors(self) -> None:
        ops = self.case.kind.ops
        shapes = parameter_shapes(self.case.parameters, self.case.shape, len(ops.parameters))
        shape_of = dict(zip(ops.parameters, shapes, strict=True))
        lead = 0 if self.case.has("constant") else 1
        current = self._uniform((self.case.steps, *self.case.shape)[1 - lead :], -0.6, 1.4, self.case.dtype)
        self.tensors: dict[str, Any] = {"current": self._laid_out(current, lead)}
        for name in ops.states:
            self.tensors[name] = None
            if self.some(0.6):
                dtype = self.draw.choice((self.case.acc, self.case.acc, self.case.dtype, torch.float64))
                self.tensors[name] = self._laid_out(self._uniform(self.case.shape, -0.5, 2.0, dtype), 0)
        for name in self.case.kind.decays:
            self.tensors[name] = self._parameter(shape_of[name], DECAYS, -0.2, 1.2)
        self.tensors["threshold"] = self._parameter(shape_of["threshold"], THRESHOLDS, 0.4, 1.2)
        heights = (1.0, 1.0, 2.0, 0.5)
        self.tensors["graded_spikes_factor"] = self._parameter(shape_of["graded_spikes_factor"], heights, 0.5, 2.0)
        self.wrt = [
            name
            for name, t in self.tensors.items()
            if isinstance(t, Tensor) and t.is_floating_point() and self.some(0.6)
        ]
        others = [self.draw.choice((True, False)) for _ in self.case.kind.results[1:]]
        self.weights = [self.draw.choice((True, True, False)), *others]
        for name in ("beta", "threshold") if self.case.neuron == "leaky" and self.some(0.3) else ():
            if self.some(0.7):
                of_step = [n if self.some(0.6) else 1 for n in self.case.shape]
                self.tensors[name] = self._uniform((self.case.steps, *of_step), 0.3, 1.1, self.case.acc)

    def run(self, function: Callable[..., Outputs], each: bool = False) -> tuple[Outputs, dict[str, Tensor]]:
        """Outputs and gradients. ``each``: of a parameter by neuron, in place of the sum."""
        tensors = dict(self.tensors)
        for name in self.wrt:
            t = tensors[name].detach()
            # A parameter of no dimensions does not widen the arithmetic, which one for each neuron would.
            if each and name in self.case.kind.ops.parameters:
                over_time = [self.case.steps] * (t.dim() > len(self.case.shape))
                t = (t if t.dim() else t.to(self.wide())).expand((*over_time, *self.case.shape))
            tensors[name] = (t.clone(memory_format=torch.preserve_format) if name != "current" else t).requires_grad_()
        outputs = function(tensors, self.case, **self.more)
        random_numbers = torch.Generator().manual_seed(self.number)
        loss = torch.zeros((), dtype=torch.float64)
        for out, counts in zip(outputs.values(), self.weights, strict=True):
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
        states = [self.tensors[name] for name in self.case.kind.ops.states]
        widens = any(t.dtype == torch.float64 and (t.dim() > 0 or any(t is s for s in states)) for t in given[1:])
        return torch.float64 if widens else self.case.acc

    def check(self) -> str | None:
        """What differs; ``None``: nothing."""
        outputs, found = self.run(fused)
        try:
            assert_same_outputs(outputs, self.run(expected)[0], self.case)
        except AssertionError as error:
            return str(error)
        # Of membranes that are not finite, as with an infinite threshold that is subtracted, the gradient is anything.
        if not all(t.isfinite().all() for n, t in outputs.items() if n != "spk"):
            return None
        _, each = self.run(expected, each=True)
        for name in found:
            a, b = found[name].double(), each[name].double()
            if found[name].dtype != self.tensors[name].dtype:
                return f"grad of {name}: dtype {found[name].dtype}"
            tolerance = max(TOLERANCES[self.case.dtype], TOLERANCES[found[name].dtype])
            total, magnitude = b.sum_to_size(a.shape).to(found[name].dtype).double(), b.abs().sum_to_size(a.shape)
            scale = magnitude[magnitude.isfinite()].max().item() if magnitude.isfinite().any() else 0.0
            off = (a - total).abs()
            if ((off > tolerance * max(scale, 1e-30)) & total.isfinite()).any() or (a.isnan() & total.isfinite()).any():
                return f"grad of {name}: off by {off[total.isfinite()].max().item():.3g}, scale {scale:.3g}"
        return None

    def __str__(self) -> str:
        def show(t: Any) -> str:
            return (
                f"{str(t.dtype)[6:]}{list(t.shape)}"
                if isinstance(t, Tensor) and t.numel() != 1
                else getattr(t, "__name__", repr(t))
            )

        given = {**self.tensors, **{name: value for name, value in self.more.items() if value is not False}}
        return f"{self.case}: " + ", ".join(f"{k}={show(v)}" for k, v in given.items()) + f", wrt {self.wrt}"


def outcome(number: int) -> Found:
    call = Call(number)
    try:
        difference = call.check()
    except Exception as error:
        difference = f"{type(error).__name__}: {error}"
    return Found("equal") if difference is None else Found("differs", f"{difference}\n    {call}")


def digest(number: int) -> str:
    call, sha = Call(number), hashlib.sha256()
    outputs, gradients = call.run(fused)
    for t in (*outputs.values(), *gradients.values()):
        plain = torch.where(t.isnan(), 0.125, t).detach().flatten()  # one NaN is as good as another
        sha.update(str((t.dtype, tuple(t.shape))).encode() + plain.clone().view(torch.uint8).numpy().tobytes())
    return f"{number} {sha.hexdigest()[:16]} {call}"


def begin(emulated: bool) -> None:
    if emulated:
        from emulator.build import load

        load()
        ops.use("snnfast_emulated")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a layer that runs step by step says so


def main(argv: Sequence[str] | None = None) -> int:
    parser = fuzzing.parser(__doc__, 10000)
    parser.add_argument("--digest", action="store_true", help="print a digest of the results of each call")
    parser.add_argument("--emulated", action="store_true", help="run the CUDA sources in the emulator")
    args = parser.parse_args(argv)
    setup = partial(begin, args.emulated)
    if not args.digest:
        return fuzzing.run(outcome, args, setup)
    setup()
    print(*map(digest, range(args.first, args.first + args.cases)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
