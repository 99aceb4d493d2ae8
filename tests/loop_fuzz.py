"""Random loops over time: compiled, each gives what snnTorch's layers give in the loop as it is written.

``python tests/loop_fuzz.py --cases 1000`` draws that many networks and loops from pieces that programs are made of,
runs each with snnTorch's own layers and, compiled, with ours of equal weights, and compares outputs, gradients, the
states that the layers hold, and buffers. It prints each program that differs, as Python, with its number, which
``--first N --cases 1`` repeats.
"""

import argparse
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
from functools import partial
from typing import Any

import snntorch
import torch
from random_programs import Program
from torch import Tensor, nn

import snnfast.snntorch
from snnfast import GraphReport
from snnfast._loop.backend import merge
from snnfast._loop.capture import is_step

# Of a value relative to the largest of its tensor, and of a gradient.
TOLERANCES = {"float64": (1e-9, 1e-8), "float32": (1e-5, 1e-4)}
# A tensor that is zero but for rounding is measured by the others.
SMALLEST = 1e-3
STATES = ("syn", "mem")
OUTCOMES = ("wholly", "partly", "repeated", "refused", "without a neuron")
Results = list[tuple[str, Any]]


class Run:
    """A program with the layers of one library, and its calls."""

    def __init__(self, program: Program, library: Any) -> None:
        self.program = program
        self.dtype = getattr(torch, program.dtype)
        name = f"<program {program.number}>"
        lines = program.source.splitlines(keepends=True)
        linecache.cache[name] = (len(program.source), None, lines, name)  # where tracebacks and dynamo look
        names: dict[str, Any] = {"__name__": name}
        exec(compile(program.source, name, "exec"), names)
        self.random = torch.Generator().manual_seed(program.number)
        self.net = names["Net"](library).to(self.dtype).train(program.train)
        self.layers = {n: m for n, m in self.net.named_modules() if isinstance(m, snntorch.SpikingNeuron)}
        self._draw_weights()

    def _uniform(self, shape: Sequence[int], low: float, high: float, eighths: bool = True) -> Tensor:
        t = torch.rand(tuple(shape), generator=self.random, dtype=torch.float64) * (high - low) + low
        return ((t * 8).round() / 8 if eighths and self.program.dtype == "float32" else t).to(self.dtype)

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

    def inputs(self, number: int) -> dict[str, Tensor]:
        """Of one call."""
        program, made = self.program, {}
        for name in ("x", *program.s.inputs):
            kind, shape = program.s.inputs.get(name, ("input", ()))
            dims = program.shape_of(name, program.calls[number])
            if kind.startswith("classes"):
                made[name] = torch.randint(shape[0], dims, generator=self.random)
            else:
                made[name] = self._uniform(dims, -0.5, 1.5)
                made[name].requires_grad_(kind.startswith("input") and program.x_grad)
        return made

    def call(self, number: int, function: Callable[..., Any]) -> Results:
        """Outputs, gradients, held states and buffers of one call."""
        program, net = self.program, self.net
        for layer in self.layers.values():
            for state in self._states(layer):
                setattr(layer, state, getattr(layer, state).detach())
            if program.calls[number].resets:  # not by snntorch.utils.reset, which resets the layers of all networks
                layer.reset_mem()
        inputs = self.inputs(number)
        with torch.set_grad_enabled(program.grad):
            outputs = list(leaves("output", function(*inputs.values())))
        held = [(f"{n}.{state}", getattr(m, state)) for n, m in self.layers.items() for state in self._states(m)]
        results = outputs + held
        results += [(f"input {n}", t) for n, t in inputs.items()] if program.s.changes_x else []
        results += [(n, b) for n, b in net.named_buffers() if n.rpartition(".")[2] not in STATES]
        asking = {n: t for n, t in [*inputs.items(), *net.named_parameters()] if t.requires_grad}
        losses = []
        for _, t in outputs + (held if program.held_in_loss else []):
            if isinstance(t, Tensor):
                weights = self._uniform(t.shape, -1, 1, eighths=False)
                if t.requires_grad:
                    losses.append((t * weights).sum())
        # Where the loss does not depend on a tensor, "no gradient" and zeros are the same answer.
        found: Sequence[Tensor | None] = [None] * len(asking)
        if losses and asking:
            found = torch.autograd.grad(sum(losses), list(asking.values()), allow_unused=True)  # type: ignore[arg-type]
        for (n, t), g in zip(asking.items(), found, strict=True):
            results.append((f"grad of {n}", torch.zeros_like(t) if g is None else g))
        return [(n, t.detach() if isinstance(t, Tensor) else t) for n, t in results]

    def _states(self, layer: Any) -> tuple[str, ...]:
        return STATES if isinstance(layer, snntorch.Synaptic) else STATES[1:]


def leaves(name: str, out: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(out, dict):
        out = list(out.values())
    if isinstance(out, list | tuple):
        yield f"{name}: {type(out).__name__}", len(out)
        for i, o in enumerate(out):
            yield from leaves(f"{name}[{i}]", o)
    else:
        yield name, out


def difference(found: Results, expected: Results, dtype: str) -> str | None:
    """The first that differs."""
    if [n for n, _ in found] != [n for n, _ in expected]:
        return f"{[n for n, _ in found]} instead of {[n for n, _ in expected]}"
    for grads, tolerance in zip((False, True), TOLERANCES[dtype], strict=True):
        some = [(n, a, b) for (n, a), (_, b) in zip(found, expected, strict=True) if n.startswith("grad") == grads]
        largest = max((size(b) for _, _, b in some), default=0.0)
        for name, a, b in some:
            if not isinstance(b, Tensor) or not isinstance(a, Tensor):
                if type(a) is not type(b) or a != b:
                    return f"{name}: {a} instead of {b}"
                continue
            if a.shape == (0,) and not b.any():
                continue  # a layer that made no step: zeros of any shape
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{name}: {a.dtype} {list(a.shape)} instead of {b.dtype} {list(b.shape)}"
            spikes = not grads and bool(((b == 0) | (b == 1)).all() and b.any())
            bound = 0.0 if spikes else tolerance * max(size(b), SMALLEST * largest)
            off = (a.double() - b.double()).abs()
            if ((off > bound) & ~(a == b)).any() or (a.isfinite() != b.isfinite()).any():
                return f"{name}: off by {off.max().item():.3g}, {'spikes' if spikes else f'scale {size(b):.3g}'}"
    return None


def size(t: Any) -> float:
    t = t.abs() if isinstance(t, Tensor) else torch.zeros(0)
    return float(t[t.isfinite()].max()) if t.isfinite().any() else 0.0


class Watched:
    """The backend, and its reports of the graphs with a neuron."""

    def __init__(self) -> None:
        self.reports: list[GraphReport] = []

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        merged, report = merge(gm)
        if any(map(is_step, gm.graph.nodes)):
            self.reports.append(report)
        return merged.forward

    def outcome(self) -> str:
        """What became of the neurons of a program, or how the backend failed."""
        reports = self.reports
        for report in reports:
            if report.refused is not None and "a fault of snnfast" in report.refused:
                return f"{report.where}: the pass failed: {report.refused.strip().splitlines()[-1]}"
        if not reports:
            return "without a neuron"
        if all(r.refused is not None for r in reports):
            return "refused"
        if not any("one unroll" in line for r in reports for line in r.merged):
            return "repeated"
        return "partly" if any(r.repeated or r.refused for r in reports) else "wholly"


def check(program: Program, backend: Any, statistics: Counter[str]) -> str | None:
    """What differs; ``None``: nothing."""
    torch._dynamo.reset()
    library = snntorch if program.plain else snnfast.snntorch
    plain, ours = Run(program, library), Run(program, snnfast.snntorch)
    ours.net.load_state_dict(plain.net.state_dict())
    spikes: dict[str, bool] = {}

    def look(name: str, layer: nn.Module, args: Any, out: Any) -> None:
        spk = out[0] if isinstance(out, tuple) else out
        spikes[name] = spikes.get(name, False) or bool((spk > 0).any())

    for name, layer in plain.layers.items():
        layer.register_forward_hook(partial(look, name))
    watched = Watched()
    compiled = torch.compile(ours.net, backend=watched if backend == "snnfast" else backend)
    for number in range(len(program.calls)):
        expected = plain.call(number, plain.net)
        if found := difference(ours.call(number, compiled), expected, program.dtype):
            return f"call {number}: {found}"
    if backend == "snnfast":
        if (outcome := watched.outcome()) not in OUTCOMES:
            return outcome
        statistics[outcome] += 1
    of_each = list(spikes.values())
    if of_each:
        statistics.update(looped=1, first=of_each[0], last=of_each[-1], every=all(of_each))
    return None


def outcome(program: Program, backend: Any, statistics: Counter[str]) -> str | None:
    """What differs or fails; ``None``: nothing."""
    neurons = list(snntorch.SpikingNeuron.instances)
    logging.disable(logging.CRITICAL)  # dynamo tells much of a program that fails
    try:
        return check(program, backend, statistics)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
        linecache.cache.pop(f"<program {program.number}>", None)
        snntorch.SpikingNeuron.instances[:] = neurons  # it keeps every layer for good


def shrunk(program: Program, backend: Any) -> Program:
    """The program with all left out without which it fails in the same way."""

    def kind(found: str | None) -> str | None:
        return found and re.sub(r"<.*>:.*?: |[0-9.e-]+", "", found.splitlines()[0])

    failure, before = kind(outcome(program, backend, Counter())), ""
    while program.source != before:
        before, number = program.source, 0
        while number < len(lines := program.source.splitlines(keepends=True)):
            for candidate in _shorter(lines[number]):
                program.source = "".join([*lines[:number], candidate, *lines[number + 1 :]])
                if kind(outcome(program, backend, Counter())) == failure:
                    break
                program.source = "".join(lines)
            else:
                number += 1
    return program


def _shorter(line: str) -> Iterator[str]:
    """What may stand in the place of a line; first nothing."""
    if line.startswith(("class", "    def", "import", "from")):
        return
    yield ""
    if found := re.match(r"( *)(\w+) = .*?\b((?:h|spk|mem|part)\d+|xt)\b.*[^\w\n]", line):
        yield f"{found[1]}{found[2]} = {found[3]}\n"
    if found := re.match(r"( *)return \((.*)\)$", line):
        parts = found[2].split(", ")
        yield from (f"{found[1]}return ({', '.join([*parts[:i], *parts[i + 1 :]])})\n" for i in range(len(parts)))
    if "snn." in line:
        for part in re.findall(r", \w+=[^,]*(?=[,)])", line):
            yield line.replace(part, "")


def wrong(
    numbers: Sequence[int], backend: Any = "snnfast", report: Callable[[str], None] = print, shrink: bool = False
) -> tuple[int, Counter[str]]:
    """How many of the programs with these numbers differ; what is known of all."""
    count, statistics = 0, Counter[str]()
    for number in numbers:
        found = outcome(program := Program(number), backend, statistics)
        if found is not None:
            count += 1
            report(f"{found}\n{shrunk(program, backend) if shrink else program}")
    torch._dynamo.reset()
    return count, statistics


def _share(numbers: Sequence[int], backend: str, shrink: bool) -> tuple[int, Counter[str]]:
    """What one process does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a layer that runs step by step says so
    with snnfast.use_backend("auto"):
        return wrong(numbers, backend, partial(print, flush=True), shrink)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="programs to draw (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--backend", default="snnfast", help="of torch.compile (default: %(default)s)")
    parser.add_argument("--shrink", action="store_true", help="leave out of a program what does not matter")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    numbers = range(args.first, args.first + args.cases)
    shares = [numbers[i :: args.jobs] for i in range(args.jobs)]
    if args.jobs > 1:
        with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_share, shares, [args.backend] * args.jobs, [args.shrink] * args.jobs))
    else:
        found = [_share(numbers, args.backend, args.shrink)]
    count, statistics = sum(n for n, _ in found), sum((c for _, c in found), Counter[str]())
    looped = max(statistics["looped"], 1)
    shares_of = ", ".join(f"{name} {100 * statistics[name] / looped:.0f} %" for name in ("first", "last", "every"))
    print(f"torch {torch.__version__}, {time.perf_counter() - start:.0f} s; programs whose layers spike: {shares_of}")
    outcomes = ", ".join(f"{name} {statistics[name]}" for name in OUTCOMES if statistics[name])
    print(f"merged: {outcomes}")
    print(f"{count} of {args.cases} wrong")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
