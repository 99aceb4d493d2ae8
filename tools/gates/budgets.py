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


Table = Mapping[str, Mapping[str, Taken]]  # kernel, then architecture
SLACK = {"looped": 0.01}  # what a change elsewhere in a source may cost, as a share


def load(file: Path) -> tuple[str, dict[str, dict[str, Taken]]]:
    """The version of nvcc that the budgets were taken with, and the budgets."""
    content = json.loads(file.read_text())
    kernels = {
        name: {architecture: Taken(*numbers) for architecture, numbers in per.items()}
        for name, per in content["kernels"].items()
    }
    return content["nvcc"], kernels


def save(nvcc: str, table: Table, file: Path) -> None:
    """One line for each kernel, so that a change can be read."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table))
    head = f' "nvcc": {json.dumps(nvcc)},\n "columns": {json.dumps(Taken._fields)},\n'
    file.write_text(f'{{\n{head} "kernels": {{\n{rows}\n }}\n}}\n')


def problems(measured: Table, budget: Table) -> dict[str, list[str]]:
    """By kernel: what is above its budget, or has none; and budgets without a kernel."""
    found: dict[str, list[str]] = {}
    for name, per in measured.items():
        for architecture, now in per.items():
            allowed = budget.get(name, {}).get(architecture)
            if allowed is None:
                found.setdefault(name, []).append(f"no budget for {architecture}")
                continue
            for field, value, most in zip(Taken._fields, now, allowed, strict=True):
                if value > most * (1 + SLACK.get(field, 0)):
                    found.setdefault(name, []).append(f"{architecture}: {field} {value}, budget {most}")
    for name, per in budget.items():
        there = measured.get(name)
        if there is None:
            found.setdefault(name, []).append("a budget for a kernel that is not there")
        elif missing := sorted(per.keys() - there.keys()):
            found.setdefault(name, []).append(f"not there for {', '.join(missing)}")
    return found
