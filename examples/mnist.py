"""Train a spiking network on handwritten digits, time one training step, and draw what the network does.

The network, the loss and the numbers are those of snnTorch's tutorial 5 (a 784-1000-10 network of leaky
integrate-and-fire neurons that sees the same image at every time step), written with ``snnfast.MultiStep``.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

try:
    import torch
    from common import choose_device, positive
    from data import CLASSES, DIGITS_EPOCHS, MNIST_EPOCHS, SIDE, Digits, InputError, load
    from figures import save_raster, save_training
    from timing import Step, compare, why_not_fused
    from torch import Tensor, nn
    from tqdm import tqdm

    import snnfast
    from snnfast.losses import accuracy_rate, accuracy_temporal, ce_membrane_loss, ce_temporal_loss
except ModuleNotFoundError as missing:
    package = "." if missing.name == "snnfast" else missing.name
    sys.exit(f"error: {missing.name} is not installed: pip install {package}")

BAR_WINDOW = 50  # iterations over which the progress bar averages
RASTER_NEURONS = 80


@dataclass
class History:
    """What training saw, one entry per iteration; tensors, so that the device need not be waited for."""

    losses: list[Tensor] = field(default_factory=list)  # [] each
    accuracies: list[Tensor] = field(default_factory=list)  # [] each, 0 to 1


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return run(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    backend = choose_backend(args.backend, device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    digits = load(args.data_path, device)
    train = (digits.train_images[: args.limit], digits.train_labels[: args.limit])
    if len(train[0]) < args.batch_size:
        raise InputError(f"--batch-size {args.batch_size} is more than the {len(train[0])} training images")
    print(f"data: {digits.name} ({digits.origin}), {len(train[0])} training and {len(digits.test_images)} test images")
    print(f"device: {device}, {torch.get_num_threads()} CPU threads; backend: {backend}", flush=True)

    torch.manual_seed(args.seed)
    net = build(args.hidden, args.beta).to(device)
    history = History()
    with snnfast.use_backend(backend):
        finished = fit(net, *train, args.epochs or digits.epochs, args, history)
        torch.save(net.state_dict(), output / "model.pt")
        decode(output_spikes(net, digits.test_images, args), digits.test_labels)
        if finished and args.timing:
            x, y = train[0][: args.batch_size], train[1][: args.batch_size]
            compare(net, x, y, args.num_steps, args.lr, lambda n: make_step(n, args, x, y))
        draw(net, digits, history, args.num_steps, output)
    for name in ("model.pt", *(("training.png",) if history.losses else ()), "raster.png"):
        print(f"saved {output / name}")
    return 0 if finished else 130


def build(hidden: int, beta: float) -> snnfast.MultiStep:
    return snnfast.MultiStep(
        nn.Linear(SIDE * SIDE, hidden),
        snnfast.Leaky(beta=beta),
        nn.Linear(hidden, CLASSES),
        snnfast.Leaky(beta=beta),
    )


def predict(spk_rec: Tensor) -> Tensor:
    """Rate code: the class whose neuron spikes most. ``[T, B, classes]`` to ``[B]``."""
    return spk_rec.sum(0).argmax(1)


def make_trainer(
    net: snnfast.MultiStep, num_steps: int, lr: float, code: str = "rate"
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function that trains ``net`` on one batch and returns the loss and the output spikes ``[T, B, classes]``.

    The loss of the rate code is that of tutorial 5: the membrane of the right class should be the highest at every
    step. That of the latency code wants its neuron to spike first.
    """
    # The same update in one kernel instead of a dozen small ones per parameter, on the devices that have it.
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.999), fused=fused)

    loss_fn = ce_temporal_loss() if code == "latency" else ce_membrane_loss()

    def train_on(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        spk_rec, mem_rec = net(images, num_steps=num_steps)
        loss = loss_fn(spk_rec if code == "latency" else mem_rec, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), spk_rec.detach()

    return train_on


def make_step(net: snnfast.MultiStep, args: argparse.Namespace, images: Tensor, labels: Tensor) -> Step:
    train_on = make_trainer(net, args.num_steps, args.lr)
    return lambda: train_on(images, labels)[0]


def fit(
    net: snnfast.MultiStep,
    images: Tensor,  # [N, 784]
    labels: Tensor,  # [N]
    epochs: int,
    args: argparse.Namespace,
    history: History,
) -> bool:
    """Train; returns whether it came to the end (``False``: Ctrl-C)."""
    train_on = make_trainer(net, args.num_steps, args.lr, args.code)
    shuffle = torch.Generator().manual_seed(args.seed)
    batches = len(images) // args.batch_size
    # A log file gets a line now and then instead of ten a second.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    try:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            # The last, smaller batch is dropped.
            order = torch.randperm(len(images), generator=shuffle)[: batches * args.batch_size].to(images.device)
            name = f"epoch {epoch}/{epochs}"
            with tqdm(order.split(args.batch_size), desc=name, unit="batch", leave=False, mininterval=interval) as bar:
                for i, batch in enumerate(bar, 1):
                    loss, spk_rec = train_on(images[batch], labels[batch])
                    history.losses.append(loss)
                    history.accuracies.append((predict(spk_rec) == labels[batch]).float().mean())
                    if i % 10 == 0:
                        bar.set_postfix(summary(history, min(i, BAR_WINDOW)), refresh=False)
            text = ", ".join(f"{key} {value}" for key, value in summary(history, batches).items())
            print(f"{name}: {text}, {time.perf_counter() - start:.1f} s", flush=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted after {len(history.losses)} iterations; keeping what was learned", file=sys.stderr)
        return False
    return True


def summary(history: History, last: int) -> dict[str, str]:
    """Means over the ``last`` iterations."""
    return {
        "loss": f"{torch.stack(history.losses[-last:]).mean().item():.2f}",
        "accuracy": f"{torch.stack(history.accuracies[-last:]).mean().item():.4f}",
    }


@torch.no_grad()
def output_spikes(net: snnfast.MultiStep, images: Tensor, args: argparse.Namespace) -> Tensor:  # [T, N, classes]
    batches = images.split(args.batch_size)
    return torch.cat([net(x, num_steps=args.num_steps, record_mem=False)[0] for x in batches], dim=1)


def decode(
    spk_rec: Tensor,  # [T, N, classes]
    labels: Tensor,  # [N]
) -> None:
    """Print how often the same output spikes tell the right class, read in two ways."""
    total = len(labels)
    for code, accuracy, means in (
        ("rate", accuracy_rate(spk_rec, labels), "the neuron that spikes most often tells the class"),
        ("latency", accuracy_temporal(spk_rec, labels), "the neuron that spikes first tells it"),
    ):
        print(f"test accuracy ({code} code): {accuracy:.4f} ({round(accuracy * total)} of {total}); {means}")
    print(
        "both read the same spikes; one that never comes counts as at the last step, the lower of equal classes wins",
        flush=True,
    )


@torch.no_grad()
def draw(net: snnfast.MultiStep, digits: Digits, history: History, num_steps: int, output: Path) -> None:
    if history.losses:
        losses, accuracies = (torch.stack(h).tolist() for h in (history.losses, history.accuracies))
        save_training(output / "training.png", losses, accuracies, f"training on {digits.name}")
    image = digits.test_images[:1]
    hidden, _ = snnfast.MultiStep(*net.layers[:2])(image, num_steps=num_steps)
    spk_rec, _ = snnfast.MultiStep(*net.layers[2:])(hidden)
    size = hidden.shape[-1]
    some = torch.linspace(0, size - 1, min(size, RASTER_NEURONS)).long()
    save_raster(
        output / "raster.png",
        image.view(SIDE, SIDE).cpu(),
        int(digits.test_labels[0]),
        hidden[:, 0].cpu()[:, some],
        spk_rec[:, 0].cpu(),
        size,
    )


def choose_backend(name: str, device: torch.device) -> str:
    reason = None if name == "reference" else why_not_fused(device)
    if reason is None:
        return "reference" if name == "reference" else "fused"
    if name == "fused":
        raise InputError(reason)
    print(f"falling back to the reference loop: {reason}")
    return "reference"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a spiking network on handwritten digits with snnfast, and time one training step."
    )
    add = parser.add_argument
    add(
        "--data-path",
        default=os.environ.get("SNNFAST_DATA") or None,
        metavar="FOLDER",
        help="folder that holds MNIST/raw as torchvision stores it (default: the environment variable SNNFAST_DATA; "
        "without it MNIST is downloaded into ./data, and offline the small digits set of scikit-learn is used)",
    )
    add(
        "--epochs",
        type=positive(int),
        help=f"passes over the training images (default: {MNIST_EPOCHS} for MNIST, {DIGITS_EPOCHS} for the small set)",
    )
    add(
        "--batch-size",
        type=positive(int),
        default=128,
        help="images in a batch; the last, partial one of an epoch is dropped (default: %(default)s)",
    )
    add(
        "--num-steps",
        type=positive(int),
        default=25,
        help="time steps for which the network sees an image (default: %(default)s)",
    )
    add(
        "--beta",
        type=unit_interval,
        default=0.95,
        help="decay of the membranes per time step, 0 to 1 (default: %(default)s)",
    )
    add("--lr", type=positive(float), default=5e-4, help="learning rate of Adam (default: %(default)s)")
    add(
        "--code",
        choices=("rate", "latency"),
        default="rate",
        help="train the right class to have the highest membrane at every step (rate), or to spike first (latency); "
        "both are tested (default: %(default)s)",
    )
    add("--hidden", type=positive(int), default=1000, help="neurons in the hidden layer (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the weights and of the order of images (default: %(default)s)")
    add("--limit", type=positive(int), metavar="N", help="train on the first N images only (default: all of them)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: the GPU where PyTorch sees one)")
    add("--threads", type=positive(int), metavar="N", help="CPU threads (default: as many as PyTorch chooses)")
    add(
        "--backend",
        choices=("auto", "fused", "reference"),
        default=os.environ.get("SNNFAST_BACKEND", "auto"),
        help="the fused kernels, the plain PyTorch loop, or the better one there is (default: %(default)s, which the "
        "environment variable SNNFAST_BACKEND sets)",
    )
    add(
        "--output",
        default="figures",
        metavar="FOLDER",
        help="where the figures and the trained weights are saved (default: %(default)s)",
    )
    add("--no-timing", dest="timing", action="store_false", help="leave out the timing of one training step")
    return parser.parse_args(argv)


def unit_interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
