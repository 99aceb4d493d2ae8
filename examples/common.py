"""What the examples share: options, errors, minibatches, training, and losses side by side."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from statistics import median
from typing import NoReturn, TypeVar

import torch
from data import Digits, InputError
from startup import INTERRUPTED, interruptible, say_interrupted
from timing import why_not_fused
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import snnfast

Result = TypeVar("Result")

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``[B, *]``, or an input of its own for each step ``[T, B, *]``, to the output layer's ``(spk_rec, mem_rec)``.

Both are ``[T, B, N]``.
"""


# More threads than any machine has; libgomp ends the process where it can't make as many as it is told to.
_MAX_THREADS = 1024
# What PyTorch and snnfast say where memory is too small for a tensor, or an address for its size.
_NO_MEMORY = re.compile(
    r"(can't|cannot|could not|failed to) allocate|bad_alloc|out of memory|not enough memory"
    r"|storage size calculation overflowed|integer multiplication overflow|more elements than memory can hold",
    re.IGNORECASE,
)
_SIZE = re.compile(r"(?:tried to|could not) allocate ([\d.]+ \w+)", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """One that tells of a wrong argument in one line, as the examples do of everything else that is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def integer(low: int = 1, high: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected an integer from {low} to {high}, got {text!r}")
        return value

    return parse


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def folder(text: str) -> str:
    if not text:  # often a variable of the shell that is not set
        raise argparse.ArgumentTypeError("expected a folder, got ''")
    return text


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # read, because a meta tensor can be made but has no numbers
    except (AssertionError, ImportError, RuntimeError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def choose_backend(name: str, device: torch.device) -> tuple[str, str]:
    """What :func:`snnfast.use_backend` is to be given, and the same in words."""
    if name == "reference":
        return name, "reference loop"
    if (reason := why_not_fused(device)) is None:
        return "fused", "fused kernels"
    if name == "fused":
        raise InputError(f"--backend fused: {reason}")
    return "reference", f"reference loop ({reason})"


def make_parser(
    description: str, *, num_steps: int, least_steps: int = 1, compare: int | None = None, batch_size: int | None = None
) -> argparse.ArgumentParser:
    """The options that these examples have in common, with their defaults; without one, an option is left out."""
    parser = Parser(description=description)
    add = parser.add_argument
    if batch_size is not None:
        add("--batch-size", type=integer(), default=batch_size, help="images in a minibatch (default: %(default)s)")
    add("--num-steps", type=integer(least_steps), default=num_steps, help="time steps (default: %(default)s)")
    if compare is not None:
        add(
            "--compare",
            type=integer(),
            default=compare,
            metavar="N",
            help="iterations whose losses are shown side by side (default: %(default)s)",
        )
    add_run(parser)
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    """Where and how it is computed: what :func:`run_main` and ``run`` need of every example."""
    add = parser.add_argument
    add(
        "--seed",
        type=integer(-(2**63), 2**64 - 1),  # what torch.manual_seed takes
        default=0,
        help="seed of the weights and of the order of images (default: %(default)s)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: the GPU where PyTorch sees one)")
    add(
        "--threads",
        type=integer(1, _MAX_THREADS),
        metavar="N",
        help="CPU threads (default: as many as PyTorch chooses)",
    )
    add(
        "--backend",
        choices=("auto", "fused", "reference"),
        default=os.environ.get("SNNFAST_BACKEND") or "auto",
        help="the fused kernels, the plain PyTorch loop, or the better one there is (default: %(default)s, which the "
        "environment variable SNNFAST_BACKEND sets)",
    )


def add_data_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path",
        type=folder,
        default=os.environ.get("SNNFAST_DATA") or None,
        metavar="FOLDER",
        help="folder that holds MNIST/raw as torchvision stores it (default: the environment variable SNNFAST_DATA; "
        "without it MNIST is downloaded into ./data, and offline the small digits set of scikit-learn is used)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=folder,
        default="figures",
        metavar="FOLDER",
        help="where the figure is saved (default: %(default)s)",
    )


def add_quick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="smaller, for a first look in seconds")


def parse_quick(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, smaller: Mapping[str, object]
) -> argparse.Namespace:
    """Parse; with ``--quick``, the defaults are the ``smaller`` ones. Options that are given hold in any case."""
    args = parser.parse_args(argv)
    if args.quick:
        parser.set_defaults(**smaller)
        args = parser.parse_args(argv)
    return args


def add_length(parser: argparse.ArgumentParser) -> None:
    """How long to train, in passes over the images or in iterations."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=integer(),
        help="passes over the training images (default: 1, or 40 over the small digits set)",
    )
    length.add_argument("--iterations", type=integer(), help="minibatches to train on, in place of --epochs")


def run_main(run: Callable[[argparse.Namespace, torch.device], int | None], args: argparse.Namespace) -> int:
    """Run an example; returns its exit code, which is 0 unless ``run`` returns another.

    A wrong argument, a file that can't be read or written and a lack of memory are one line on stderr, and 2 is
    returned; after Ctrl-C it is 130.
    """
    try:
        with interruptible():
            device = choose_device(args.device)
            if args.threads is not None:
                torch.set_num_threads(args.threads)
            backend, kernels = choose_backend(args.backend, device)
            print(f"device: {device}, {torch.get_num_threads()} CPU threads; snnfast: {kernels}", flush=True)
            with snnfast.use_backend(backend):
                code = run(args, device)
            sys.stdout.flush()
            return code or 0
    except KeyboardInterrupt:
        say_interrupted()
        return INTERRUPTED
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        _drop_unwritten()
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        size = _SIZE.search(str(error))
        lower = [f"--{name}" for name in ("hidden", "batch-size", "num-steps") if name.replace("-", "_") in args]
        print(f"error: not enough memory{f' for {size[1]}' if size else ''}; lower {', '.join(lower)}", file=sys.stderr)
    return 2


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY.search(str(error)) is not None


def _drop_unwritten() -> None:
    """Where stdout takes no more (a full disk, a pipe that is closed), Python would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(data: Digits) -> str:
    return (
        f"data: {data.name} ({data.origin}), {len(data.train_images)} training and {len(data.test_images)} test images"
    )


def minibatches(data: Digits, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled by PyTorch's global generator, as in snnTorch's tutorials; the last, smaller batch is dropped."""
    if len(data.train_images) < batch_size:
        raise InputError(f"--batch-size {batch_size} is more than the {len(data.train_images)} training images")
    return DataLoader(TensorDataset(data.train_images, data.train_labels), batch_size, shuffle=True, drop_last=True)


def endless(batches: DataLoader[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Epoch after epoch; the order of the first is drawn from the generator now, not when the first is asked for."""
    epoch = iter(batches)
    first = next(epoch)
    return chain([first], epoch, chain.from_iterable(repeat(batches)))


def count_iterations(args: argparse.Namespace, data: Digits) -> int:
    """Iterations that :func:`add_length`'s options ask for."""
    iterations: int | None = args.iterations
    epochs: int = args.epochs or data.epochs
    return epochs * (len(data.train_images) // args.batch_size) if iterations is None else iterations


def loop(net: nn.Sequential, num_steps: int | None = None) -> Forward:
    """snnTorch's way: all layers, step after step. The last layer is one with ``output=True``."""

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        snnfast.Leaky.reset_hidden()
        steps = [net(step) for step in (x if num_steps is None else repeat(x, num_steps))]
        return torch.stack([spk for spk, _ in steps]), torch.stack([mem for _, mem in steps])

    return forward


def unroll(net: nn.Sequential, num_steps: int | None = None) -> Forward:
    """All steps, layer after layer."""
    layers = snnfast.MultiStep(net)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        snnfast.Leaky.reset_hidden()
        spk_rec, mem_rec = layers(x, num_steps=num_steps)
        return spk_rec, mem_rec

    return forward


def make_trainer(
    net: nn.Module, forward: Callable[[Tensor], Tensor], loss_fn: Callable[[Tensor, Tensor], Tensor], lr: float
) -> Callable[[Tensor, Tensor], float]:
    """A function that trains ``net`` on one minibatch and returns the loss.

    ``forward`` gives what ``loss_fn`` takes: the spikes or the membranes of the output layer.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.999))

    def train_on(x: Tensor, targets: Tensor) -> float:
        loss = loss_fn(forward(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return train_on


def in_turn(
    trainers: Mapping[str, Callable[[Tensor, Tensor], Result]], batches: Iterator[tuple[Tensor, ...]], count: int
) -> tuple[dict[str, list[Result]], dict[str, float]]:
    """Train each on the same ``count`` minibatches; returns what they return, and their median milliseconds.

    They take turns, so that a slow moment of the machine hits all alike. What they return must be numbers, which wait
    for the device.
    """
    results: dict[str, list[Result]] = {name: [] for name in trainers}
    milliseconds: dict[str, list[float]] = {name: [] for name in trainers}
    for x, targets in islice(batches, count):
        for name, train_on in trainers.items():
            start = time.perf_counter()
            results[name].append(train_on(x, targets))
            milliseconds[name].append(1e3 * (time.perf_counter() - start))
    return results, {name: median(times) for name, times in milliseconds.items()}


def accuracy_on_test_images(correct_share: Callable[[Tensor, Tensor], float], data: Digits, batch_size: int) -> float:
    """Accuracy over all test images; ``correct_share`` gives that of one batch of images and labels."""
    batches = zip(data.test_images.split(batch_size), data.test_labels.split(batch_size), strict=True)
    with torch.no_grad():
        return sum(correct_share(x, y) * len(y) for x, y in batches) / len(data.test_labels)


def print_times(milliseconds: Mapping[str, float]) -> None:
    """Of one training iteration, and how many times the first is as fast as each of the others."""
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in milliseconds.items())
    (ours, base), *others = milliseconds.items()
    ratios = ", ".join(f"{ms / base:.1f} times as fast as {name}" for name, ms in others)
    print(f"one training iteration (forward, backward, Adam): {times}; {ours} is {ratios}", flush=True)


def print_losses(columns: Mapping[str, Sequence[float]]) -> None:
    """Losses of the same iterations, a column for each way to compute them, and how far they are apart."""
    print(f"{'iteration':>9}" + "".join(f"  {name:>14}" for name in columns))
    rows = list(zip(*columns.values(), strict=True))
    for i, row in enumerate(rows, 1):
        print(f"{i:>9}" + "".join(f"  {loss:>14.8f}" for loss in row))
    far = max((max(row) - min(row)) / max(map(abs, row)) if any(row) else 0.0 for row in rows)
    print(f"largest relative difference of the losses: {far:.1e}", flush=True)
