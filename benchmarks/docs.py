"""``docs``: figures in README and the docs stand between markers and come from the stored results."""

import argparse
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from . import page, plots, store, svg
from .bars import Found
from .blocks import BLOCKS
from .report import ROOT
from .stored import Missing, Stored

SAME = "the results that the documents name"
FIGURE = ROOT / "docs" / "figures" / "tutorial5.svg"
PAGES = ROOT / "docs" / "results"
# <!-- results: RESULT BLOCK --> ... <!-- end -->, where RESULT.json lies in benchmarks/results
MARKED = re.compile(r"^<!-- results: (?P<result>\S+) (?P<block>\S+) -->\n.*?^<!-- end -->$", re.DOTALL | re.MULTILINE)


def documents() -> Iterator[Path]:
    """Those that may show figures; pages of results are written as a whole."""
    yield ROOT / "README.md"
    yield from (file for file in sorted((ROOT / "docs").rglob("*.md")) if PAGES not in file.parents)


def run(args: argparse.Namespace) -> Found:
    try:
        if args.update is not None:
            update(None if args.update == SAME else Path(args.update))
        problems = list(different())
    except (OSError, ValueError) as error:
        args.error(str(error))
    for problem in problems:
        print(problem)
    if problems:
        args.error("not what the stored results give: python -m benchmarks docs --update")
    return Found()


def update(result: Path | None) -> None:
    """Write passages, figure and pages anew: of ``result``, or of the results that the documents name so far."""
    if result is not None and result.stem not in store.results():
        raise Missing(f"{result}: not in {store.RESULTS.relative_to(ROOT)}")
    stem = None if result is None else result.stem
    for document in documents():
        text = document.read_text()
        new = filled(text, stem)
        if new != text:
            document.write_text(new)
            print(f"wrote {document.relative_to(ROOT)}")
    plots.training_step(FIGURE, stored(stem or _named_in_readme()))
    print(f"wrote {FIGURE.relative_to(ROOT)}")
    for file in store.results().values():
        print(f"wrote {page.write(file, PAGES).relative_to(ROOT)}")


def filled(text: str, result: str | None = None) -> str:
    """A document with each marked passage as its result gives it, or all as ``result`` does."""

    def passage(found: re.Match[str]) -> str:
        stem, block = result or found["result"], found["block"]
        if block not in BLOCKS:
            raise Missing(f"{block}: there are {', '.join(BLOCKS)}")
        return f"<!-- results: {stem} {block} -->\n\n{BLOCKS[block](stored(stem))}\n\n<!-- end -->"

    return MARKED.sub(passage, text)


def different() -> Iterator[str]:
    """What does not show what the stored results give."""
    for document in documents():
        text = document.read_text()
        if len(re.findall(r"^<!-- results:", text, re.MULTILINE)) != len(MARKED.findall(text)):
            yield f"{document.relative_to(ROOT)}: a marker without its end"
        for found in MARKED.finditer(text):
            if filled(found[0]) != found[0]:
                yield f"{document.relative_to(ROOT)}: {found['block']}"
    for file in sorted(PAGES.glob("*.md")):
        if file.stem not in store.results() or not page.agrees(file.read_text(), stored(file.stem)):
            yield str(file.relative_to(ROOT))
    if svg.description(FIGURE) != plots.of_training_step(stored(_named_in_readme())):
        yield str(FIGURE.relative_to(ROOT))


def _named_in_readme() -> str:
    found = MARKED.search((ROOT / "README.md").read_text())
    if found is None:
        raise Missing("README.md shows no result")
    return found["result"]


@cache
def stored(stem: str) -> Stored:
    files = store.results()
    if stem not in files:
        raise Missing(f"{stem}: not in {store.RESULTS.relative_to(ROOT)}, where there are {', '.join(files)}")
    return Stored(files[stem])
