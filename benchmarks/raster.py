"""``raster``: tutorial 5's network, trained for an epoch on MNIST, and what it does with one digit."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import snnfast

from . import mnist, svg
from .bars import Found
from .epoch import train
from .peers import PEERS, Unsupported
from .peers.ours import OURS
from .registry import HIDDEN, TUTORIAL5
from .workloads import Network

NEURONS = 40  # of the hidden layer, that are drawn
INCHES = (5.6, 3.0)


def run(args: argparse.Namespace) -> Found:
    try:
        digits = mnist.load()
    except Unsupported as error:
        args.error(str(error))
    network = Network(TUTORIAL5, PEERS[OURS], torch.device("cpu"))
    seconds = train(network, digits, 0)
    print(f"trained for one epoch on {digits.name} in {seconds:.1f} s")
    image, label = digits.test_images[:1], int(digits.test_labels[0])
    with torch.no_grad():
        *_, spikes = snnfast.MultiStep.forward(network.net, image, num_steps=TUTORIAL5.T, return_spikes=True)
    hidden, output = (spk_rec[:, 0] for spk_rec in spikes)
    some = torch.linspace(0, HIDDEN - 1, NEURONS).long()
    shown = {f"{NEURONS} of {HIDDEN}\nhidden neurons": hidden[:, some], "class": output}
    print(f"wrote {draw(args.out, image.view(28, 28), label, shown)}")
    return Found()


def draw(path: Path, image: Tensor, label: int, spikes: Mapping[str, Tensor]) -> Path:
    """The digit ``[H, W]``, and the spikes ``[T, neurons]`` of hidden and of output neurons, by their names."""
    (hidden_name, hidden), (output_name, output) = spikes.items()
    said = int(output.sum(0).argmax())
    with svg.pyplot() as plt:
        figure = plt.figure(figsize=INCHES, layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 4.2), height_ratios=(2.2, 1.3))
        digit = figure.add_subplot(grid[0, 0])
        digit.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        digit.set(xticks=[], yticks=[])
        digit.set_title("input", fontsize=9, fontweight="normal")
        digit.set_xlabel(f"a {label}; the network\nsays {said}", fontsize=9)

        top = figure.add_subplot(grid[0, 1])
        _spikes(top, hidden, svg.BLUE, width=2)
        top.set_title("A network trained on MNIST sees a digit")
        top.set(ylim=(-1, hidden.shape[1]), ylabel=hidden_name, yticks=[])
        top.tick_params(labelbottom=False, length=0)

        bottom = figure.add_subplot(grid[1, 1], sharex=top)
        classes = output.shape[1]
        bottom.axhspan(said - 0.5, said + 0.5, color=svg.OURS, alpha=0.15, linewidth=0)
        _spikes(bottom, output, svg.OURS, width=2.4)
        bottom.set(yticks=sorted({0, said, classes - 1}), ylim=(-0.7, classes - 0.3), ylabel=output_name)
        bottom.tick_params(axis="y", labelsize=8, length=0)
        bottom.set(xlabel="time step", xlim=(-0.7, len(output) - 0.3))
        text = f"Spikes of a 784-1000-10 network, trained for one epoch on MNIST, that sees a {label} and says {said}."
        return svg.save(figure, path, text)


def _spikes(axes: Any, spk_rec: Tensor, color: str, width: float) -> None:
    """A stroke for each spike of ``[T, neurons]``; all are one line with gaps, which keeps the file small."""
    step, neuron = spk_rec.nonzero(as_tuple=True)
    x = [value for t in step.tolist() for value in (t, t, math.nan)]
    y = [value for n in neuron.tolist() for value in (n - 0.45, n + 0.45, math.nan)]
    axes.plot(x, y, color=color, linewidth=width, solid_capstyle="butt")
