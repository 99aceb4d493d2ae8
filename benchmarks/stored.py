"""A stored result, its rows by case and implementation, and how its figures are written."""

import re
from collections.abc import Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from . import report
from .registry import case_of
from .runner import Row


class Missing(ValueError):  # noqa: N818 - a reason, not a mistake
    """What a result does not have."""


class Stored:
    """A file that ``store`` or ``run --json`` wrote."""

    def __init__(self, file: Path) -> None:
        self.name = file.stem
        content = report.load(file)
        self.header: dict[str, Any] = content["header"]
        self.rows: list[Row] = content["rows"]
        self.parts: dict[str, list[dict[str, Any]]] = content["parts"]
        self.cases = {name: case_of(fields) for name, fields in content["cases"].items()}

    @property
    def day(self) -> str:
        return f"{date.fromisoformat(self.header['date']):%-d %B %Y}"

    @property
    def title(self) -> str:
        """For people; the name is that of the files."""
        return f"{processor(self.header)}, {self.header['threads']} threads, {self.day}"

    @cached_property
    def _by_names(self) -> dict[tuple[str, str], Row]:
        return {(row.case, row.peer): row for row in self.rows}

    def row(self, case: str, peer: str) -> Row:
        """With a measurement, or Missing."""
        row = self._by_names.get((case, peer))
        if row is None or row.median is None:
            raise Missing(f"{self.name} has no measurement of {peer}, {case}")
        return row

    def has(self, case: str, peer: str) -> bool:
        row = self._by_names.get((case, peer))
        return row is not None and row.median is not None

    def seconds(self, case: str, peer: str) -> float:
        median = self.row(case, peer).median
        assert median is not None
        return median

    def part(self, name: str) -> list[dict[str, Any]]:
        if not self.parts.get(name):
            raise Missing(f"{self.name} has nothing of `{name}`")
        return self.parts[name]

    def mean(self, part: str, value: str, **which: Any) -> float:
        """Over the rows of a part that agree with ``which``."""
        return mean(row[value] for row in self.part(part) if which.items() <= row.items())


def processor(header: Mapping[str, Any]) -> str:
    """Of the machine, without the words that say nothing."""
    words = re.sub(r"\((R|TM)\)|@.*|\b(\d+-Core|CPU|Processor)\b", " ", header["machine"].split(",")[0])
    return " ".join(words.split())


def ms(seconds: float) -> str:
    """Milliseconds, three digits of them."""
    return digits(seconds * 1e3)


def digits(value: float) -> str:
    """Three significant digits, at most three decimals, no exponent."""
    decimals = next((d for limit, d in ((100, 0), (10, 1), (1, 2)) if value >= limit), 3)
    return f"{value:.{decimals}f}"


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def percent(share: float, decimals: int = 0) -> str:
    return f"{share * 100:.{decimals}f} %"


def table(head: list[str], lines: list[list[str]]) -> str:
    """In Markdown; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
