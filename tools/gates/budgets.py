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


class Spent(NamedTuple):
    """By one kernel for 9.0 in an ordinary launch: see cost.py."""

    instructions: float  # of a neuron and step
    startup: int  # cycles before the first load of a current


Table = Mapping[str, Mapping[str, Taken]]  # kernel, then architecture
SLACK = Spent(0.05, 20)  # what a change elsewhere in a source may cost


def load(file: Path = FILE) -> tuple[str, dict[str, dict[str, Taken]], dict[str, Spent]]:
    """The version of nvcc that the budgets were taken with, and the budgets."""
    content = json.loads(file.read_text())
    kernels = {
        name: {architecture: Taken(*numbers) for architecture, numbers in per.items()}
        for name, per in content["kernels"].items()
    }
    return content["nvcc"], kernels, {name: Spent(*numbers) for name, numbers in content["costs"].items()}


def save(nvcc: str, table: Table, costs: Mapping[str, Spent], file: Path = FILE) -> None:
    """One line for each kernel, so that a change can be read."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table))
    spent = ",\n".join(f"  {json.dumps(name)}: {json.dumps(costs[name])}" for name in sorted(costs))
    file.write_text(
        f'{{\n "nvcc": {json.dumps(nvcc)},\n'
        f' "columns": {json.dumps(Taken._fields)},\n "kernels": {{\n{rows}\n }},\n'
        f' "cost_columns": {json.dumps(Spent._fields)},\n "costs": {{\n{spent}\n }}\n}}\n'
    )


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
                if value > most:
                    found.setdefault(name, []).append(f"{architecture}: {field} {value}, budget {most}")
    for name, per in budget.items():
        there = measured.get(name)
        if there is None:
            found.setdefault(name, []).append("a budget for a kernel that is not there")
        elif missing := sorted(per.keys() - there.keys()):
            found.setdefault(name, []).append(f"not there for {', '.join(missing)}")
    return found


def overspent(measured: Mapping[str, Spent], budget: Mapping[str, Spent]) -> dict[str, list[str]]:
    """By kernel: what is above its budget, or has none; and budgets without a kernel."""
    found: dict[str, list[str]] = {}
    for name in measured.keys() | budget.keys():
        now, allowed = measured.get(name), budget.get(name)
        if now is None or allowed is None:
            found[name] = ["no budget for its cost" if now is not None else "a budget for a kernel that is not there"]
            continue
        for field, value, most, slack in zip(Spent._fields, now, allowed, SLACK, strict=True):
            if value > most + slack:
                found.setdefault(name, []).append(f"{field} {value}, budget {most}")
    return dict(sorted(found.items()))
