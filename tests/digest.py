"""Digests of fixed calls: a change that is to change no number leaves every line as it is.

``python tests/digest.py > before`` on the commit before, ``python tests/digest.py > after`` on the one after, on the
same machine, then ``diff before after``. Each line has the number of a call, the SHA-256 of its outputs and gradients,
and what it calls. ``--device emulated`` runs the CUDA sources in the emulator.

It goes by the public names alone, and draws its calls itself, so that neither a refactoring nor another test changes
what is drawn.
"""

import argparse
import hashlib
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import snnfast
from snnfast import functional, surrogate

STATES = {
    "lif": ("mem",), "synaptic": ("syn", "mem"), "lapicque": ("mem",), "alpha": ("syn_exc", "syn_inh", "mem"),
    "rleaky": ("spk", "mem"), "rsynaptic": ("spk", "syn", "mem"),
}  # fmt: skip
PARAMETERS = {
    "lif": {"beta": (0.3, 0.98)}, "synaptic": {"alpha": (0.2, 0.9), "beta": (0.2, 0.9)},
    "lapicque": {"R": (0.5, 1.5), "C": (2.0, 5.0)}, "alpha": {"alpha": (0.7, 0.95), "beta": (0.2, 0.5)},
    "rleaky": {"V": (-0.6, 0.6), "beta": (0.3, 0.9)},
    "rsynaptic": {"V": (-0.6, 0.6), "alpha": (0.2, 0.9), "beta": (0.2, 0.9)},
}  # fmt: skip
LAYERS: dict[str, Any] = {
    "lif": snnfast.Leaky, "synaptic": snnfast.Synaptic, "lapicque": snnfast.Lapicque, "alpha": snnfast.Alpha,
    "rleaky": snnfast.RLeaky, "rsynaptic": snnfast.RSynaptic,
}  # fmt: skip
SURROGATES = (
    surrogate.atan(alpha=1.5), surrogate.fast_sigmoid(slope=4.0), surrogate.sigmoid(slope=3.0),
    surrogate.straight_through_estimator(), surrogate.heaviside(), surrogate.triangular(threshold=0.5),
    surrogate.SFS(slope=2.0, B=0.2), surrogate.LSO(slope=0.3),
)  # fmt: skip
STEPS = (0, 1, 2, 3, 5, 8, 9, 15, 16, 17, 25, 33)
SHAPES = ((), (1,), (9,), (3, 10), (1, 64), (0, 4), (2, 3, 7), (2, 4, 3, 3), (2, 301))
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Call:
    """What is drawn for one number."""

    def __init__(self, number: int) -> None:
        self.draw, self.words = random.Random(number), [str(number)]
        self.random = torch.Generator().manual_seed(number)
        self.asking: list[Tensor] = []

    def some(self, probability: float) -> bool:
        return self.draw.random() < probability

    def choose(self, *choices: Any) -> Any:
        choice = self.draw.choice(choices)
        self.words.append(str(choice).replace("torch.", "").replace(" ", ""))
        return choice

    def uniform(self, shape: Sequence[int], low: float, high: float, dtype: torch.dtype, asks: float = 0.6) -> Tensor:
        values = torch.rand(tuple(shape), generator=self.random, dtype=torch.float64) * (high - low) + low
        t = values.to(dtype)
        if self.some(asks):
            self.asking.append(t.requires_grad_())
        return t

    def parameter(self, shape: Sequence[int], steps: int | None, low: float, high: float, wide: torch.dtype) -> Any:
        """A number, or a tensor for all neurons, for each, for a channel, for a sample, or for each step."""
        kind = self.draw.choice(("number", "number", "one", "neuron", "element", "batch", "time"))
        if kind == "number" or not shape:
            return self.draw.uniform(low, high)
        shapes = {"one": (), "neuron": shape[-1:], "element": shape, "batch": (*shape[:1], *(1 for _ in shape[1:]))}
        if kind == "time":
            if steps is None or self.some(0.7):
                return self.draw.uniform(low, high)
            shapes["time"] = (steps, *(1 for _ in shape))
        self.words.append(kind)
        return self.uniform(shapes[kind], low, high, wide, 0.5)

    def options(self, name: str) -> dict[str, Any]:
        kind = self.choose(*SURROGATES) if self.some(0.8) else self.choose("callable")
        return {
            "spike_grad": (lambda z: SURROGATES[0](z)) if kind == "callable" else kind,
            "reset_mechanism": self.choose("subtract", "subtract", "zero", "none"),
            **({} if name == "alpha" else {"reset_delay": self.choose(True, True, False)}),
        }


def function(call: Call) -> Sequence[Tensor]:
    """A call of :mod:`snnfast.functional`, with any of its arguments."""
    name, dtype, shape = call.choose(*STATES), call.choose(*DTYPES), call.choose(*SHAPES)
    steps, wide = call.choose(*STEPS), torch.float64 if dtype == torch.float64 else torch.float32
    constant = call.some(0.2)
    current = call.uniform(shape if constant else (steps, *shape), -0.6, 1.4, dtype)
    if not constant and len(shape) > 1 and call.some(0.2):
        current = current.transpose(1, -1).contiguous().transpose(1, -1)
    given = {state: call.uniform(shape, -0.5, 1.5, wide) for state in STATES[name] if call.some(0.5)}
    for parameter, limits in (PARAMETERS[name] | {"threshold": (0.6, 1.1), "graded_spikes_factor": (0.5, 2.0)}).items():
        varies = name == "lif" and parameter in ("beta", "threshold") and not constant
        given[parameter] = call.parameter(shape, steps if varies else None, *limits, wide)
    options = call.options(name) | {"num_steps": steps if constant else None, "record_mem": call.choose(True, False)}
    if call.some(0.25):
        options["reduce"] = "sum"
    if shape and call.some(0.2):
        options["lengths"] = torch.tensor([call.draw.randint(0, steps) for _ in range(shape[0])], dtype=torch.int64)
    if len(shape) == 2 and call.some(0.05):
        options["inhibition"] = True
    if call.some(0.04):
        options["state_quant"] = lambda mem: (mem * 8).round() / 8 + (mem - mem.detach())
    if shape and call.some(0.25):
        given["weight"] = call.uniform((5, shape[-1]), -0.5, 0.5, dtype)
        given["bias"] = call.uniform((5,), -0.5, 0.5, dtype) if call.some(0.5) else None
    if "V" in given and len(shape) in (2, 4) and call.some(0.4):
        n = shape[1]
        del given["V"]
        given["recurrent_weight"] = call.uniform((n, n, 3, 3) if len(shape) == 4 else (n, n), -0.3, 0.3, dtype)
        call.words.append("connected")
    call.words += [key for key, value in options.items() if value is not None][3:]
    return getattr(functional, name)(current, **given, **options)  # type: ignore[no-any-return]


def layer(call: Call) -> Sequence[Tensor]:
    """A layer, step by step with its states passed or held, or over time."""
    name, dtype = call.choose(*LAYERS), call.choose(torch.float32, torch.float32, torch.float64)
    shape, steps = call.choose((3, 10), (1, 64), (2, 5), (2, 301)), call.choose(*STEPS[1:9])
    given: dict[str, Any] = {p: call.draw.uniform(*limits) for p, limits in PARAMETERS[name].items()}
    if "V" in given:
        given |= {"all_to_all": False} if call.some(0.6) else {"V": 1.0, "linear_features": shape[-1]}
    how = call.choose("explicit", "held", "unroll", "unroll", "MultiStep")
    learned = {f"learn_{p}": True for p in ("beta", "threshold")[name == "lapicque" :] if call.some(0.4)}
    torch.manual_seed(call.draw.randrange(1000))
    net = LAYERS[name](**given, **call.options(name), **learned, init_hidden=how in ("held", "MultiStep")).to(dtype)
    x = call.uniform((steps, *shape), -0.6, 1.4, dtype)
    call.asking += list(net.parameters())
    if how == "MultiStep":
        stack = nn.Sequential(nn.Linear(shape[-1], shape[-1]), net, nn.Linear(shape[-1], 4)).to(dtype)
        call.asking += [p for p in stack.parameters() if all(p is not other for other in call.asking)]
        found = snnfast.MultiStep(stack)(x)
        return found if isinstance(found, tuple) else (found,)
    if how == "unroll":
        return net.unroll(x)  # type: ignore[no-any-return]
    states: Any = () if how == "held" else None
    results: list[Tensor] = []
    for step in x:
        found = net(step) if states in ((), None) else net(step, *states)
        found = found if isinstance(found, tuple) else (found,)
        if how == "explicit":
            states = found if "rleaky" in name or "rsynaptic" in name else found[1:]
        results += found
    return results


def digest(number: int) -> str:
    call = Call(number)
    run: Callable[[Call], Sequence[Tensor]] = function if call.some(0.75) else layer
    backend = call.draw.choice(("auto",) * 9 + ("reference",))
    call.words.append(backend)
    sha = hashlib.sha256()

    def add(t: Tensor | None) -> None:
        sha.update(b"None" if t is None else str((t.dtype, tuple(t.shape))).encode())
        if t is not None:
            plain = torch.where(t.isnan(), 0.125, t).detach().flatten()  # one NaN is as good as another
            sha.update(plain.clone().view(torch.uint8).numpy().tobytes())

    with snnfast.use_backend(backend):
        try:
            outputs = run(call)
            asking = [t for t in call.asking if t.requires_grad]
            differentiable = [t for t in outputs if t.requires_grad]
            grads: Sequence[Tensor | None] = ()
            if asking and differentiable:
                weights = [torch.randn(t.shape, generator=call.random, dtype=torch.float64) for t in differentiable]
                loss = sum((t.double() * w).sum() for t, w in zip(differentiable, weights, strict=True))
                grads = torch.autograd.grad(loss, asking, allow_unused=True)  # type: ignore[arg-type]
            for found in (*outputs, *grads):
                add(found)
        except (TypeError, ValueError, RuntimeError) as error:
            sha.update(type(error).__name__.encode())
            call.words.append(f"{type(error).__name__}: {error}")
    return f"{sha.hexdigest()[:16]} {' '.join(call.words)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--device", choices=("cpu", "emulated"), default="cpu")
    args = parser.parse_args()
    if args.device == "emulated":
        from emulator.build import load

        from snnfast._core import ops

        load()
        ops.use("snnfast_emulated")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a layer that runs step by step says so
    for number in range(args.cases):
        print(digest(number))
    return 0


if __name__ == "__main__":
    sys.exit(main())
