"""The table of kernels and the list of gates."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .analysis import Measured

LEGEND = """\
under an architecture: registers of a thread, and the share of the card's threads that can be in flight
block: threads; shared: bytes of a block; spill, stack: bytes of a thread; local: accesses to local memory
loads, stores: instructions in the loops over time, fewest - most of any architecture
narrow: of these, under 16 bytes, or 8 where all elements of a thread are 8

above, of a launch as a layer in training makes it: instructions of a neuron and step; fixed: those of a thread besides;
cycles of a step, if its warp is alone and a load takes 500; start: cycles before the first load of a current; loads of
that size in flight at once; branches of unknown way. Predicted: by a model, see tools/gates/model.py; nothing of it is
measured
"""


class Gate(NamedTuple):
    """Something that must hold."""

    name: str
    problems: Sequence[str]
    absent: str = ""  # what was missing to look at it

    @property
    def verdict(self) -> str:
        if self.problems:
            return f"FAILS, {len(self.problems)} times"
        return self.absent or "holds"


def show(gates: Sequence[Gate], measured: Sequence[Measured], cards: Mapping[str, str]) -> bool:
    """Print everything; return whether no gate fails. ``cards``: their names, by architecture."""
    if measured:
        print(LEGEND)
        print_columns(table(measured, cards))
        print()
    for gate in gates:
        print(f"{gate.name}: {gate.verdict}")
        for problem in gate.problems:
            print(f"    {problem}")
    return not any(gate.problems for gate in gates)


def table(measured: Iterable[Measured], cards: Mapping[str, str]) -> list[list[str]]:
    """A heading, and a row for each kernel with a column for each architecture."""
    rows: dict[str, dict[str, Measured]] = {}
    for m in measured:
        rows.setdefault(m.name, {})[m.architecture] = m
    lines = [["kernel", "block", *(f"{name} {architecture}" for architecture, name in cards.items())]]
    lines[0] += ["shared", "spill", "stack", "local", "loads", "stores", "narrow"]
    for name in sorted(rows):
        of = list(rows[name].values())
        cells = [_cell(rows[name].get(architecture)) for architecture in cards]
        most = [str(max(getattr(m.taken, field) for m in of)) for field in ("shared", "spill", "stack")]
        lines.append([name, str(of[0].resources.threads), *cells, *most, str(max(m.accesses.local for m in of))])
        lines[-1] += [_range([m.accesses.loads for m in of]), _range([m.accesses.stores for m in of])]
        lines[-1].append(_range([len(m.accesses.narrow) for m in of]) if of[0].vector else "one neuron")
    return lines


def _cell(m: Measured | None) -> str:
    return "-" if m is None else f"{m.resources.registers} {m.share:>4.0%}"


def _range(numbers: Sequence[int]) -> str:
    return "-".join(map(str, sorted({min(numbers), max(numbers)})))


def print_columns(lines: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:<{widths[0]}}  " + "  ".join(cells))
