"""The figures of the examples: two of MNIST, and one trial of a recurrent network."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from files import write_whole
from torch import Tensor

matplotlib.use("Agg")  # files only: works without a display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_HIDDEN, _OUTPUT, _RIGHT = "tab:blue", "tab:orange", "tab:green"


def save_training(path: Path, losses: Sequence[float], accuracies: Sequence[float], title: str) -> None:
    """Loss and accuracy of each training batch over iterations, with their moving averages."""
    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    figure.suptitle(title)
    _curve(axes[0], losses, _HIDDEN)
    axes[0].set(ylabel="loss", ylim=(0, None))
    _curve(axes[1], [100 * a for a in accuracies], _RIGHT)
    axes[1].set(ylabel="accuracy of the batch (%)", xlabel="iteration", ylim=(0, 102))
    _save(figure, path)


def _curve(ax: Axes, values: Sequence[float], color: str) -> None:
    window = max(1, len(values) // 20)
    total = torch.tensor(values, dtype=torch.float64).cumsum(0)
    mean = total.clone()
    mean[window:] -= total[:-window]
    mean /= torch.arange(1, len(values) + 1).clamp(max=window)  # the first means are over fewer
    iterations = range(1, len(values) + 1)
    ax.plot(iterations, values, color=color, alpha=0.35, linewidth=0.8, label="each batch")
    ax.plot(iterations, mean.tolist(), color=color, linewidth=1.8, label=f"mean of {window} batches")
    ax.legend(frameon=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def save_raster(
    path: Path,
    image: Tensor,  # [H, W]
    label: int,
    hidden: Tensor,  # [T, neurons] 0 or 1
    output: Tensor,  # [T, classes] 0 or 1
    hidden_size: int,
) -> None:
    """A digit, the spikes of some hidden neurons and of the output layer, and the output's spike counts."""
    prediction = int(output.sum(0).argmax())
    steps, classes = output.shape
    figure = plt.figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.6, 4, 1), height_ratios=(2, 1))

    digit = figure.add_subplot(grid[0, 0])
    digit.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    digit.set(xticks=[], yticks=[], title=f"test digit: {label}", xlabel=f"predicted: {prediction}")

    top = figure.add_subplot(grid[0, 1])
    top.set(title=f"spikes of the hidden layer ({hidden.shape[1]} of {hidden_size} neurons)", ylabel="neuron")
    _spikes(top, hidden, size=14, color=_HIDDEN)
    top.set_ylim(-1, hidden.shape[1])
    top_counts = figure.add_subplot(grid[0, 2], sharey=top)
    top_counts.barh(range(hidden.shape[1]), hidden.sum(0).tolist(), height=0.8, color=_HIDDEN)
    top_counts.set(title="count", xlim=(0, steps))

    bottom = figure.add_subplot(grid[1, 1], sharex=top)
    bottom.set(title="spikes of the output layer", xlabel="time step", ylabel="class", xlim=(-0.5, steps - 0.5))
    bottom.axhspan(prediction - 0.5, prediction + 0.5, color=_OUTPUT, alpha=0.15, linewidth=0)
    _spikes(bottom, output, size=40, color=_OUTPUT)
    bottom.set(yticks=range(classes), ylim=(-0.7, classes - 0.3))
    bottom_counts = figure.add_subplot(grid[1, 2], sharey=bottom, sharex=top_counts)
    colors = [_OUTPUT if i == prediction else "lightgray" for i in range(classes)]
    bottom_counts.barh(range(classes), output.sum(0).tolist(), color=colors)
    bottom_counts.set(xlabel="spikes", xlim=(0, steps))

    for ax in (top, top_counts, bottom, bottom_counts):
        ax.spines[["top", "right"]].set_visible(False)
    for ax in (top, top_counts):
        ax.tick_params(labelbottom=False)
    for ax in (top_counts, bottom_counts):
        ax.tick_params(labelleft=False)
    _save(figure, path)


def save_trial(
    path: Path,
    title: str,
    x: Tensor,  # [T, channels] 0 or 1
    hidden: Tensor,  # [T, neurons] 0 or 1
    mem_rec: Tensor,  # [T, classes]
    names: Mapping[int, str],  # of the classes that are drawn in colour
    periods: Mapping[str, tuple[int, int]] | None = None,  # steps that are shaded: first, and the one behind the last
) -> None:
    """Spikes that come in, spikes of the hidden layer, and membranes of the readout, over the same time steps."""
    figure, axes = plt.subplots(
        3, 1, figsize=(9, 9), sharex=True, layout="constrained", gridspec_kw={"height_ratios": (3, 3, 2)}
    )
    figure.suptitle(title)
    for ax, spk_rec, color, unit in ((axes[0], x, "black", "channel"), (axes[1], hidden, _HIDDEN, "neuron")):
        size = spk_rec.shape[1]
        _spikes(ax, spk_rec, size=min(30.0, 3000 / size), color=color)
        ax.set(ylabel=unit, ylim=(-1, size), title=f"{int(spk_rec.sum())} spikes of {size} {unit}s")
    for i, membrane in enumerate(mem_rec.T.tolist()):
        if i not in names:
            axes[2].plot(membrane, color="lightgray", linewidth=0.8, zorder=1)
    for (i, name), color in zip(names.items(), (_OUTPUT, _RIGHT, _HIDDEN), strict=False):
        axes[2].plot(mem_rec[:, i].tolist(), color=color, linewidth=1.8, label=name)
    axes[2].set(title="membranes of the readout", xlabel="time step", xlim=(-0.5, len(x) - 0.5))
    axes[2].legend(frameon=False)
    for name, (first, end) in (periods or {}).items():
        for ax in axes:
            ax.axvspan(first - 0.5, end - 0.5, color="tab:gray", alpha=0.15, linewidth=0)
        axes[0].text((first + end - 1) / 2, 1.1 * x.shape[1], name, ha="center", va="top")
        axes[0].set_ylim(-1, 1.1 * x.shape[1])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _spikes(
    ax: Axes,
    spk_rec: Tensor,  # [T, neurons] 0 or 1
    size: float,  # points^2
    color: str,
) -> None:
    step, neuron = spk_rec.nonzero(as_tuple=True)
    ax.scatter(step.tolist(), neuron.tolist(), s=size, marker="|", color=color, linewidths=1.5)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    plt.close(figure)
    write_whole(path, buffer.getvalue())
