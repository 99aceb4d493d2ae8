"""What all random runs share: a program is drawn from its number alone; what differs is printed with that number."""

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch


class Found(NamedTuple):
    """How a program came out: as one of some kinds, which are counted; what differs, and the program."""

    kind: str
    wrong: str = ""


Outcome = Callable[[int], Found]


def parser(description: str | None, cases: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--cases", type=int, default=cases, help="how many to draw (default: %(default)s)")
    made.add_argument("--first", type=int, default=0, help="number of the first of them")
    made.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    return made


def wrong(outcome: Outcome, numbers: Iterable[int]) -> list[str]:
    """Those of these numbers that differ, in words."""
    return [f"{number}: {found.kind}: {found.wrong}" for number in numbers if (found := outcome(number)).wrong]


def run(outcome: Outcome, args: argparse.Namespace, setup: Callable[[], None] = lambda: None) -> int:
    """Print what differs, and how often each kind was found; returns the exit code. Each process begins with setup."""
    start, counts, differ = time.perf_counter(), Counter[str](), 0
    numbers = range(args.first, args.first + args.cases)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), setup) as pool:
        if args.jobs == 1:
            setup()
        found = pool.map(outcome, numbers, chunksize=20) if args.jobs > 1 else map(outcome, numbers)
        for number, (kind, text) in zip(numbers, found, strict=True):
            counts[kind] += 1
            differ += text != ""
            if text:
                print(f"# number {number}: {kind}: {text}", flush=True)
    print(*(f"{n:7} {n / args.cases:7.2%}  {kind}" for kind, n in sorted(counts.items())), sep="\n")
    print(f"torch {torch.__version__}: {args.cases} drawn, {differ} wrong, {time.perf_counter() - start:.0f} s")
    return 1 if differ else 0
