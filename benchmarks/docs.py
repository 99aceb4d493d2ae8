"""Figures in README and the docs come from stored results: cog runs the code in their comments, with NAMES."""

import argparse
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from textwrap import fill

from .bars import Bar, firsts_of, gains_of
from .peers import PEERS
from .peers.ours import NUMBERS, OURS, RECORDED, WITH_LOSS
from .peers.snntorch_loop import COMPILED, HOISTED, LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY
from .registry import PAIR, TUTORIAL5, case_named
from .report import ROOT, load
from .run import RESULTS, processor
from .runner import COPY, Row

MODULES = (__name__, "benchmarks.registry", "benchmarks.peers.ours", "benchmarks.peers.snntorch_loop")
NAMES = "; ".join(f"from {module} import *" for module in MODULES)

LAYER = "lif [25, 128, 1000] float32, forward + backward"
LARGE = "lif [100, 128, 1024] float32, forward + backward"
STEP = TUTORIAL5.name
CONV_INFERENCE = "conv [25, 32, 1, 28, 28] float32, beta=0.5, surrogate=fast_sigmoid, forward"
CONV = f"{CONV_INFERENCE} + backward"
DEEP_INFERENCE = "events [25, 128, 784] float32, 784-1000-1000-10, trained on MNIST, forward"
DEEP = f"{DEEP_INFERENCE} + backward"
MEMORY = "memory [25, 128, 784] float32, 784-1000-1000-1000-1000-10, forward + backward"

# What a reader is told of an implementation.
WORDS = {
    LOOP: "snnTorch",
    NETWORK: "snnTorch, `torch.compile`",
    COMPILED: "snnTorch, `torch.compile`",
    f"{JELLY}, compiled": "SpikingJelly, `torch.compile`",
    HOISTED: "snnTorch, `Linear` hoisted",
    RECORDED: "`snnfast.compile(net)`",
    WITH_LOSS: "`snnfast.compile`, loss inside",
    OURS: "`snnfast.MultiStep`",
}


class Result:
    """A file that ``store`` or ``run --json`` wrote."""

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        content = load(file)
        self.header = content["header"]
        self.rows: Sequence[Row] = content["rows"]
        self._by_names = {(row.case, row.peer): row for row in self.rows if not row.problem}

    def row(self, case: str, peer: str = OURS) -> Row:
        if (case, peer) not in self._by_names:
            raise ValueError(f"{self.name} has no measurement of {peer}, {case}")
        return self._by_names[case, peer]

    def seconds(self, case: str, peer: str = OURS) -> float:
        median = self.row(case, peer).median
        if median is None:
            raise ValueError(f"{self.name} has no time of {peer}, {case}")
        return median

    @property
    def gains(self) -> dict[str, float]:
        """Of each program of the collection, how many times faster it is when it is compiled; the least first."""
        return gains_of(self.rows)

    @property
    def recorded(self) -> str:
        """The calls of ``snnfast.compile(net)`` in the cases that are no programs of the collection."""
        replays = self.header["date"] > "2026-12-01"  # that day's results are those of calls that were recorded
        return "later calls are replayed" if replays else "recorded at each call, as with `replay=False`"

    @property
    def machine(self) -> str:
        header = self.header
        versions = header["versions"].split(";")[0]  # what follows are CPU instructions that were not in use
        peers = ", ".join(f"{name} {found}" for name, found in header["peers"].items() if found != "not installed")
        return fill(
            f"Measured on {date.fromisoformat(header['date']):%-d %B %Y}, on {header['machine']}: {versions}; {peers}; "
            f"commit {header['commit']}; environment: {header['environment']}.",
            width=120,
        )

    @property
    def title(self) -> str:
        return f"{processor(self.header)}, {self.header['threads']} threads"


def result(name: str) -> Result:
    return Result(RESULTS / f"{name}.json")


# ---- how figures are written


def digits(value: float) -> str:
    """Three significant digits, at most three decimals, no exponent."""
    decimals = next((d for limit, d in ((100, 0), (10, 1), (1, 2)) if value >= limit), 3)
    return f"{value:.{decimals}f}"


def ms(seconds: float) -> str:
    return digits(seconds * 1e3)


def duration(seconds: float) -> str:
    return f"{digits(seconds)} s" if seconds >= 1 else f"{ms(seconds)} ms"


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def percent(share: float, decimals: int = 0) -> str:
    return f"{share * 100:.{decimals}f} %"


def show(text: str) -> None:
    """A paragraph or a table between the lines of two comments."""
    print(f"\n{text}\n")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """In Markdown; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    show("\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines)))


# ---- tables that several documents or results have


def beside(of: Result, cases: Mapping[str, str], other: str, ours: str = OURS) -> list[list[str]]:
    """A line for each case: its name for readers, the two times, and their ratio."""
    lines = []
    for what, case in cases.items():
        theirs, own = of.seconds(case, other), of.seconds(case, ours)
        lines.append([what, duration(theirs), duration(own), times(theirs / own)])
    return lines


def by_peer(of: Result, cases: Mapping[str, str]) -> None:
    """A line for each implementation that is still measured, and two columns for each case."""
    lines = []
    layers = all(case.startswith("lif") for case in cases.values())
    rows = [row for row in of.rows if row.peer in PEERS and row.peer != COPY and row.median is not None]
    times_of = {(row.case, row.peer): row.median for row in rows}
    for peer in dict.fromkeys(peer for case, peer in times_of if case in cases.values()):
        line = [peer if peer == OURS and layers else WORDS.get(peer, peer)]
        for case in cases.values():
            seconds = times_of.get((case, peer))
            line += ["", ""] if seconds is None else [ms(seconds), times(seconds / of.seconds(case))]
        lines.append(line)
    table(["", *(head for what in cases for head in (f"{what}, ms", "/ ours"))], lines)


def by_kind(of: Result) -> None:
    """A line for each kind of program of the collection: how many times faster ``snnfast.compile`` makes them.

    Where the result has calls of other sizes, there is one more column, with the median.
    """
    gains, varied = of.gains, gains_of(of.rows, of="varied")
    ways = {"other sizes in every call": varied} if varied else {}
    kinds: dict[str, list[str]] = {}
    for case in gains:
        kinds.setdefault(case.partition(":")[0].rpartition(" ")[2], []).append(case)
    lines = []
    for kind, cases in [*sorted(kinds.items()), ("all", list(gains))]:
        found = [gains[case] for case in cases]
        others = [[g[case] for case in cases if case in g] for g in ways.values()]  # where no call has failed
        told = [times(median(some)) if some else "" for some in others]
        lines.append([kind, str(len(cases)), *map(times, (min(found), median(found), max(found))), *told])
    table(["kind", "programs", "least", "median", "most", *ways], lines)
    text = "These gains are measured from the 12th call of a shape on."
    if "other sizes in every call" in ways:
        text += " *Other sizes*: each call has another number of steps and of samples; what is compiled in it counts."
    if firsts := firsts_of(of.rows):
        text += (
            f" The first call takes {digits(median(firsts))} CPU seconds in the median, {digits(firsts[-1])} at most."
        )
    show(fill(text, width=120))


def as_bits(of: Result) -> None:
    """What spikes as bits gain, with the shares of neuron-steps that spike."""
    cases = {
        "`Leaky` on a constant current and `Linear` to 10, forward + backward": PAIR.name,
        "training step of tutorial 5": STEP,
        "training step of 784-1000-1000-10": DEEP,
        "inference with it": DEEP_INFERENCE,
    }
    lines = beside(of, cases, NUMBERS)
    for line, case in zip(lines, cases.values(), strict=True):
        line.insert(1, ", ".join(percent(rate) for rate in of.row(case).rates))
    table(["", "spikes", "as numbers", "as bits", "ratio"], lines)


def floors(of: Result) -> dict[str, Row]:
    """Ours of layers in float32 with the default options that stand beside ``copy_``, by their shapes."""
    found = {}
    for name in dict.fromkeys(row.case for row in of.rows if row.peer == COPY):
        case = case_named(name)
        if case is None:
            raise ValueError(f"there is no case {name} any more")
        plain = not case.options.changed() and not case.constant
        if case.suite in ("lif", "inference") and case.dtype == "float32" and plain:
            found[str([case.T, case.B, *case.shape]) + ("" if case.backward else ", forward only")] = of.row(name)
    return found


# ---- the command


def run(args: argparse.Namespace) -> list[Bar]:
    """Compare what the documents and the chart show with the stored results, or write it anew."""
    wrong = not agree(args.update)
    if wrong:
        args.error("not what the stored results give: python -m benchmarks docs --update")
    return []


def agree(update: bool = False) -> bool:
    from cogapp import Cog

    from . import figures

    documents = [str(file) for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    options = ["--verbosity=1", "-P", "-p", NAMES, "-r" if update else "--check"]
    same = Cog().main(["cog", *options, *documents]) == 0
    file, chart = ROOT / figures.FILE, figures.drawn()
    if update:
        file.write_text(chart)
    elif figures.texts(file.read_text()) != figures.texts(chart):
        print(f"{figures.FILE}: not what the stored result gives")
        same = False
    return same
