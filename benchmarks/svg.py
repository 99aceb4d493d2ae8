"""Figures as SVG that follow a light or a dark page, with text that stays text. Needs matplotlib."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape, unescape
from pathlib import Path
from typing import Any

# Drawn with a colour that nothing else has, and then replaced by one for light and one for dark pages.
INK, MUTED, GRID, PAPER = "#010203", "#020304", "#030405", "#fdfcfb"
OURS, OURS_TOO, OTHER = "#040506", "#050607", "#060708"
BLUE, GREEN = "#111213", "#121314"
COLOURS = {
    INK: ("#1f2328", "#f0f6fc"),
    MUTED: ("#59636e", "#9198a1"),
    GRID: ("#d1d9e0", "#3d444d"),
    PAPER: ("#ffffff", "#0d1117"),
    OURS: ("#d9480f", "#ff922b"),
    OURS_TOO: ("#f08c5a", "#c9702a"),
    OTHER: ("#8c959f", "#6e7681"),
    BLUE: ("#0969da", "#58a6ff"),
    GREEN: ("#1a7f37", "#3fb950"),
}
FONT = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snnfast",  # the same names in the file whenever it is drawn
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GRID,
    "axes.facecolor": PAPER,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "figure.edgecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@contextmanager
def pyplot() -> Iterator[Any]:
    """matplotlib.pyplot, set up for :func:`save`; figures must be drawn and saved inside."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("figures need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(SETTINGS):
        yield plt


def save(figure: Any, path: Path, description: str) -> Path:
    """Write a figure; ``description`` is what it shows, for those who can't see it."""
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor=PAPER)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(themed(buffer.getvalue(), description))
    return path


def themed(text: str, description: str) -> str:
    """What matplotlib wrote, with colours by the reader's preference."""
    names = {drawn: f"--c{i}" for i, drawn in enumerate(COLOURS)}
    for drawn, (light, _) in COLOURS.items():
        text = text.replace(drawn, f"var({names[drawn]}, {light})")
    light, dark = (
        "".join(f"{names[drawn]}:{pair[i]};" for drawn, pair in COLOURS.items() if names[drawn] in text) for i in (0, 1)
    )
    style = f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?(?=[;\"])", FONT, text)
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    head = f"<desc>{escape(description)}</desc>\n <style>{style}</style>\n <metadata>"
    return re.sub(r"<metadata>", lambda _: head, text, count=1)


def description(path: Path) -> str:
    """What :func:`save` was told that a figure shows."""
    found = re.search(r"<desc>(.*?)</desc>", path.read_text(), re.DOTALL)
    if found is None:
        raise ValueError(f"{path} has no description")
    return unescape(found[1])
