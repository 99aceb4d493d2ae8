"""``page``: a stored result as a Markdown page with figures."""

import argparse
from pathlib import Path

from . import plots
from .bars import Found
from .blocks import BLOCKS
from .stored import Missing, Stored, digits, ms, percent, table

PASSAGES = {  # what a page shows of the passages of the docs, under its title
    "speed": "Beside snnTorch",
    "networks": "Networks",
    "layers": "One layer over all time steps",
    "calls": "One call per time step",
    "floors": "Beside `copy_`",
    "options": "Options and dtypes of a layer",
    "events": "Spikes as bits",
    "products": "Product of spikes and weights",
    "held": "Bytes held for the backward pass, per neuron-step: without inputs and parameters / all",
    "rounding": "Gradient with `membrane_dtype=torch.bfloat16`",
    "parity": "Parity",
}


def run(args: argparse.Namespace) -> Found:
    try:
        print(f"wrote {write(args.result, args.out)}")
    except (OSError, ValueError) as error:
        args.error(str(error))
    return Found()


def write(result: Path, folder: Path) -> Path:
    """Write ``NAME.md`` and the folder ``NAME`` with its figures; return the page."""
    of = Stored(result)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{of.name}.md"
    figures = plots.draw(folder / of.name, of)
    file.write_text(text(of, [(caption, path.relative_to(folder)) for caption, path in figures]))
    return file


def text(of: Stored, figures: list[tuple[str, Path]]) -> str:
    parts = [ORPHAN, f"# {of.title}", BLOCKS["machine"](of)]
    for caption, path in figures:
        parts += [f"![{caption.replace('`', '')}]({path.as_posix()})", f"*{caption}*"]
    return "\n\n".join(parts) + "\n\n" + _after_figures(of)


def agrees(text: str, of: Stored) -> bool:
    """Whether a page says what the result gives; its figures are not read."""
    return f"# {of.title}\n" in text and BLOCKS["machine"](of) in text and text.endswith(_after_figures(of))


def _after_figures(of: Stored) -> str:
    parts = []
    for name, title in PASSAGES.items():
        try:
            passage = BLOCKS[name](of)
        except Missing:  # of a run that measured less
            continue
        parts += [f"## {title}", passage]
    return "\n\n".join([*parts, "## All measurements", ALL, everything(of)]) + "\n"


ORPHAN = "---\norphan: true\n---"  # tells Sphinx that docs/performance.md, and no table of contents, leads here
ALL = (
    "Medians in milliseconds with their quartiles; the columns are those of `python -m benchmarks run`. "
    "Memory is in bytes per neuron-step."
)


def everything(of: Stored) -> str:
    def show(value: float | None, scale: float = 1) -> str:
        return "" if value is None else digits(value * scale)

    lines = []
    for row in of.rows:
        if row.median is None or row.low is None or row.high is None:
            continue
        copy = "" if row.share_of_copy is None else percent(row.share_of_copy)
        lines.append(
            [
                row.case, row.peer, ms(row.median), f"{ms(row.low)} - {ms(row.high)}", show(row.ratio),
                show(row.bandwidth, 1e-9), copy, show(row.saved), show(row.held),
            ]
        )  # fmt: skip
    return table(["case", "", "ms", "quartiles", "/ ours", "GB/s", "copy", "saved", "held"], lines)
