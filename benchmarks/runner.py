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

from . import memory_use
from .measure import alternate, seconds_of, seconds_on_gpu
from .networks import neurons_per_step
from .peers import PEERS, Peer, Unsupported
from .peers.ours import OURS, lacking
from .registry import NETWORKS, Case
from .workloads import Candidate, Data, build, make_data

COPY = "copy_"
FAILED = "failed"  # how the problem of a row begins whose implementation raised an error
COMPARED = 1 << 23  # neuron-steps up to which the spikes of the case itself are compared
MEMORY_LIMIT = 1 << 30  # of the largest T
COPIED = 1 << 26  # most elements of copy_'s tensors, far more than a cache holds; more are copied in several calls
# What to expect of an implementation before it runs: bytes and seconds per neuron-step of a loop of small operators.
LOOP_ELEMENTS, OUR_ELEMENTS = 16, 7  # inputs and gradients included; the suite `memory` prints peaks without them
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
    ratio: float | None = None  # of the median to ours
    neuron_steps: int = 0
    bytes_worth: float | None = None  # per neuron-step: what copy_ moves in the same time
    bandwidth: float | None = None  # bytes per second of the fewest bytes possible
    share_of_copy: float | None = None  # time of copy_, which moves these bytes, / time
    saved: float | None = None  # bytes per neuron-step, as the next two
    held: float | None = None
    peak: float | None = None
    largest_T: int | None = None  # noqa: N815
    agree: float | None = None  # share of the spikes that are ours
    rates: list[float] = field(default_factory=list)  # of each hidden layer: share of the neuron-steps with a spike


def run_case(
    case: Case,
    names: Sequence[str],
    device: torch.device,
    seconds: float,
    advance: Callable[[str], None] = lambda text: None,
    patience: float = PATIENCE,
) -> list[Row]:
    """Measure ``names``; ours is always first, and a row without a measurement says why."""
    count = case.T * neurons_per_step(case) if case.kind in NETWORKS else case.neuron_steps
    rows = {name: Row(case.name, name, neuron_steps=count) for name in dict.fromkeys([OURS, *names])}
    if problem := lacking(case) or _too_large(case, True, count, device, patience):
        for row in rows.values():
            row.problem = problem
        return list(rows.values())
    if any(PEERS[name].compiled for name in rows):
        torch._dynamo.reset()  # shapes of other cases would make this one's dynamic
    try:
        data = make_data(case, device)
    except Unsupported as error:
        for row in rows.values():
            row.problem = str(error)
        return list(rows.values())
    rows[OURS].rates = list(data.rates)
    functions: dict[str, Callable[[], object]] = {}
    twice: dict[str, list[float]] = {}
    with _fused(device):
        for name, row in rows.items():
            advance(f"{case.name}: {name}")
            try:
                functions[name] = _prepare(case, PEERS[name], data, row, patience, not rows[OURS].problem)
                taken = [seconds_of(functions[name])]
                if taken[0] > max(2 * seconds, 1.0):  # or a slow moment: once more
                    taken.append(seconds_of(functions[name]))
                    if min(taken) > max(2 * seconds, 1.0):
                        twice[name] = taken
                        del functions[name]
            except Unsupported as error:
                row.problem = str(error)
            except Exception as error:
                row.problem = f"{FAILED}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if case.ideal_bytes is not None:
            functions[COPY] = copying(case.ideal_bytes * count, device)
            rows[COPY] = Row(case.name, COPY, neuron_steps=count)
        advance(f"{case.name}: measuring")
        least = 5 if len(functions) < 3 or seconds >= 5 else 3
        clock = seconds_on_gpu if device.type == "cuda" else seconds_of
        times = alternate(functions, seconds, least=least, slow=0.1, clock=clock)
    _fill(case, rows, times | twice)
    if device.type == "cpu" and case.suite == "memory":
        _peaks_on_cpu(case, rows, advance)
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


def _fused(device: torch.device) -> AbstractContextManager[Any]:
    """No fall-back to the loop in silence; where there are no kernels, the header says so."""
    return snnfast.use_backend("fused") if _kernels(device) else contextlib.nullcontext()


def _kernels(device: torch.device) -> bool:
    try:
        with snnfast.use_backend("fused"):
            snnfast.functional.lif(torch.zeros(1, 1, device=device), beta=0.5)
    except RuntimeError:
        return False
    return True


def _too_large(case: Case, ours: bool, count: int, device: torch.device, patience: float) -> str:
    needed = count * case.itemsize * (OUR_ELEMENTS if ours else LOOP_ELEMENTS)
    if needed > 0.7 * memory_use.available(device):
        return f"left out: would need about {needed / 1e9:.0f} GB"
    expected = count * LOOP_SECONDS[device.type] / (10 if ours else 1)
    return f"left out: would take about {expected:.0f} s per call" if expected > patience else ""


def _prepare(case: Case, peer: Peer, data: Data, row: Row, patience: float, compare: bool) -> Callable[[], object]:
    """Build, call once (which compiles), compare the spikes and count the bytes; return what is timed."""
    device, count = data.x.device, row.neuron_steps
    if problem := peer.missing(device) or _too_large(case, peer.name == OURS, count, device, patience):
        raise Unsupported(problem)
    if not peer.fits(case):
        raise Unsupported("is not measured on this kind of case")
    candidate = build(case, peer, data)
    start = time.perf_counter()
    candidate.run()
    if peer.compiled:
        print(f"{peer.name}: compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if peer.name != OURS and compare:
        row.agree = _agreement(case, peer, data, candidate)
    if case.backward:
        found = memory_use.kept(candidate.forward, candidate.given)
        row.saved, row.held = found.saved / count, found.held / count
    if device.type == "cuda":
        row.peak = memory_use.peak_on_gpu(candidate.run) / count
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
    # A rounded membrane leaves the spikes as they are, and does not go with every model.
    changed = {"record_mem": False, "membrane_dtype": None, **peer.nearest(case)}
    ours = PEERS[OURS]
    nearest = build(replace(case, options=replace(case.options, **changed)), ours, data).forward()[0]
    return (theirs == nearest.to(theirs.dtype)).double().mean().item()


def _fill(case: Case, rows: dict[str, Row], times: dict[str, list[float]]) -> None:
    ours = median(times[OURS]) if times.get(OURS) else None
    copy = median(times[COPY]) if COPY in times else None
    ideal = case.ideal_bytes
    for name, taken in times.items():
        row = rows[name]
        row.median = median(taken)
        row.low, _, row.high = quantiles(taken, n=4) if len(taken) > 1 else (taken[0],) * 3
        row.repeats = len(taken)
        row.ratio = row.median / ours if ours else None
        if copy is not None and ideal is not None:
            row.bytes_worth = row.median / copy * ideal
            row.bandwidth = ideal * row.neuron_steps / row.median
            row.share_of_copy = copy / row.median


def _peaks_on_cpu(case: Case, rows: dict[str, Row], advance: Callable[[str], None]) -> None:
    """In a process of their own; those that compile need memory for the compiler and are left out."""
    for name, row in rows.items():
        if row.median is None or name == COPY or PEERS[name].compiled:
            continue
        advance(f"{case.name}: peak of {name}")
        peaks = {T: memory_use.peak_on_cpu(case.resized(T), name) for T in (case.T, 2 * case.T)}
        found = {T: peak for T, peak in peaks.items() if peak is not None}
        if len(found) == 2:
            row.peak = found[2 * case.T] / (2 * row.neuron_steps)
            row.largest_T = memory_use.largest_T(found, MEMORY_LIMIT)
