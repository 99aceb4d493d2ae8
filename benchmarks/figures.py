"""The charts of README and the docs, by matplotlib. They are narrow, so that a phone shows their text in full size.

Text and lines have the colour of the page: light or dark, as the reader's system or the switch of the site says.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .docs import CONV, CONV_INFERENCE, LARGE, LAYER, MEMORY, STEP, WORDS, Result, digits, floors, result
from .peers import PEERS
from .peers.ours import BACKEND, LOOPED, NUMBERS, OURS, SWAPPED, WITH_LOSS
from .peers.snntorch_loop import LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY
from .report import ROOT

SHOWN = "amd-epyc-avx512"  # the result that the charts show
STYLE = ["seaborn-v0_8-whitegrid", "tableau-colorblind10"]
INK = "#262626"  # of text and lines in this style
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snnfast",  # the same names in the file whenever it is drawn
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid.axis": "x",
    "axes.edgecolor": INK,
    "grid.color": INK,
    "grid.alpha": 0.2,
}
PAGE = "svg{color:#1f2328}@media (prefers-color-scheme: dark){svg{color:#f0f6fc}}"
OWN = (OURS, LOOPED, WITH_LOSS, NUMBERS, SWAPPED, BACKEND)
Panels = Mapping[str, Mapping[str, float]]  # titles, and the bars below each: names and values
Chart = tuple[Panels, str, Callable[[float], str]]  # the unit, and how a value is written


def drawn() -> dict[Path, str]:
    """Every chart as SVG, by its file."""
    of = result(SHOWN)
    folder = ROOT / "docs" / "figures"
    return {folder / f"{name}.svg": draw(*chart(of)) for name, chart in CHARTS.items()}


def texts(svg: str) -> list[str]:
    """What a chart says; how it is drawn depends on the version of matplotlib."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def draw(panels: Panels, unit: str, show: Callable[[float], str]) -> str:
    """Panels one below the other; in each, a name above its bar, so that the bars have the whole width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.style.context([*STYLE, SETTINGS]):
        heights = [len(bars) + 1.2 for bars in panels.values()]
        figure, axes = plt.subplots(
            len(panels), figsize=(4.8, 0.5 * sum(heights)), layout="constrained", squeeze=False, height_ratios=heights
        )
        for ax, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
            colours = ["C1" if _is_ours(name) else "C2" for name in bars]
            drawn = ax.barh(range(len(bars)), bars.values(), height=0.4, color=colours)
            ax.bar_label(drawn, [show(value) for value in bars.values()], padding=4)
            for i, name in enumerate(bars):
                ax.text(0, i - 0.27, name, va="bottom")
            ax.set(title=title, xlabel=unit, yticks=[])
            ax.set(ylim=(len(bars) - 0.7, -0.8), xlim=(0, max(bars.values()) * 1.25))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = buffer.getvalue().replace(INK, "currentColor").replace('<style type="text/css">', f"<style>{PAGE}", 1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _is_ours(name: str) -> bool:
    return "snnfast" in name or name.startswith("[")


def _name(peer: str, layer: bool = False) -> str:
    """Without Markdown; a layer alone is no MultiStep."""
    return peer if layer and peer in OWN else WORDS.get(peer, peer).replace("`", "")


def _ms(value: float) -> str:
    return f"{digits(value)} ms"


def _times(of: Result, case: str, peers: Sequence[str] = ()) -> dict[str, float]:
    """Milliseconds of ``peers``, or of all, the longest first."""
    rows = [row for row in of.rows if row.case == case and row.peer in (peers or PEERS) and row.median is not None]
    rows.sort(key=lambda row: of.seconds(case, row.peer), reverse=True)
    return {_name(row.peer, case in (LAYER, LARGE)): of.seconds(case, row.peer) * 1e3 for row in rows}


def _of_training_step(of: Result) -> Chart:
    bars = _times(of, STEP, (LOOP, JELLY, NETWORK, LOOPED, OURS))
    return {"A training step of snnTorch's tutorial 5": bars}, f"ms, {of.title}", _ms


def _of_time(of: Result) -> Chart:
    panels = {
        "training step of tutorial 5": STEP,
        "training step, convolutions": CONV,
        "inference, convolutions": CONV_INFERENCE,
        "layer [25, 128, 1000]": LAYER,
        "layer [100, 128, 1024]": LARGE,
    }
    return {title: _times(of, case) for title, case in panels.items()}, "ms", _ms


def _of_share(of: Result) -> Chart:
    shares = {shape: row.share_of_copy * 100 for shape, row in floors(of).items() if row.share_of_copy is not None}
    return {"Speed of a layer beside copy_": shares}, "% of the speed of copy_", "{:.0f} %".format


def _of_memory(of: Result) -> Chart:
    panels = {"784-1000-10": STEP, "784-1000-1000-1000-1000-10": MEMORY, "convolutional": CONV}
    bars = {
        network: {_name(peer, True): of.row(case, peer).held or 0.0 for peer in (LOOP, JELLY, NUMBERS, OURS)}
        for network, case in panels.items()
    }
    return bars, "bytes per neuron-step", "{:.2f}".format


CHARTS: dict[str, Callable[[Result], Chart]] = {
    "tutorial5": _of_training_step,
    "time": _of_time,
    "share": _of_share,
    "memory": _of_memory,
}
