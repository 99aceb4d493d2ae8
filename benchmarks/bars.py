"""What the library promises of its speed and memory, as figures that a run can miss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .peers.ours import OURS
from .peers.snntorch_loop import COMPILED, LOOP
from .peers.spikingjelly import PREFIX as SPIKINGJELLY
from .registry import ROUNDED, STRAIGHT_THROUGH, Case
from .runner import Row

CACHE_PER_THREAD = 8 << 20  # as csrc/cpu/lif.cpp has it
Rows = Sequence[Row]
Cases = Mapping[str, Case]


@dataclass
class Bar:
    """One promise. A value of None was not measured, and misses nothing."""

    name: str
    value: float | None
    bar: float
    at_least: bool
    detail: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        held = self.value >= self.bar if self.at_least else self.value <= self.bar
        return "holds" if held else "MISSED"


def judge(cases: Cases, rows: Rows, gpu: bool = False) -> list[Bar]:
    """All bars of the suites that were run. Those of the caches are the CPU's."""
    run = {case.suite for case in cases.values()}
    bars = []
    if "lif" in run:
        for shape, least in (
            ((25, 128, 1000), (30, 15, 6)),
            ((100, 128, 1024), (20, 10, 5)),
            ((500, 16, 16384), (20, 10, 5)),
        ):
            case = _plain("lif", shape)
            for peer, bar in zip((LOOP, SPIKINGJELLY, COMPILED), least, strict=True):
                what = f"{peer}{' best' if peer == SPIKINGJELLY else ''} / ours, {list(shape)}"
                row = _fastest(rows, case.name, peer)
                bars.append(Bar(what, None if row is None else row.ratio, bar, True, _roof(case, row)))
        bars.append(_training_traffic(cases, rows, gpu))
        bars.append(_evenness(cases, rows))
        bars.append(Bar("bytes saved, membrane not recorded", *_saved(cases, rows, constant=False), False))
        bars.append(Bar("bytes saved beyond the current of one step", *_saved(cases, rows, constant=True), False))
        for what, options, most in (
            ("membranes in bfloat16", ROUNDED, 2.2),
            ("straight-through: spikes as bits", STRAIGHT_THROUGH, 0.13),
        ):
            bars.append(Bar(f"bytes saved, {what}", _saved_with(cases, rows, options), most, False))
    if "inference" in run:
        bars.append(_inference(cases, rows, gpu))
    if "tutorial5" in run:
        name = next(name for name, case in cases.items() if case.suite == "tutorial5")
        bars.append(Bar("training step of tutorial 5, snnTorch / ours", _ratio(rows, name, LOOP), 8, True))
    if "loop" in run:
        name = Case("loop", "loop", 25, 128, (1000,)).name
        bars.append(Bar("one call per step, [128, 1000], snnTorch / ours", _ratio(rows, name, LOOP), 4, True))
    return bars


def _plain(suite: str, shape: tuple[int, int, int]) -> Case:
    return Case(suite, "layer", shape[0], shape[1], shape[2:])


def _find(rows: Rows, case: str, peer: str = OURS) -> Row | None:
    return next((row for row in rows if row.case == case and row.peer == peer and row.median is not None), None)


def _fastest(rows: Rows, case: str, peer: str) -> Row | None:
    """Of those that are called ``peer``, or ``peer, ...`` in the case of SpikingJelly."""
    found = [
        row
        for row in rows
        if row.case == case
        and row.ratio is not None
        and (row.peer == peer or (peer == SPIKINGJELLY and row.peer.startswith(peer)))
    ]
    return min(found, key=lambda row: row.ratio or 0, default=None)


def _ratio(rows: Rows, case: str, peer: str) -> float | None:
    row = _fastest(rows, case, peer)
    return None if row is None else row.ratio


def _roof(case: Case, row: Row | None) -> str:
    """The ratio of a layer that takes no longer than copy_ of the fewest bytes possible."""
    if row is None or row.bytes_worth is None or case.ideal_bytes is None:
        return ""
    return f"{row.bytes_worth / case.ideal_bytes:.1f} at copy_'s speed"


def _out_of_cache(cases: Cases, rows: Rows, kind: Callable[[Case], bool], gpu: bool) -> tuple[Case, Row] | None:
    """The largest plain case of ours whose current alone is larger than the last-level cache."""
    found = [
        (case, row)
        for name, case in cases.items()
        if case.kind == "layer" and not case.options.changed() and not case.constant and case.dtype == "float32"
        if kind(case) and case.neuron_steps * case.itemsize > last_level_cache(gpu)
        if (row := _find(rows, name)) is not None
    ]
    return max(found, key=lambda pair: pair[0].neuron_steps, default=None)


def last_level_cache(gpu: bool = False) -> int:
    """Bytes that this process can count on; 64 MiB of a GPU.

    A virtual machine is told the whole cache of a processor that many machines share.
    """
    sizes = [] if gpu else list(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    try:
        cache = max(int(path.read_text().strip().removesuffix("K")) * 1024 for path in sizes)
    except (OSError, ValueError):
        return 64 << 20
    return min(cache, CACHE_PER_THREAD * torch.get_num_threads())


def _inference(cases: Cases, rows: Rows, gpu: bool) -> Bar:
    found = _out_of_cache(cases, rows, lambda case: not case.backward, gpu)
    value = None if found is None or found[1].share_of_copy is None else 1 / found[1].share_of_copy
    return Bar("forward / copy_ of as many bytes", value, 1.3, False, _shape(found))


def _training_traffic(cases: Cases, rows: Rows, gpu: bool) -> Bar:
    found = _out_of_cache(cases, rows, lambda case: case.backward and case.suite == "lif", gpu)
    value = None if found is None or found[1].bytes_worth is None else found[1].bytes_worth / 20
    return Bar("forward + backward / copy_ of 20 bytes per neuron-step", value, 1.6, False, _shape(found))


def _shape(found: tuple[Case, Row] | None) -> str:
    return "" if found is None else f"at {[found[0].T, found[0].B, *found[0].shape]}, beyond the caches"


def _evenness(cases: Cases, rows: Rows) -> Bar:
    times: dict[tuple[int, int], float] = {}
    for name, case in cases.items():
        # Of the grid alone, which is measured without company of other implementations.
        if case.suite != "lif" or case.B != 1 or case.options.changed() or case.constant or case.dtype != "float32":
            continue
        row = _find(rows, name)
        if row is not None and row.median is not None and 25 <= case.T <= 4096 and 10**4 <= case.N <= 10**7:
            times[case.T, case.N] = row.median / case.neuron_steps
    name = "time per neuron-step over T 25..4096, N 1e4..1e7: largest / smallest"
    if len(times) < 2:
        return Bar(name, None, 1.6, False)
    slow, fast = max(times, key=times.__getitem__), min(times, key=times.__getitem__)
    detail = f"{len(times)} shapes; {times[slow] * 1e9:.2f} ns at T={slow[0]}, N={slow[1]}, "
    detail += f"{times[fast] * 1e9:.2f} ns at T={fast[0]}, N={fast[1]}"
    return Bar(name, times[slow] / times[fast], 1.6, False, detail)


def _saved_with(cases: Cases, rows: Rows, options: Mapping[str, object]) -> float | None:
    """The most saved per neuron-step with these options and no others."""
    found = [
        _find(rows, name) for name, case in cases.items() if case.suite == "lif" and case.options.changed() == options
    ]
    return max((row.saved for row in found if row is not None and row.saved is not None), default=None)


def _saved(cases: Cases, rows: Rows, constant: bool) -> tuple[float | None, float]:
    """The most saved per neuron-step, and its bar; of a constant current what is saved beyond 4 / T."""
    values = [
        row.saved - (case.itemsize / case.T if constant else 0)
        for name, case in cases.items()
        if case.suite == "lif" and case.constant == constant and case.dtype == "float32"
        if not case.options.changed() and case.T >= 25 and (row := _find(rows, name)) is not None
        if row.saved is not None
    ]
    return max(values, default=None), 0.3 if constant else 4.3
