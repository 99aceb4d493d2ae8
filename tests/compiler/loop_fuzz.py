"""Random loops over time: compiled, each does what the loop does as it is written.

``python tests/compiler/loop_fuzz.py --cases 1000`` draws that many networks from pieces and statements that programs
are made of, and runs each twice, compiled and not. Compared are outputs and what may need a gradient, gradients, the
states that the layers hold, buffers, inputs that are changed in place, random numbers (which steps have the same ones)
and which results and inputs share memory. A program that raises without the compiler is left out, and so is one that
torch.compile gets wrong without our backend.

Each program that differs is printed as Python, which runs by itself in this folder. ``--start N --cases 1`` repeats
number N.
"""

import argparse
import dataclasses
import linecache
import logging
import multiprocessing
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import snntorch
import torch
from random_neurons import Neurons
from random_programs import Program
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast.snntorch
from snnfast import GraphReport
from snnfast.compiler.backend import merge
from snnfast.compiler.failures import Attempt
from snnfast.compiler.nodes import is_step
from snnfast.compiler.tracing import tracing

# Of a value relative to the largest of its tensor, and of a gradient.
TOLERANCES = {"float64": (1e-9, 1e-8), "float32": (1e-5, 1e-4), "bfloat16": (0.02, 0.1)}
# A tensor that is zero but for rounding is measured by the others.
SMALLEST = 1e-3
STATES = ("syn_exc", "syn_inh", "syn", "mem")
OUTCOMES = ("wholly", "partly", "recurrence", "repeated", "refused", "without a neuron")
LEFT_OUT = ("raises without a compiler", "wrong without snnfast")
# A write that autograd is not told of: which gradient is right depends on what a layer keeps for its backward pass.
UNSEEN = re.compile(r"\.data(\.\w+_\(|\[[^]]*\] .?= | .= )")
# As the random programs have them, for one that is written by hand.
SETTINGS = {
    "number": 0, "dtype": "float64", "train": True, "grad": True, "x_grad": True, "leaf": True, "held_in_loss": False,
    "carries": False, "same_input": False, "strided_input": False,
}  # fmt: skip
# What may be around the forward pass, the backward pass or both.
AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "": nullcontext,
    "checkpoint": nullcontext,
    "anomaly": partial(torch.autograd.detect_anomaly, check_nan=False),
    # A copy: PyTorch does not notice that what a hook returned was changed in place.
    "hooks": partial(torch.autograd.graph.saved_tensors_hooks, lambda t: t.detach().clone(), lambda t: t),
}
ATTEMPTS = 8  # to draw a program that runs
Results = list[tuple[str, Any]]

# It flushes the caches of the processor to measure the guards, which takes a sixth of the time of a program.
torch._dynamo.guards.profile_guard_manager = lambda *args: 0.0


class Run:
    """A network of a program, and its calls.

    ``made``: the network, of the module that its layers come from.
    """

    def __init__(self, made: Callable[[Any], nn.Module], settings: dict[str, Any], unseen: bool = False) -> None:
        self.settings, self.unseen = settings, unseen
        self.dtype = getattr(torch, settings["dtype"])
        self.random = torch.Generator().manual_seed(settings["number"])
        self.net = made(snnfast.snntorch).to(self.dtype).train(settings["train"])
        self.layers = {n: m for n, m in self.net.named_modules() if isinstance(m, snntorch.SpikingNeuron)}
        self.carried: Any = None
        self._draw_weights()

    @classmethod
    def of(cls, source: str) -> "Run":
        name = f"<program {abs(hash(source))}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks and dynamo
        names: dict[str, Any] = {"__name__": name}
        exec(compile(source, name, "exec"), names)
        return cls(names["Net"], names["SETTINGS"], UNSEEN.search(source) is not None)

    def _uniform(self, shape: Sequence[int], low: float, high: float, eighths: bool = True) -> Tensor:
        t = torch.rand(tuple(shape), generator=self.random, dtype=torch.float64) * (high - low) + low
        return ((t * 8).round() / 8 if eighths and self.dtype == torch.float32 else t).to(self.dtype)

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Weights that let most layers spike."""
        for name, module in self.net.named_modules():
            if name in self.layers:
                continue
            for parameter_name, p in module.named_parameters(recurse=False):
                if p.dim() < 2:
                    low, high = (-0.1, 0.5) if parameter_name.startswith("bias") else (0.5, 1.5)
                else:
                    low, high = (x / p[0].numel() ** 0.5 for x in (-1.2, 2.4))
                p.copy_(self._uniform(p.shape, low, high))

    def inputs(self, call: dict[str, Any]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, (kind, shape) in call["inputs"].items():
            if kind == "classes":
                made[name] = torch.randint(2, tuple(shape), generator=self.random)
                continue
            made[name] = self._uniform(shape, -0.5, 1.5)
            if self.settings["strided_input"] and len(shape) > 1:
                made[name] = made[name].transpose(0, 1).contiguous().transpose(0, 1)
            made[name].requires_grad_(kind == "input" and self.settings["x_grad"])
        return made

    def call(self, call: dict[str, Any], function: Callable[..., Any]) -> Results:
        """Outputs, gradients, held states, buffers and shared memory of one call."""
        net, settings = self.net, self.settings
        for layer in self.layers.values():
            for state in self._states(layer):
                setattr(layer, state, getattr(layer, state).detach())
            if call["resets"]:  # not by snntorch.utils.reset, which resets the layers of all networks
                layer.reset_mem()
        inputs = self.inputs(call)
        # A leaf may not be changed in place.
        given = {n: t if settings["leaf"] or not t.is_floating_point() else t * 1 for n, t in inputs.items()}
        if settings["same_input"]:
            given.update((n, given["x"]) for n, t in given.items() if t.shape == given["x"].shape)
        torch.manual_seed(settings["number"])
        carried = [self.carried] if settings["carries"] else []
        context, places = settings.get("around") or ("", ())
        forward, backward = (AROUND[context if place in places else ""] for place in ("forward", "backward"))
        with torch.set_grad_enabled(settings["grad"]), forward():
            if context == "checkpoint":
                function = partial(checkpoint, function, use_reentrant=False, early_stop=False)
            outputs = function(*carried, *given.values())
        if settings["carries"]:
            detached = settings["carries"] == "detached"
            self.carried = tuple(t.detach() if detached else t for t in outputs[1])
        results = list(leaves("output", outputs))
        held = [(f"{n}.{state}", getattr(m, state)) for n, m in self.layers.items() for state in self._states(m)]
        buffers = [(n, b) for n, b in net.named_buffers() if n.rpartition(".")[2] not in STATES]
        everything = [*results, *held, *[(f"input {n}", t) for n, t in given.items()], *buffers]
        shared = shared_memory([*everything, *net.named_parameters()])
        found = [(n, t.detach().clone() if isinstance(t, Tensor) else t) for n, t in everything]
        found += [(f"{n} needs a gradient", t.requires_grad) for n, t in results + held if isinstance(t, Tensor)]
        asking = {n: t for n, t in [*inputs.items(), *net.named_parameters()] if t.requires_grad and not self.unseen}
        losses = []
        for n, t in results + (held if settings["held_in_loss"] else []):
            if isinstance(t, Tensor) and "draws" not in n:
                weights = self._uniform(t.shape, -1, 1, eighths=False)
                if t.requires_grad:
                    losses.append((t * weights).sum())
        # Where the loss does not depend on a tensor, "no gradient" and zeros are the same answer.
        grads: Sequence[Tensor | None] = [None] * len(asking)
        if losses and asking:
            again = self.settings["number"] % 3 == 0  # the gradients may then be differentiated
            wanted = list(asking.values())
            with backward():
                loss = sum(losses)
                grads = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True, create_graph=again)
        for (n, t), g in zip(asking.items(), grads, strict=True):
            found.append((f"grad of {n}", torch.zeros_like(t) if g is None else g.detach()))
        orders = [(f"{n} is contiguous", t.is_contiguous()) for n, t in results if isinstance(t, Tensor)]
        return [*found, ("shared memory", shared), *orders]

    def _states(self, layer: Any) -> tuple[str, ...]:
        return tuple(state for state in STATES if hasattr(layer, state))


def leaves(name: str, out: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(out):
        out = vars(out)
    if isinstance(out, dict):
        yield f"{name}: {type(out).__name__}", list(out)
        for k, o in out.items():
            yield from leaves(f"{name}[{k!r}]", o)
    elif isinstance(out, list | tuple):
        yield f"{name}: {type(out).__name__}", len(out)
        for i, o in enumerate(out):
            yield from leaves(f"{name}[{i}]", o)
    else:
        yield name, out


def shared_memory(tensors: Sequence[tuple[str, Any]]) -> list[str]:
    """Which elements of which tensors change when another one is written."""
    found: list[str] = []
    of_storages: dict[int, list[tuple[str, list[int]]]] = {}
    for name, t in tensors:
        if not isinstance(t, Tensor) or not t.numel():
            continue
        storage, size = t.untyped_storage(), t.element_size()
        places = torch.arange(storage.nbytes() // size).as_strided(t.shape, t.stride(), t.storage_offset())
        bytes_of = [size * i for i in places.flatten().tolist()]
        if len(set(bytes_of)) < len(bytes_of):
            found.append(f"{name} with itself")
        others = of_storages.setdefault(storage.data_ptr(), [])
        for other, written in others:
            if changed := [i for i, b in enumerate(bytes_of) if b in set(written)]:
                found.append(f"{other} with {name}{changed if len(changed) < len(bytes_of) else ''}")
        others.append((name, bytes_of))
    return found


def difference(found: Results, expected: Results, dtype: str) -> str | None:
    """The first that differs."""
    if [n for n, _ in found] != [n for n, _ in expected]:
        return f"{[n for n, _ in found]} instead of {[n for n, _ in expected]}"
    for grads, tolerance in zip((False, True), TOLERANCES[dtype], strict=True):
        some = [(n, a, b) for (n, a), (_, b) in zip(found, expected, strict=True) if n.startswith("grad") == grads]
        largest = max((size(b) for _, _, b in some), default=0.0)
        for name, a, b in some:
            if not isinstance(b, Tensor) or not isinstance(a, Tensor):
                if name == "shared memory" and a != b:
                    return f"shared memory: {[n for n in a if n not in b]} instead of {[n for n in b if n not in a]}"
                # A view that was made under no_grad says that it needs a gradient, and leads to none. What is computed
                # of such views may do without: the gradients are compared by themselves.
                idle = name.endswith("needs a gradient") and b is True and a is False
                idle |= name.endswith("is contiguous") and a is True
                if not idle and (type(a) is not type(b) or a != b):
                    return f"{name}: {a} instead of {b}"
                continue
            if a.shape == (0,) and not b.any():
                continue  # a layer that made no step: zeros of any shape
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{name}: {a.dtype} {list(a.shape)} instead of {b.dtype} {list(b.shape)}"
            if "draws" in name:
                continue
            spikes = not grads and bool(((b == 0) | (b == 1)).all() and b.any())
            bound = 0.0 if spikes else tolerance * max(size(b), SMALLEST * largest)
            off = (a.double() - b.double()).abs()
            if ((off > bound) & ~(a == b)).any() or (a.isfinite() != b.isfinite()).any():
                return f"{name}: off by {off.max().item():.3g}, {'spikes' if spikes else f'scale {size(b):.3g}'}"
    same, expected_same = same_draws(found), same_draws(expected)
    return None if same == expected_same else f"same draws: {same} instead of {expected_same}"


def same_draws(results: Results) -> list[tuple[str, str]]:
    draws = [(n, t) for n, t in results if "draws" in n and isinstance(t, Tensor)]
    of_lists = (
        (a, b) for i, a in enumerate(draws) for b in draws[:i] if a[0].rpartition("[")[0] == b[0].rpartition("[")[0]
    )
    return [(b[0], a[0]) for a, b in of_lists if torch.equal(a[1], b[1])]


def size(t: Any) -> float:
    t = t.double().abs() if isinstance(t, Tensor) else torch.zeros(0)
    return float(t[t.isfinite()].max()) if t.isfinite().any() else 0.0


class Watched:
    """The backend, and its reports of the graphs with a neuron."""

    def __init__(self) -> None:
        self.reports: list[GraphReport] = []
        self.graphs = 0

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        self.graphs += 1
        merged, report = merge(gm)
        if any(is_step(n.target) for n in gm.graph.nodes) or report.failed or report.refused is None:
            self.reports.append(report)
        return merged.forward

    def outcome(self) -> str:
        """What became of the neurons of a program, or how the backend failed."""
        reports = self.reports
        for report in reports:
            if report.refused is not None and "a fault of snnfast" in report.refused:
                return f"the pass failed: {report.refused.strip().splitlines()[-1]}"
        if not reports:
            return "without a neuron"
        if all(r.refused is not None for r in reports):
            return "refused"
        if not any("one unroll" in line for r in reports for line in r.merged):
            return "recurrence" if any("one recurrence" in line for r in reports for line in r.merged) else "repeated"
        return "partly" if any(r.repeated or r.refused for r in reports) else "wholly"


def check(make: Callable[[], Run], backend: Any, statistics: Counter[str], dtype: str | None = None) -> str | None:
    """What differs; ``None``: nothing. ``dtype``: that of the results, if it is not that of the program."""
    spikes: dict[str, set[bool]] = {}

    def look(name: str, layer: nn.Module, args: Any, out: Any) -> None:
        spk = out[0] if isinstance(out, tuple) else out
        spikes.setdefault(name, set()).update((spk > 0).unique().tolist())

    try:
        plain, ours = make(), make()
        for name, layer in plain.layers.items():
            layer.register_forward_hook(partial(look, name))
        expected = [plain.call(call, plain.net) for call in plain.settings["calls"]]
    except Exception:
        statistics[LEFT_OUT[0]] += 1
        return None
    dtype = dtype or ours.settings["dtype"]
    compiled, given_up = torch.compile(ours.net, backend=backend), set[Any]()

    def as_compile_does(*args: Any) -> Any:
        with tracing, Attempt("a program", given_up):
            return compiled(*args)

    found = _compare(ours, as_compile_does, expected, dtype)
    if found or not isinstance(backend, Watched) or backend.graphs != 1:
        torch._dynamo.reset()  # its caches of code that is not the program's
    if isinstance(backend, Watched):
        if found and not found.startswith("the pass"):
            alone = make()
            if _compare(alone, torch.compile(alone.net, backend="eager"), expected, dtype):
                statistics[LEFT_OUT[1]] += 1
                return None
        if (outcome := backend.outcome()) in OUTCOMES:
            statistics[outcome] += 1
        else:
            found = outcome
    if of_each := list(spikes.values()):
        statistics.update(compared=1, last=True in of_each[-1], spiking=all(len(seen) == 2 for seen in of_each))
    return found


def _compare(run: Run, function: Any, expected: list[Results], dtype: str) -> str | None:
    for number, call in enumerate(run.settings["calls"]):
        try:
            if found := difference(run.call(call, function), expected[number], dtype):
                return f"call {number}: {found}"
        except Exception as error:
            return f"call {number}: {type(error).__name__}: {error}"
    return None


def outcome(source: str, backend: Any, statistics: Counter[str]) -> str | None:
    """What differs or fails; ``None``: nothing."""
    half = "bfloat16" in source and ("'float64'" not in source or ".float()" in source)
    dtype = "bfloat16" if half else "float32" if ".float()" in source else None
    with surroundings("float64" if "'float64'" in source else "float32"):
        backend = Watched() if backend == "snnfast" else backend
        found = check(partial(Run.of, source), backend, statistics, dtype)
    linecache.cache.pop(f"<program {abs(hash(source))}>", None)
    return found


@contextmanager
def surroundings(dtype: str) -> Iterator[None]:
    """What a program finds, and what is left as it was."""
    neurons, grad = list(snntorch.SpikingNeuron.instances), torch.is_grad_enabled()
    logging.disable(logging.CRITICAL)  # dynamo tells much of a program that fails
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(torch.float32)
        logging.disable(logging.NOTSET)
        snntorch.SpikingNeuron.instances[:] = neurons  # it keeps every layer for good


def wrong(
    numbers: Sequence[int], report: Callable[[str], None], kind: type[Program | Neurons] = Program
) -> tuple[int, Counter[str]]:
    """How many of the programs with these numbers differ; what is known of all."""
    count, statistics = 0, Counter[str]()
    for number in numbers:
        for attempt in range(ATTEMPTS):
            program, before = kind(number, attempt), statistics[LEFT_OUT[0]]
            found = outcome(program.source, "snnfast", statistics)
            if statistics[LEFT_OUT[0]] == before:
                break
        if found is not None:
            count += 1
            report(f"# {found}\n{program}")
        if number % 100 == 0:
            torch._dynamo.reset()
    torch._dynamo.reset()
    return count, statistics


def run(file: str) -> None:
    """Run one program that was printed."""
    found = with_settings(partial(outcome, Path(file).read_text(), "snnfast", Counter()))
    print(found or "as without a compiler")
    sys.exit(1 if found else 0)


def with_settings(function: Callable[[], Any]) -> Any:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a layer that runs step by step says so
    with snnfast.use_backend("auto"):
        return function()


def _share(numbers: Sequence[int], kind: type[Program | Neurons]) -> tuple[int, Counter[str]]:
    """What one process does."""
    return with_settings(partial(wrong, numbers, partial(print, flush=True), kind))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="programs to draw (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="number of the first of them")
    parser.add_argument("--neurons", action="store_true", help="neurons that are written by hand")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    numbers = range(args.start, args.start + args.cases)
    shares = [numbers[i :: args.jobs] for i in range(args.jobs)]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(partial(_share, kind=Neurons if args.neurons else Program), shares))
    count, statistics = sum(n for n, _ in found), sum((c for _, c in found), Counter[str]())
    print(f"torch {torch.__version__}, {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{name}: {n}" for name, n in sorted(statistics.items())))
    print(f"{count} of {args.cases} wrong")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
