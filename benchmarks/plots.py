"""Figures of a run: time per neuron-step, bytes held, and how near to the memory's bandwidth it comes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .registry import Case
from .runner import COPY, Row

Cases = Mapping[str, Case]


def draw(folder: Path, cases: Cases, rows: Sequence[Row]) -> list[Path]:
    """Write every figure that has something to show; return their files."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, draw_one in (
        ("time_over_N", lambda ax: _over(ax, cases, rows, "N")),
        ("time_over_T", lambda ax: _over(ax, cases, rows, "T")),
        ("bytes_held", lambda ax: _held(ax, rows)),
        ("roofline", lambda ax: _roofline(ax, cases, rows)),
    ):
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        if draw_one(axes):
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=150)
        pyplot.close(figure)
    return files


def _plain(case: Case) -> bool:
    return (
        case.kind == "layer"
        and case.suite in ("lif", "long")
        and case.backward
        and case.dtype == "float32"
        and not case.constant
        and not case.options.changed()
    )


def _over(axes: Any, cases: Cases, rows: Sequence[Row], along: str) -> bool:
    """A line per implementation, the other size being the one that most cases have."""
    other = "T" if along == "N" else "N"
    plain = {name: case for name, case in cases.items() if _plain(case)}
    counts = Counter(getattr(case, other) for case in plain.values())
    if not counts or counts.most_common(1)[0][1] < 2:
        return False
    fixed = counts.most_common(1)[0][0]
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.median is not None and row.case in plain and getattr(plain[row.case], other) == fixed:
            point = getattr(plain[row.case], along), row.median / row.neuron_steps * 1e9
            lines.setdefault(row.peer, []).append(point)
    for peer, points in lines.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=peer)
    axes.set(xlabel=along, ylabel="ns per neuron-step", title=f"forward + backward, float32, {other} = {fixed}")
    axes.legend()
    return True


def _held(axes: Any, rows: Sequence[Row]) -> bool:
    case = next((row.case for row in rows if row.saved is not None), None)
    bars = [row for row in rows if row.case == case and row.saved is not None]
    if not bars:
        return False
    axes.barh([row.peer for row in bars], [row.saved for row in bars], color="C0", alpha=0.4, label="saved")
    axes.barh([row.peer for row in bars], [row.held for row in bars], color="C0", label="of these, held by it alone")
    axes.set(xlabel="bytes per neuron-step", title=case)
    axes.invert_yaxis()
    axes.legend()
    return True


def _roofline(axes: Any, cases: Cases, rows: Sequence[Row]) -> bool:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.bandwidth is not None:
            case = cases[row.case]
            point = case.neuron_steps * case.itemsize, row.bandwidth / 1e9
            points.setdefault(row.peer, []).append(point)
    for peer, values in points.items():
        values.sort()
        style = (
            {"color": "black", "linestyle": "--", "marker": "_"} if peer == COPY else {"marker": "o", "linestyle": ""}
        )
        axes.loglog(*zip(*values, strict=True), label=peer, **style)
    axes.set(xlabel="bytes of the current", ylabel="GB/s", title="fewest bytes possible / time, and copy_")
    if points:
        axes.legend()
    return bool(points)
