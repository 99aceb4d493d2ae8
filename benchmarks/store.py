"""``store``: all that README and the docs show, measured in one go, into one file for each machine and day."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import epoch, held, mnist, page, parity, products, report, rounding
from .bars import Bar, Found
from .peers import Unsupported
from .registry import TUTORIAL5, Case, suites
from .run import header_of, measure_all, not_measured, peers_of
from .runner import Row
from .stored import processor

RESULTS = report.ROOT / "benchmarks" / "results"
PAGES = report.ROOT / "figures" / "benchmarks"
SECONDS = 2.0  # per case
MORE = (  # cases besides those of the five-minute run
    "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward + backward",
    "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward",
    "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward + backward",
    "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward",
    "lif [500, 16, 16384] float32, forward + backward",
)
PARTS = {
    "epoch": epoch.run,
    "parity": parity.run,
    "held": held.run,
    "products": products.run,
    "rounding": rounding.run,
}


def plan(device: torch.device) -> dict[Case, list[str]]:
    """Cases with their peers; of the networks, only tutorial 5 also under torch.compile, which takes minutes."""
    cases = [case for known in suites(device.type).values() for case in known if case.quick or case.name in MORE]
    return {case: peers_of(case, case == TUTORIAL5, device) for case in cases}


def run(args: argparse.Namespace) -> Found:
    device = torch.device("cpu")
    chosen = plan(device)
    header = header_of(chosen, device)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{name_of(header)}.json"
    parts: dict[str, Sequence[Mapping[str, Any]]] = {}
    bars: list[Bar] = []
    for name, function in PARTS.items():
        print(f"{name}:")
        if name == "epoch" and (problem := _without_mnist()):
            print(f"left out: {problem}\n")
            continue
        found = function(args)
        parts[name] = found.rows
        bars += found.bars

    def save(rows: Sequence[Row], of_cases: Sequence[Bar], complete: bool = False) -> None:
        report.save(file, header, chosen, rows, [*bars, *of_cases], complete, parts)

    rows, of_cases = measure_all(chosen, (), device, args.seconds, args, save)
    save(rows, of_cases, complete=True)
    print(f"wrote {file}\nwrote {page.write(file, PAGES)}\n")
    return Found([*bars, *of_cases, *not_measured(chosen)])


def _without_mnist() -> str:
    try:
        mnist.load()
    except Unsupported as error:
        return str(error)
    return ""


def name_of(header: Mapping[str, Any]) -> str:
    """The machine by its processor, and the day."""
    return "-".join([*re.findall(r"[a-z0-9]+", processor(header).lower()), header["date"]])


def results() -> dict[str, Path]:
    """Every result of this command that is stored, by its name; those of benchmarks/gpu.sh lie beside them."""
    return {file.stem: file for file in sorted(RESULTS.glob("*.json")) if "parts" in json.loads(file.read_text())}
