"""Runs the cases: every implementation of a case in turn, in one process."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from statistics import median, quantiles
from typing import Any

import torch

import snnfast

from .measure import alternate, available, kept, peak_on_cpu, peak_on_gpu, seconds_of, seconds_on_gpu
from .networks import neuron_steps
from .peers import PEERS, Peer, Unsupported
from .peers.ours import OURS, RECORDED
from .registry import POOLED, SCALING, Case
from .workloads import Candidate, Data, build, make_data

COPY = "copy_"
UNFIT = "is not measured on this kind of case"
FAILED = "failed"  # how the problem of a row begins whose implementation raised an error
COMPARED = 1 << 23  # neuron-steps up to which the spikes of the case itself are compared
COPIED = 1 << 26  # most elements of copy_'s tensors, far more than a cache holds; more are copied in several calls
# What to expect of an implementation before it runs: bytes and seconds per neuron-step of a loop of small operators.
LOOP_ELEMENTS, OUR_ELEMENTS = 16, 7  # inputs and gradients included
LOOP_SECONDS = {"cpu": 150e-9, "cuda": 3e-9}
PATIENCE = 60.0  # seconds that one call may take


@dataclass
class Row:
    """One implementation of one case; everything but the names may be missing."""

    case: str
    peer: str
    problem: str = ""  # why there is no measurement
    median: float | None = None  # seconds, as the quartiles
    low: float | None = None
    high: float | None = None
    repeats: int = 0
    saved: float | None = None  # bytes per neuron-step, as the next two
    held: float | None = None
    peak: float | None = None  # on a GPU, or of the kind scaling
    agree: float | None = None  # share of the spikes that are ours
    first: float | None = None  # of the collection: CPU seconds of the first call, which compiles
    varied: float | None = None  # of the collection: mean seconds of calls of which each has other sizes
    rates: list[float] = field(default_factory=list)  # of each hidden layer: share of the neuron-steps with a spike
    # From the medians of all rows of the case:
    ratio: float | None = None  # of the median to that of the first row, which is ours wherever ours takes part
    bandwidth: float | None = None  # bytes per second of the fewest bytes possible
    share_of_copy: float | None = None  # time of copy_, which moves these bytes, / time


def failed(error: Exception) -> str:
    """The problem of a row whose implementation raised an error."""
    return f"{FAILED}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def compare(case: Case, rows: Sequence[Row]) -> None:
    """Fill in what follows from the medians of all rows of a case."""
    first, copy = rows[0].median, next((row.median for row in rows if row.peer == COPY), None)
    ideal = case.ideal_bytes
    for row in rows:
        if row.median is None:
            continue
        row.ratio = row.median / first if first else None
        if copy is not None and ideal is not None:
            row.bandwidth = ideal * case.neuron_steps / row.median
            row.share_of_copy = copy / row.median


def run_case(
    case: Case, names: Sequence[str], device: torch.device, seconds: float, patience: float = PATIENCE
) -> list[Row]:
    """Measure ``names``; ours comes first where it fits, and a row without a measurement says why."""
    first = [OURS] if PEERS[OURS].fits(case) else []
    rows = {name: Row(case.name, name) for name in dict.fromkeys([*first, *names])}
    if any(PEERS[name].compiled for name in rows):
        torch._dynamo.reset()  # shapes of other cases would make this one's dynamic
    try:
        _check_size(case, True, device, patience)
        data = make_data(case, device)
    except Unsupported as error:
        return [replace(row, problem=str(error)) for row in rows.values()]
    functions: dict[str, Callable[[], object]] = {}
    twice: dict[str, list[float]] = {}
    with _fused(case, device):
        for name, row in rows.items():
            peer = PEERS[name]
            try:
                if problem := peer.missing(device) or ("" if peer.fits(case) else UNFIT):
                    raise Unsupported(problem)
                functions[name] = _prepare(case, peer, data, row, patience, not rows.get(OURS, row).problem)
                taken = [seconds_of(functions[name])]
                if taken[0] > max(2 * seconds, 1.0):  # or a slow moment: once more
                    taken.append(seconds_of(functions[name]))
                    if min(taken) > max(2 * seconds, 1.0):
                        twice[name] = taken
                        del functions[name]
            except Unsupported as error:
                row.problem = str(error)
            except Exception as error:
                row.problem = failed(error)
        if case.ideal_bytes is not None:
            functions[COPY] = copying(case.ideal_bytes * case.neuron_steps, device)
            rows[COPY] = Row(case.name, COPY)
        least = 5 if len(functions) < 3 or seconds >= 5 else 3
        clock = seconds_on_gpu if device.type == "cuda" else seconds_of
        times = alternate(functions, seconds, least, slow=0.1, clock=clock)
    for name, taken in (times | twice).items():
        row = rows[name]
        row.median, row.repeats = median(taken), len(taken)
        row.low, _, row.high = quantiles(taken, n=4) if len(taken) > 1 else (taken[0],) * 3
    compare(case, list(rows.values()))
    return list(rows.values())


def copying(moved: float, device: torch.device) -> Callable[[], object]:
    """``copy_`` into existing memory that moves this many bytes: half of them are read, half are written."""
    whole, rest = divmod(round(moved / 8), COPIED)
    source = torch.ones(COPIED if whole else rest, device=device)
    target = torch.empty_like(source)

    def run() -> None:
        for size in (*[COPIED] * whole, rest):
            target[:size].copy_(source[:size])

    return run


def _fused(case: Case, device: torch.device) -> AbstractContextManager[Any]:
    """No fall-back to the loop in silence; the header names kernels."""
    there_are_kernels = snnfast.config()[f"fused on {device.type}"].startswith("yes")
    return snnfast.use_backend("fused") if there_are_kernels else contextlib.nullcontext()


def _check_size(case: Case, ours: bool, device: torch.device, patience: float) -> None:
    """Raise Unsupported for a case that needs too much memory or time."""
    count = neuron_steps(case)
    needed = count * case.itemsize * (OUR_ELEMENTS if ours else LOOP_ELEMENTS)
    if needed > 0.7 * available(device):
        raise Unsupported(f"left out: would need about {needed / 1e9:.0f} GB")
    expected = count * LOOP_SECONDS[device.type] / (10 if ours else 1)
    if expected > patience:
        raise Unsupported(f"left out: would take about {expected:.0f} s per call")


def _prepare(case: Case, peer: Peer, data: Data, row: Row, patience: float, beside_ours: bool) -> Callable[[], object]:
    """Build, call once (which compiles), compare the spikes and count the bytes; return what is timed."""
    device = data.x.device
    _check_size(case, peer.name == OURS, device, patience)
    candidate = build(case, peer, data)
    start = time.perf_counter()
    candidate.run()
    if peer.compiled:
        print(f"{peer.name}: compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if case.kind in ("product", "norm", POOLED):  # neither spikes nor bytes of a layer
        return candidate.run
    if peer.name != OURS and beside_ours:
        row.agree = _agreement(case, peer, data, candidate)
    if peer.name == OURS:
        row.rates = list(data.rates)
    if case.backward and peer.name != RECORDED:  # the bytes are counted by hooks, under which nothing is recorded
        found, count = kept(candidate.forward, candidate.given), neuron_steps(case)
        row.saved, row.held = found.saved / count, found.held / count
    if device.type == "cuda":
        row.peak = peak_on_gpu(candidate.run) / neuron_steps(case)
    elif case.kind == SCALING:
        row.peak = peak_on_cpu(candidate.run) / neuron_steps(case)
    return candidate.run


def _agreement(case: Case, peer: Peer, data: Data, candidate: Candidate) -> float | None:
    """Share of the spikes equal to those of our nearest model: on the case's input, or on a small one."""
    if case.kind != "layer" or case.neuron_steps > COMPARED:
        if peer.compiled:
            return None  # another shape would compile once more
        case = Case(case.suite, "layer", 16, 4, (64,), case.dtype, case.neuron, case.options)
        data = make_data(case, data.x.device)
        candidate = build(case, peer, data)
    if data.grad is None:
        with torch.no_grad():
            theirs = candidate.forward()[0]
    else:
        theirs = candidate.forward()[0]
    changed = {"record_mem": False, **peer.nearest(case)}
    ours = PEERS[OURS]
    nearest = build(replace(case, options=replace(case.options, **changed)), ours, data).forward()[0]
    return (theirs == nearest.to(theirs.dtype)).double().mean().item()
