"""What each kernel may take on each architecture; ``--update`` writes what it takes now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parent / "budgets.json"


class Taken(NamedTuple):
    """By one kernel on one architecture."""

    registers: int
    spill: int
    stack: int
    shared: int
    narrow: int  # accesses in the loops over time of less than a thread takes at a time, 16 bytes or all its elements
    looped: int  # instructions in loops, of all ways through them


Table = Mapping[tuple[str, str], Taken]  # by kernel and architecture
SLACK = {"looped": 0.01}  # what a change elsewhere in a source may cost, as a share


def load(file: Path) -> tuple[str, dict[tuple[str, str], Taken]]:
    """The version of nvcc that the budgets were taken with, and the budgets."""
    content = json.loads(file.read_text())
    kernels = content["kernels"].items()
    return content["nvcc"], {(name, a): Taken(*numbers) for name, per in kernels for a, numbers in per.items()}


def save(nvcc: str, table: Table, file: Path) -> None:
    """One line for each kernel, so that a change can be read."""
    kernels: dict[str, dict[str, Taken]] = {}
    for (name, architecture), taken in table.items():
        kernels.setdefault(name, {})[architecture] = taken
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels))
    head = f' "nvcc": {json.dumps(nvcc)},\n "columns": {json.dumps(Taken._fields)},\n'
    file.write_text(f'{{\n{head} "kernels": {{\n{rows}\n }}\n}}\n')


def problems(measured: Table, budget: Table) -> list[str]:
    """What is above its budget, or has none; and budgets without a kernel."""
    found = []
    for name, architecture in sorted(measured.keys() | budget.keys()):
        now, allowed = measured.get((name, architecture)), budget.get((name, architecture))
        if now is None or allowed is None:
            whys = ["no budget" if allowed is None else "a budget for a kernel that is not there"]
        else:
            limits = zip(Taken._fields, now, allowed, strict=True)
            whys = [f"{f} {value}, budget {most}" for f, value, most in limits if value > most * (1 + SLACK.get(f, 0))]
        found += [f"{name}, {architecture}: {why}" for why in whys]
    return found
