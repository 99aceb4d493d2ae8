"""The chart of README, by matplotlib. It is narrow, so that a phone shows its text in full size.

Text and lines have the colour of the page: light or dark, as the reader's system or the switch of the site says.
"""

import io
import re
from collections.abc import Mapping

from .docs import STEP, WORDS, digits, result
from .peers.ours import OURS, RECORDED
from .peers.snntorch_loop import LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY

SHOWN = "amd-epyc-avx512"  # the result that the chart shows
FILE = "docs/figures/tutorial5.svg"
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


def drawn() -> str:
    """The chart as SVG: a training step of each implementation, the longest first."""
    of = result(SHOWN)
    peers = sorted((LOOP, JELLY, NETWORK, RECORDED, OURS), key=lambda peer: -of.seconds(STEP, peer))
    bars = {WORDS.get(peer, peer).replace("`", ""): of.seconds(STEP, peer) * 1e3 for peer in peers}
    return draw("A training step of snnTorch's tutorial 5", bars, f"ms, {of.title}")


def texts(svg: str) -> list[str]:
    """What a chart says; how it is drawn depends on the version of matplotlib."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def draw(title: str, bars: Mapping[str, float], unit: str) -> str:
    """Each name above its bar, so that the bars have the whole width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.style.context([*STYLE, SETTINGS]):
        figure, ax = plt.subplots(figsize=(4.8, 0.5 * (len(bars) + 1.2)), layout="constrained")
        colours = ["C1" if "snnfast" in name else "C2" for name in bars]
        drawn = ax.barh(range(len(bars)), bars.values(), height=0.4, color=colours)
        ax.bar_label(drawn, [f"{digits(value)} ms" for value in bars.values()], padding=4)
        for i, name in enumerate(bars):
            ax.text(0, i - 0.27, name, va="bottom")
        ax.set(title=title, xlabel=unit, yticks=[])
        ax.set(ylim=(len(bars) - 0.7, -0.8), xlim=(0, max(bars.values()) * 1.25))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = buffer.getvalue().replace(INK, "currentColor").replace('<style type="text/css">', f"<style>{PAGE}", 1)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
