"""Figures of a stored result: times, bandwidth, share of ``copy_``, memory.

They are narrow enough for a phone, so that a name stands above its bars and not beside them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import svg
from .blocks import CONVOLUTION, LARGE, LAYER, STEP, WORDS, inference, training_steps
from .peers.ours import LOOPED, NUMBERS, OURS, SWAPPED, WITH_LOSS
from .peers.snntorch_loop import LOOP
from .peers.spikingjelly import PREFIX as JELLY
from .registry import Case
from .runner import COPY
from .stored import Stored, digits, times

OWN = (OURS, LOOPED, WITH_LOSS, NUMBERS, SWAPPED)
WIDTH = 4.8
NAME, BAR, GAP, AXIS = 0.2, 0.19, 0.05, 0.6  # inches: a line of text, a bar, the space below, title and axis
Groups = Sequence[tuple[str, Sequence[tuple[float, str]]]]  # names, and the bars below each: values and colours


# ---- the figure of README


def training_step(path: Path, of: Stored) -> Path:
    """One training step of tutorial 5, a bar for each implementation."""
    with svg.pyplot() as plt:
        figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
        _bars(axes, [(name, [(seconds * 1e3, _colour(peer))]) for peer, name, seconds in training_steps(of)], _ms)
        axes.set_title("One training step of snnTorch's tutorial 5", pad=14)
        versions = [f"{name} {version}" for name, version in of.header["peers"].items() if version != "not installed"]
        axes.text(
            0, 1.0, f"784-1000-10, batch 128, 25 steps, CPU threads: {of.header['threads']}; shorter is better",
            transform=axes.transAxes, fontsize=8, color=svg.MUTED, va="bottom",
        )  # fmt: skip
        axes.set_xlabel(", ".join(versions), fontsize=8, color=svg.MUTED)
        return svg.save(figure, path, of_training_step(of))


def of_training_step(of: Stored) -> str:
    """In words, what that figure shows."""
    steps = ", ".join(f"{name}: {_ms(seconds * 1e3)}" for _, name, seconds in training_steps(of))
    return f"One training step of snnTorch's tutorial 5 ({of.title}). {steps}."


# ---- the figures of a page: each is drawn where the result has what it shows


def draw(folder: Path, of: Stored) -> list[tuple[str, Path]]:
    """Write every figure that has something to show; return their captions and files."""
    drawn = []
    for name, (caption, function) in FIGURES.items():
        with svg.pyplot() as plt:
            figure = function(plt, of)
            if figure is not None:
                drawn.append((caption, svg.save(figure, folder / f"{name}.svg", f"{caption} ({of.title})")))
    return drawn


def _time(plt: Any, of: Stored) -> Any:
    """A panel for each case that several implementations ran."""
    panels = {}
    for case, title in (
        (STEP, "training step of tutorial 5"),
        (CONVOLUTION, "training step, convolutions"),
        (inference(CONVOLUTION), "inference, convolutions"),
        (LAYER, "layer [25, 128, 1000]"),
        (LARGE, "layer [100, 128, 1024]"),
    ):
        rows = [row for row in of.rows if row.case == case and row.peer != COPY and row.median is not None]
        rows.sort(key=lambda row: row.median, reverse=True)
        panels[title] = [(_plain(row.peer, case), [(row.median * 1e3, _colour(row.peer))]) for row in rows]
    return _figure(plt, {title: groups for title, groups in panels.items() if len(groups) > 1}, _ms)


def _bandwidth(plt: Any, of: Stored) -> Any:
    colours = {OURS: svg.OURS, COPY: svg.OTHER}
    groups = [
        (_shape(of.cases[case]), [(of.row(case, peer).bandwidth / 1e9, colour) for peer, colour in colours.items()])
        for case in _layers(of)
    ]
    return _figure(plt, {"": groups}, "{:.1f}".format, "GB/s of the fewest bytes possible", colours)


def _share(plt: Any, of: Stored) -> Any:
    shares = [(_shape(of.cases[case]), of.row(case, OURS).share_of_copy * 100) for case in _layers(of)]
    groups = [(name, [(share, svg.OURS)]) for name, share in shares]
    figure = _figure(plt, {"": groups}, lambda share: f"{times(share)} %", "% of the speed of copy_")
    if figure is not None:
        figure.axes[0].axvline(100, color=svg.INK, linewidth=1, linestyle="--", zorder=0.9)  # behind bars and text
    return figure


def _memory(plt: Any, of: Stored) -> Any:
    rows = of.parts.get("held", [])
    colours = {LOOP: svg.OTHER, JELLY: svg.GREEN, NUMBERS: svg.OURS_TOO, OURS: svg.OURS}
    groups = [
        (network, [(row["held"], colours[row["peer"]]) for row in rows if row["network"] == network])
        for network in dict.fromkeys(row["network"] for row in rows)
    ]
    legend = {_plain(peer, ""): colour for peer, colour in colours.items()}
    return _figure(plt, {"": groups}, "{:.2f}".format, "bytes per neuron-step, without inputs and parameters", legend)


FIGURES: dict[str, tuple[str, Callable[[Any, Stored], Any]]] = {
    "time": ("Time of one call. Shorter is better.", _time),
    "bandwidth": ("Bandwidth: the fewest bytes that a layer can move, over its time; beside `copy_`.", _bandwidth),
    "share": ("Share of `copy_`: how near a layer comes to a copy of as many bytes.", _share),
    "memory": ("Memory that networks hold between forward and backward pass.", _memory),
}


# ---- what they share


def _plain(peer: str, case: str = STEP) -> str:
    """A name without Markdown; a layer alone is no MultiStep."""
    layer = case not in (STEP, CONVOLUTION, inference(CONVOLUTION))
    return peer if layer and peer in OWN else WORDS.get(peer, peer).replace("`", "")


def _colour(peer: str) -> str:
    return svg.OURS if peer in OWN else svg.OTHER


def _ms(value: float) -> str:
    return f"{digits(value)} ms"


def _layers(of: Stored) -> list[str]:
    """Cases that stand beside ``copy_``."""
    return [row.case for row in of.rows if row.peer == OURS and of.has(row.case, COPY)]


def _shape(case: Case) -> str:
    """Short, of a layer."""
    parts = [str([case.T, case.B, *case.shape])]
    parts += [case.neuron] if case.neuron != "leaky" else []
    parts += [case.dtype] if case.dtype != "float32" else []
    parts += ["constant current"] if case.constant else []
    parts += [f"{name}={value}" for name, value in case.options.changed().items()]
    parts += [] if case.backward else ["forward"]
    return ", ".join(parts).replace("straight_through_estimator", "straight-through")


def _figure(
    plt: Any, panels: Mapping[str, Groups], show: Callable[[float], str], unit: str = "", legend: Mapping[str, str] = {}
) -> Any:
    """Panels by their titles, below a legend of colours; None where there is nothing to show."""
    if not any(panels.values()):
        return None
    heights = [AXIS + sum(NAME + BAR * len(bars) + GAP for _, bars in groups) for groups in panels.values()]
    figure, axes = plt.subplots(
        len(panels), figsize=(WIDTH, sum(heights) + NAME * len(legend)), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    figure.get_layout_engine().set(h_pad=0.1)  # inches between the panels
    for each, (title, groups) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(each, groups, show)
        each.set_title(title)
        each.set_xlabel(unit)
    if legend:
        handles = [axes[0, 0].barh(0, 0, color=colour, label=name) for name, colour in legend.items()]
        figure.legend(handles=handles, loc="outside upper left")
    return figure


def _bars(axes: Any, groups: Groups, show: Callable[[float], str]) -> None:
    """From top to bottom each name, and below it its bars, each with its value behind its end."""
    y = GAP
    for name, bars in groups:
        y += NAME
        _text(axes, name, (0, y - NAME / 2), 0)
        for value, colour in bars:
            axes.barh(y + BAR / 2, value, BAR * 0.9, color=colour)
            own = {"color": svg.OURS, "fontweight": "bold"} if colour == svg.OURS else {}
            _text(axes, show(value), (value, y + BAR / 2), 4, **own)
            y += BAR
        y += GAP
    longest = max(value for _, bars in groups for value, _ in bars)
    axes.set(yticks=[], ylim=(y, 0), xlim=(0, longest * 1.2))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)


def _text(axes: Any, text: str, place: tuple[float, float], right: float, **style: Any) -> None:
    """On paper of its own, so that no line runs through it."""
    box = {"facecolor": svg.PAPER, "edgecolor": "none", "pad": 0.5}
    axes.annotate(text, place, (right, 0), textcoords="offset points", va="center", fontsize=9, bbox=box, **style)
