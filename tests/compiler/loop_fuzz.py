"""Random loops over time: compiled, each does what the loop does as it is written.

``python tests/compiler/loop_fuzz.py --cases 1000`` draws that many networks from pieces and statements that programs
are made of, and runs each twice, compiled and not; comparison.py of benchmarks/collection says what is compared. A
program that raises without the compiler is left out, and so is one that torch.compile gets wrong without our backend.

Each program that differs is printed as Python, which ``--file FILE`` runs. ``--first N --cases 1`` repeats number N.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from random_programs import Program
from running import LEFT_OUT, outcome, with_settings

ATTEMPTS = 8  # to draw a program that runs


def wrong(
    numbers: Sequence[int], report: Callable[[str], None], how: str = "snnfast", long: bool = False
) -> tuple[int, Counter[str]]:
    """How many of the programs with these numbers differ; what is known of all."""
    count, statistics = 0, Counter[str]()
    for number in numbers:
        for attempt in range(ATTEMPTS):
            program, before = Program(number, attempt, long), statistics[LEFT_OUT[0]]
            found = outcome(program.source, how, statistics)
            if statistics[LEFT_OUT[0]] == before:
                break
        if found is not None:
            count += 1
            report(f"# {found}\n{program.source}")
        if number % 100 == 0:
            torch._dynamo.reset()
    torch._dynamo.reset()
    return count, statistics


def _share(numbers: Sequence[int], how: str, long: bool) -> tuple[int, Counter[str]]:
    """What one process does."""
    return with_settings(partial(wrong, numbers, partial(print, flush=True), how, long))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="programs to draw (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--file", type=Path, help="a program that was printed, to run alone")
    parser.add_argument("--recorded", action="store_true", help="record the loops, without torch.compile")
    parser.add_argument("--long", action="store_true", help="programs of many steps, of another number at each call")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    how = "recording" if args.recorded else "snnfast"
    if args.file:
        found = with_settings(partial(outcome, args.file.read_text(), how, Counter()))
        print(found or "as without a compiler")
        return 1 if found else 0
    start = time.perf_counter()
    numbers = range(args.first, args.first + args.cases)
    shares = [numbers[i :: args.jobs] for i in range(args.jobs)]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(partial(_share, how=how, long=args.long), shares))
    count, statistics = sum(n for n, _ in results), sum((c for _, c in results), Counter[str]())
    print(f"torch {torch.__version__}, {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{name}: {n}" for name, n in sorted(statistics.items())))
    print(f"{count} of {args.cases} wrong")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
