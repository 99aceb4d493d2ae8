"""Train a spiking network on handwritten digits, time one training step, and draw what the network does.

The network, the loss and the numbers are those of snnTorch's tutorial 5 (a 784-1000-10 network of leaky
integrate-and-fire neurons that sees the same image at every time step), written with ``snnfast.MultiStep``.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from startup import INTERRUPTED, importing, say_interrupted

with importing(__name__):
    import torch
    from common import Parser, add_data_path, add_run, describe, folder, integer, positive, run_main
    from data import CLASSES, DIGITS_EPOCHS, MNIST_EPOCHS, SIDE, Digits, InputError, load
    from figures import save_raster, save_training
    from files import try_folder, write_whole
    from timing import Step, compare
    from torch import Tensor, nn
    from tqdm import tqdm

    import snnfast
    from snnfast.losses import accuracy_rate, accuracy_temporal, ce_membrane_loss, ce_temporal_loss

BAR_WINDOW = 50  # iterations over which the progress bar averages
RASTER_NEURONS = 80
MODEL, TRAINING, RASTER = "model.pt", "training.png", "raster.png"  # what it leaves in --output


@dataclass
class History:
    """What training saw, one entry per iteration; tensors, so that the device need not be waited for."""

    losses: list[Tensor] = field(default_factory=list)  # [] each
    accuracies: list[Tensor] = field(default_factory=list)  # [] each, 0 to 1


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(run, parse_args(argv))


def run(args: argparse.Namespace, device: torch.device) -> int:
    if args.cuda_graph and device.type != "cuda":
        raise InputError(f"--cuda-graph: needs a CUDA device, not {device}")
    torch.manual_seed(args.seed)
    net = build(args.hidden, args.beta).to(device)
    output = Path(args.output)
    try:
        try_folder(output, (MODEL, TRAINING, RASTER), weights(net))
    except OSError as error:
        raise InputError(f"--output {args.output}: nothing can be saved there: {error}") from None
    data = load(args.data_path, device)
    digits = replace(data, train_images=data.train_images[: args.limit], train_labels=data.train_labels[: args.limit])
    if len(digits.train_images) < args.batch_size:
        raise InputError(f"--batch-size {args.batch_size} is more than the {len(digits.train_images)} training images")
    print(describe(digits), flush=True)

    history = History()
    finished = fit(net, digits.train_images, digits.train_labels, args.epochs or digits.epochs, args, history)
    unsaved = save(net, output / MODEL)
    decode(output_spikes(net, digits.test_images, args), digits.test_labels)
    if unsaved is not None:
        raise InputError(
            f"the weights can't be saved and are lost: {unsaved}; make room or choose another --output, and train again"
        )
    if finished and args.timing:
        x, y = digits.train_images[: args.batch_size], digits.train_labels[: args.batch_size]
        compare(net, x, y, args.num_steps, args.lr, lambda n: make_step(n, args, x, y))
    draw(net, digits, history, args.num_steps, output)
    return 0 if finished else INTERRUPTED


def weights(net: nn.Module) -> bytes:
    """A file that ``torch.load`` reads. PyTorch writes it in memory: of a disk it does not tell what is wrong."""
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return buffer.getvalue()


def save(net: nn.Module, path: Path) -> Exception | None:
    """Save the weights; returns what was in the way. An earlier file then stays."""
    try:
        write_whole(path, weights(net))
    except (OSError, RuntimeError) as error:
        return error
    print(f"saved {path}", flush=True)
    return None


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


Trainer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_trainer(
    net: snnfast.MultiStep,
    num_steps: int,
    lr: float,
    code: str = "rate",
    graph_for: tuple[Tensor, Tensor] | None = None,  # a batch
) -> Trainer:
    """A function that trains ``net`` on one batch and returns the loss and the output spikes ``[T, B, classes]``.

    The loss of the rate code is that of tutorial 5: the membrane of the right class should be the highest at every
    step. That of the latency code wants its neuron to spike first. With ``graph_for``, all that a step launches is
    captured in a CUDA graph, and replayed for batches of that shape.
    """
    # The same update in one kernel instead of a dozen small ones per parameter, on the devices that have it.
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    captured = graph_for is not None
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.999), fused=fused, capturable=captured)

    loss_fn = ce_temporal_loss() if code == "latency" else ce_membrane_loss()

    def train_on(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        spk_rec, mem_rec = net(images, num_steps=num_steps)
        loss = loss_fn(spk_rec if code == "latency" else mem_rec, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), spk_rec.detach()

    return train_on if graph_for is None else capture(train_on, net, optimizer, *graph_for)


def capture(
    train_on: Trainer, net: snnfast.MultiStep, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Trainer:
    """The same as ``train_on``, replayed. The output spikes are overwritten by the next step."""
    images, labels = images.clone(), labels.clone()  # what the graph reads
    weights = [parameter.detach().clone() for parameter in net.parameters()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries set up at their first calls must not happen while a graph is captured
            train_on(images, labels)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():  # nothing is learned yet
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            parameter.copy_(weight)
        for state in optimizer.state.values():
            for moment in state.values():
                moment.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, spk_rec = train_on(images, labels)

    def replay(new_images: Tensor, new_labels: Tensor) -> tuple[Tensor, Tensor]:
        images.copy_(new_images)
        labels.copy_(new_labels)
        graph.replay()
        return loss.clone(), spk_rec

    return replay


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
    """Train; returns whether it came to the end (``False``: Ctrl-C, once something was learned)."""
    batch = (images[: args.batch_size], labels[: args.batch_size]) if args.cuda_graph else None
    train_on = make_trainer(net, args.num_steps, args.lr, args.code, batch)
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
        if not history.losses:
            raise
        say_interrupted(f"interrupted after {len(history.losses)} iterations; keeping what was learned")
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
        save_training(output / TRAINING, losses, accuracies, f"training on {digits.name}")
        print(f"saved {output / TRAINING}", flush=True)
    image = digits.test_images[:1]
    hidden, _ = snnfast.MultiStep(*net.layers[:2])(image, num_steps=num_steps)
    spk_rec, _ = snnfast.MultiStep(*net.layers[2:])(hidden)
    size = hidden.shape[-1]
    some = torch.linspace(0, size - 1, min(size, RASTER_NEURONS)).long()
    save_raster(
        output / RASTER,
        image.view(SIDE, SIDE).cpu(),
        int(digits.test_labels[0]),
        hidden[:, 0].cpu()[:, some],
        spk_rec[:, 0].cpu(),
        size,
    )
    print(f"saved {output / RASTER}", flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Train a spiking network on handwritten digits with snnfast, and time one training step."
    )
    add_data_path(parser)
    add = parser.add_argument
    add(
        "--epochs",
        type=integer(),
        help=f"passes over the training images (default: {MNIST_EPOCHS} for MNIST, {DIGITS_EPOCHS} for the small set)",
    )
    add(
        "--batch-size",
        type=integer(),
        default=128,
        help="images in a batch; the last, partial one of an epoch is dropped (default: %(default)s)",
    )
    add(
        "--num-steps",
        type=integer(),
        default=25,
        help="time steps for which the network sees an image (default: %(default)s)",
    )
    add(
        "--beta",
        type=unit_interval,
        default=0.95,
        help="decay of the membranes per time step, 0 to 1 (default: %(default)s)",
    )
    add("--lr", type=positive, default=5e-4, help="learning rate of Adam (default: %(default)s)")
    add(
        "--code",
        choices=("rate", "latency"),
        default="rate",
        help="train the right class to have the highest membrane at every step (rate), or to spike first (latency); "
        "both are tested (default: %(default)s)",
    )
    add("--hidden", type=integer(), default=1000, help="neurons in the hidden layer (default: %(default)s)")
    add("--limit", type=integer(), metavar="N", help="train on the first N images only (default: all of them)")
    add(
        "--output",
        type=folder,
        default="figures",
        metavar="FOLDER",
        help="where the figures and the trained weights are saved (default: %(default)s)",
    )
    add(
        "--cuda-graph",
        action="store_true",
        help="train by replays of a CUDA graph of one step: on a GPU its launches take most of the time",
    )
    add("--no-timing", dest="timing", action="store_false", help="leave out the timing of one training step")
    add_run(parser)
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
