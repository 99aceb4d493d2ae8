"""Train the network of snnTorch's tutorial 5 on MNIST, time a training step beside snnTorch's, and draw two figures.

The network has 784-1000-10 leaky integrate-and-fire neurons and sees the same image at each time step. It is written
with ``snnfast.MultiStep``: the first layer runs once, and each layer of neurons is one kernel for all time steps.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import snntorch
import torch
from data import Digits, load
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own name for it

import snnfast
from snnfast.losses import accuracy_rate, ce_membrane_loss

BETA, LR, BATCH_SIZE = 0.95, 5e-4, 128
FOLDER = Path("figures")
TURNS = 8  # of the timing


class Net(nn.Module):
    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.layers = snnfast.MultiStep(
            nn.Linear(784, 1000),
            snnfast.Leaky(beta=BETA),
            nn.Linear(1000, 10),
            snnfast.Leaky(beta=BETA),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, 784] to spikes and membranes, both [T, B, 10]
        spk_rec, mem_rec = self.layers(x, num_steps=self.num_steps)
        return spk_rec, mem_rec


class TutorialNet(nn.Module):
    """The same network as the tutorial writes it, with snnTorch's layers in a loop over time."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(784, 1000)
        self.lif1 = snntorch.Leaky(beta=BETA)
        self.fc2 = nn.Linear(1000, 10)
        self.lif2 = snntorch.Leaky(beta=BETA)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def tutorial_loss(mem_rec: Tensor, labels: Tensor) -> Tensor:
    loss = torch.zeros((), device=mem_rec.device)
    for mem in mem_rec:
        loss = loss + F.cross_entropy(mem, labels)
    return loss


Step = Callable[[Tensor, Tensor], tuple[float, float]]


def make_step(net: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """A function that trains ``net`` on one minibatch and returns the loss and the accuracy."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=(0.9, 0.999), fused=True)

    def step(images: Tensor, labels: Tensor) -> tuple[float, float]:
        spk_rec, mem_rec = net(images)
        loss = loss_fn(mem_rec, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item(), accuracy_rate(spk_rec, labels)

    return step


def train(net: Net, data: Digits, epochs: int) -> list[tuple[float, float]]:
    step, history = make_step(net, ce_membrane_loss()), []
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        history += [step(images, labels) for images, labels in data.batches(BATCH_SIZE)]
        loss, accuracy = history[-1]
        seconds = time.perf_counter() - start
        print(f"epoch {epoch} of {epochs}: last loss {loss:.2f}, accuracy {accuracy:.4f}, {seconds:.1f} s", flush=True)
    return history


def compare(images: Tensor, labels: Tensor, num_steps: int) -> None:
    """Print the median time of a training step. The networks take turns, so that a slow moment hits all alike."""
    nets: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
        "snnTorch": (lambda: TutorialNet(num_steps), tutorial_loss),
        "snnTorch, snnfast.compile": (lambda: snnfast.compile(TutorialNet(num_steps)), tutorial_loss),
        "snnfast.MultiStep": (lambda: Net(num_steps), ce_membrane_loss()),
    }
    steps, first = {}, {}
    for name, (make_net, loss_fn) in nets.items():
        torch.manual_seed(0)  # the same weights
        steps[name] = make_step(make_net().to(images.device), loss_fn)
        first[name], _ = steps[name](images, labels)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            step(images, labels)  # It does not count: it finds the caches as another network left them.
            for _ in range(3):
                start = time.perf_counter()
                step(images, labels)
                seconds[name].append(time.perf_counter() - start)
    print(f"{'training step':<25}  {'ms':>6}  {'speed-up':>8}  first loss")
    for name, found in seconds.items():
        ratio = median(seconds["snnTorch"]) / median(found)
        print(f"{name:<25}  {1e3 * median(found):>6.2f}  {ratio:>7.1f}x  {first[name]:>10.4f}", flush=True)


@torch.no_grad()
def draw(net: Net, data: Digits, history: list[tuple[float, float]]) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure, axes = plt.subplots(2, 1, sharex=True, layout="constrained")
    for ax, values, label in zip(axes, zip(*history, strict=True), ("loss", "accuracy"), strict=True):
        ax.plot(values)
        ax.set(xlabel="iteration", ylabel=label)
    figure.savefig(FOLDER / "training.png", dpi=150)

    image, number = data.test_images[:1], int(data.test_labels[0])
    _, _, (hidden, output) = net.layers(image, num_steps=net.num_steps, return_spikes=True)
    figure, (digit, *rasters) = plt.subplots(1, 3, figsize=(12, 4), width_ratios=(1, 2, 2), layout="constrained")
    digit.imshow(image.view(28, 28).cpu().numpy(), cmap="gray_r")
    digit.set(title=f"a {number}, taken for a {int(output.sum(0).argmax())}", xticks=[], yticks=[])
    for ax, spikes, name in zip(rasters, (hidden[:, 0, :80], output[:, 0]), ("hidden", "output"), strict=True):
        steps, neurons = spikes.cpu().nonzero(as_tuple=True)
        ax.scatter(steps, neurons, marker="|")
        ax.set(xlabel="time step", ylabel="neuron", title=f"spikes of {name} neurons", xlim=(-0.5, len(spikes) - 0.5))
    figure.savefig(FOLDER / "raster.png", dpi=150)
    print(f"saved {FOLDER}/training.png and {FOLDER}/raster.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a spiking network on MNIST, and time it beside snnTorch.")
    add = parser.add_argument
    add("--data-path", help="folder that holds MNIST/raw (default: SNNFAST_DATA, or a download into ./data)")
    add("--epochs", type=int, help="default: 1, or 40 over scikit-learn's digits")
    add("--num-steps", type=int, default=25, help="time steps (default: 25)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    data = load(args.data_path, args.device)
    print(f"{data}; device {args.device}, {torch.get_num_threads()} CPU threads", flush=True)
    torch.manual_seed(0)
    net = Net(args.num_steps).to(args.device)
    history = train(net, data, args.epochs or data.epochs)
    with torch.no_grad():
        spk_rec = torch.cat([net(images)[0] for images in data.test_images.split(500)], 1)
    print(f"test accuracy (the neuron that spikes most): {accuracy_rate(spk_rec, data.test_labels):.4f}", flush=True)
    draw(net, data, history)
    compare(*next(data.batches(BATCH_SIZE)), args.num_steps)


if __name__ == "__main__":
    main()
