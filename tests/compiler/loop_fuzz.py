"""Random loops over time: compiled, each does what the loop does as it is written.

``python tests/compiler/loop_fuzz.py --cases 1000`` draws that many networks from pieces and statements that programs
are made of, and runs each twice, compiled and not; comparison.py of benchmarks/collection says what is compared. A
program that raises without the compiler is left out, and so is one that torch.compile gets wrong without our backend,
``torch.compile(net, backend="snnfast")``. ``--recorded`` records the loops, and ``--default`` compiles as users do.

Each program that differs is printed as Python, which ``--file FILE`` runs. ``--first N --cases 1`` repeats number N.
``--with "numpy memory"`` draws programs that have such a statement alone; with a name that there is not, it lists them.
A first call that is recorded takes ten seconds of CPU time at most.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count as count_from
from itertools import islice
from pathlib import Path

import torch
from random_programs import Program, names_of_kinds
from running import LEFT_OUT, SLOWEST, outcome, with_settings

ATTEMPTS = 8  # to draw a program that runs


def having(kind: str, first: int = 0, step: int = 1, long: bool = False) -> Iterable[int]:
    """The numbers of programs with such a statement."""
    return (number for number in count_from(first, step) if kind in Program(number, 0, long).kinds)


def wrong(
    numbers: Iterable[int],
    report: Callable[[str], None],
    how: str = "snnfast",
    long: bool = False,
    kind: str = "",
    seconds: float = 300,
) -> tuple[int, Counter[str]]:
    """How many of the programs with these numbers differ; what is known of all.

    ``kind``: only programs with it count. One that is drawn again may be without it.
    """
    count, statistics = 0, Counter[str]()
    for number in numbers:
        found = None
        for attempt in range(ATTEMPTS):
            program, before = Program(number, attempt, long), statistics[LEFT_OUT[0]]
            if kind and kind not in program.kinds:
                continue
            found = outcome(program.source, how, statistics, seconds)
            if statistics[LEFT_OUT[0]] == before:
                break
        if found is not None:
            count += 1
            report(f"# {found}\n{program.source}")
        if number % 100 == 0:
            torch._dynamo.reset()
    torch._dynamo.reset()
    return count, statistics


def _share(numbers: range, how: str, long: bool, kind: str, seconds: float) -> tuple[int, Counter[str]]:
    """What one process does."""
    found = islice(having(kind, numbers.start, numbers.step, long), len(numbers)) if kind else numbers
    return with_settings(partial(wrong, found, partial(print, flush=True), how, long, kind, seconds))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="programs to draw (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--file", type=Path, help="a program that was printed, to run alone")
    parser.add_argument("--recorded", action="store_true", help="record the loops, without torch.compile")
    parser.add_argument("--default", action="store_true", help="compile as snnfast.compile does, many calls")
    parser.add_argument("--with", dest="kind", default="", metavar="NAME", help="only programs with this statement")
    parser.add_argument("--seconds", type=float, default=300, help="of a program at most (default: %(default)s)")
    parser.add_argument("--long", action="store_true", help="programs of many steps, of another number at each call")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.kind and args.kind not in names_of_kinds():
        parser.error(f"there is no statement {args.kind!r}. There are: {', '.join(names_of_kinds())}")
    how = "recording" if args.recorded else "default" if args.default else "snnfast"
    if args.file:
        found = with_settings(partial(outcome, args.file.read_text(), how, Counter(), args.seconds))
        print(found or "as without a compiler")
        return 1 if found else 0
    start = time.perf_counter()
    numbers = range(args.first, args.first + args.cases)
    shares = [numbers[i :: args.jobs] for i in range(args.jobs)]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        share = partial(_share, how=how, long=args.long, kind=args.kind, seconds=args.seconds)
        results = list(pool.map(share, shares))
    slowest = max(c.pop(SLOWEST, 0) for _, c in results) / 1000
    count, statistics = sum(n for n, _ in results), sum((c for _, c in results), Counter[str]())
    print(f"torch {torch.__version__}, {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{name}: {n}" for name, n in sorted(statistics.items())))
    if how != "snnfast":
        print(f"slowest first call: {slowest:.1f} s of CPU time")
    print(f"{count} of {args.cases} wrong")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
