"""Figures of a stored result: times, bandwidth, share of ``copy_``, memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import svg
from .blocks import CONVOLUTION, LARGE, LAYER, STEP, WORDS, inference
from .peers.ours import LOOPED, NUMBERS, OURS, SWAPPED, WITH_LOSS
from .peers.snntorch_loop import LOOP, NETWORK
from .peers.spikingjelly import PREFIX as JELLY
from .registry import Case
from .runner import COPY
from .stored import Stored, digits, ms, times

OWN = (OURS, LOOPED, WITH_LOSS, NUMBERS, SWAPPED)
SHOWN = (LOOP, JELLY, NETWORK, LOOPED, OURS)  # in the figure of README, from top to bottom


# ---- the figure of README


def training_step(path: Path, of: Stored) -> Path:
    """One training step of tutorial 5, a bar for each implementation."""
    with svg.pyplot() as plt:
        figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
        _bars(axes, [(_plain(peer), of.seconds(STEP, peer) * 1e3, peer in OWN) for peer in SHOWN], "ms")
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
    steps = ", ".join(f"{_plain(peer)}: {ms(of.seconds(STEP, peer))} ms" for peer in SHOWN)
    return f"One training step of snnTorch's tutorial 5 ({of.name}). {steps}."


def description(path: Path) -> str:
    return svg.description(path)


# ---- the figures of a page: each is drawn where the result has what it shows


def draw(folder: Path, of: Stored) -> list[tuple[str, Path]]:
    """Write every figure that has something to show; return their captions and files."""
    drawn = []
    for name, (caption, function) in FIGURES.items():
        with svg.pyplot() as plt:
            figure = function(plt, of)
            if figure is not None:
                drawn.append((caption, svg.save(figure, folder / f"{name}.svg", f"{caption} ({of.name})")))
    return drawn


def _time(plt: Any, of: Stored) -> Any:
    """A panel for each case that several implementations ran."""
    panels = []
    for case, title in (
        (STEP, "training step of tutorial 5"),
        (CONVOLUTION, "training step, convolutions"),
        (inference(CONVOLUTION), "inference, convolutions"),
        (LAYER, "layer [25, 128, 1000]"),
        (LARGE, "layer [100, 128, 1024]"),
    ):
        rows = [(row.peer, row.median) for row in of.rows if row.case == case and row.median is not None]
        bars = [(_plain(peer, case), median * 1e3, peer in OWN) for peer, median in rows if peer != COPY]
        if len(bars) > 1:
            panels.append((title, bars))
    if not panels:
        return None
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, sum(0.75 + 0.27 * len(bars) for _, bars in panels)), layout="constrained",
        squeeze=False, height_ratios=[0.75 + 0.27 * len(bars) for _, bars in panels],
    )  # fmt: skip
    figure.get_layout_engine().set(h_pad=0.12)  # inches between the panels
    for each, (title, bars) in zip(axes[:, 0], panels, strict=True):
        _bars(each, sorted(bars, key=lambda bar: -bar[1]), "ms")
        each.set_title(title)
    return figure


def _bandwidth(plt: Any, of: Stored) -> Any:
    lines = [
        (_shape(of.cases[row.case]), row.bandwidth / 1e9, _copy(of, row.case).bandwidth / 1e9)
        for row in _layers(of)
        if row.bandwidth is not None
    ]
    if not lines:
        return None
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(lines)), layout="constrained")
    places = range(len(lines))
    axes.barh([i - 0.19 for i in places], [ours for _, ours, _ in lines], 0.36, color=svg.OURS, label="snnfast")
    axes.barh([i + 0.19 for i in places], [copy for _, _, copy in lines], 0.36, color=svg.OTHER, label="copy_")
    for i, (_, ours, copy) in enumerate(lines):
        for value, place in ((ours, i - 0.19), (copy, i + 0.19)):
            _value(axes, value, place, f"{value:.1f}", fontsize=8, color=svg.MUTED)
    axes.set(yticks=list(places), yticklabels=[name for name, *_ in lines], xlabel="GB/s of the fewest bytes possible")
    _horizontal(axes)
    axes.legend(loc="lower right")
    return figure


def _share(plt: Any, of: Stored) -> Any:
    bars = [
        (_shape(of.cases[row.case]), row.share_of_copy * 100, True)
        for row in _layers(of)
        if row.share_of_copy is not None
    ]
    if not bars:
        return None
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.27 * len(bars)), layout="constrained")
    _bars(axes, bars, "%")
    axes.axvline(100, color=svg.INK, linewidth=1, linestyle="--")
    axes.set_xlabel("% of the speed of copy_")
    return figure


def _memory(plt: Any, of: Stored) -> Any:
    rows = of.parts.get("held", [])
    if not rows:
        return None
    networks = list(dict.fromkeys(row["network"] for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.27 * len(rows) + 0.3 * len(networks)), layout="constrained")
    colours = {OURS: svg.OURS, NUMBERS: svg.OURS_TOO, LOOP: svg.OTHER}
    place, ticks = 0.0, []
    for network in networks:
        first = place
        for i, peer in enumerate(peers):
            row = next((row for row in rows if (row["network"], row["peer"]) == (network, peer)), None)
            if row is None:
                continue
            axes.barh(
                place, row["held"], 0.8, color=colours.get(peer, svg.SERIES[i]),
                label=_plain(peer, "") if network == networks[0] else None,
            )  # fmt: skip
            _value(axes, row["held"], place, f"{row['held']:.2f}", fontsize=8, color=svg.MUTED)
            place += 1
        ticks.append((first + place - 1) / 2)
        place += 0.8
    axes.set(yticks=ticks, yticklabels=networks, xlabel="bytes per neuron-step, without inputs and parameters")
    _horizontal(axes)
    axes.legend(loc="lower right")
    return figure


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


def _layers(of: Stored) -> list[Any]:
    return [row for row in of.rows if row.peer == OURS and of.has(row.case, COPY)]


def _copy(of: Stored, case: str) -> Any:
    return of.row(case, COPY)


def _shape(case: Case) -> str:
    """Short, of a layer."""
    parts = [str([case.T, case.B, *case.shape])]
    parts += [case.neuron] if case.neuron != "leaky" else []
    parts += [case.dtype] if case.dtype != "float32" else []
    parts += ["constant current"] if case.constant else []
    parts += [f"{name}={value}" for name, value in case.options.changed().items()]
    parts += [] if case.backward else ["forward"]
    return ", ".join(parts).replace("straight_through_estimator", "straight-through")


def _bars(axes: Any, bars: Sequence[tuple[str, float, bool]], unit: str) -> None:
    """Horizontal bars from top to bottom, ours in colour, each with its value."""
    names, values, own = zip(*bars, strict=True)
    axes.barh(range(len(bars)), values, 0.7, color=[svg.OURS if each else svg.OTHER for each in own])
    show = digits if unit == "ms" else times
    for i, (value, each) in enumerate(zip(values, own, strict=True)):
        _value(axes, value, i, f"{show(value)} {unit}", color=svg.OURS if each else svg.INK, bold=each)
    axes.set(yticks=range(len(bars)), yticklabels=names, xlim=(0, max(values) * 1.2))
    _horizontal(axes)


def _value(axes: Any, x: float, y: float, text: str, bold: bool = False, **style: Any) -> None:
    """Behind the end of a bar."""
    weight = "bold" if bold else "normal"
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontweight=weight, **style)


def _horizontal(axes: Any) -> None:
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
