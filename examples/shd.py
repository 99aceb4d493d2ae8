"""Spoken digits as spikes: a recurrent layer tells words apart that differ only in the order of their sounds.

The spike trains have the shape of the Spiking Heidelberg Digits (Cramer et al., 2020): 700 channels of a cochlea,
twenty words, 100 time steps. They are made here. A word is a few glides, as formants are: sound that moves from one
channel to another. Every second word is the one before it, played backwards. A speaker is faster or slower, earlier or
later, higher or lower, and each glide varies besides. Noise adds spikes.

Backwards, each channel spikes as often. So a linear readout of spike counts can't tell the two words of a pair apart,
and half right is the best it can be. The network can: its hidden layer is a ``snnfast.RSynaptic``, whose neurons are
all connected to one another.

    python examples/shd.py
    python examples/shd.py --compare        # a training step beside snnTorch's
    python examples/shd.py --data FOLDER    # the real recordings, shd_train.h5 and shd_test.h5; needs h5py
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from startup import importing

with importing(__name__):
    import torch
    from common import (
        add_output,
        add_quick,
        folder,
        in_turn,
        integer,
        make_parser,
        make_trainer,
        parse_quick,
        print_losses,
        print_times,
        run_main,
    )
    from data import InputError
    from figures import save_trial
    from files import try_folder
    from torch import Tensor, nn

    import snnfast

CHANNELS, WORDS = 700, 20
ALPHA, BETA, READOUT_BETA, SLOPE, LR = 0.5, 0.9, 0.95, 10, 2e-3
GLIDES = 4  # of a word
SPIKES = 2000  # of a glide, in a duration
NOISE = 700  # spikes of a recording
WIDTH = 0.02  # of a glide, of all channels
# Standard deviations, in durations of a recording or in all channels: of a speaker, and of each glide besides.
TEMPO, SHIFT, LOUDNESS, WOBBLE = 0.1, 0.03, 0.3, 0.015
SECONDS = 1.4  # of a real recording; the few spikes after that are left out
RASTER = "shd.png"
QUICK = {"samples": 400, "hidden": 64, "epochs": 5, "num_steps": 50}


@dataclass(frozen=True)
class Recordings:
    """Spike trains: of each recording the places ``step * CHANNELS + channel`` where there is a spike."""

    spikes: list[Tensor]  # [spikes of it] int32 each
    words: Tensor  # [N] int64

    def frames(self, chosen: Tensor, num_steps: int, device: torch.device) -> Tensor:  # [T, B, channels] 0 or 1
        places = [self.spikes[i] for i in chosen.tolist()]
        samples = torch.arange(len(places)).repeat_interleave(torch.tensor([len(p) for p in places]))
        flat, samples = torch.cat(places).long().to(device), samples.to(device)
        x = torch.zeros(num_steps, len(places), CHANNELS, device=device)
        x[flat // CHANNELS, samples, flat % CHANNELS] = 1.0
        return x

    def counts(self) -> Tensor:  # [N, channels]
        return torch.stack([torch.bincount(places % CHANNELS, minlength=CHANNELS) for places in self.spikes]).float()


def to_places(times: Tensor, channels: Tensor, num_steps: int) -> Tensor:
    """Places of spikes at ``times``, in durations of the recording, in ``channels``; what lies outside is left out."""
    inside = (times >= 0) & (times < 1) & (channels >= 0) & (channels < CHANNELS)
    places = (times[inside] * num_steps).int() * CHANNELS + channels[inside].int()
    once: Tensor = places.unique()
    return once


def make_words(generator: torch.Generator) -> Tensor:  # [WORDS, 4, GLIDES]
    """Of each glide its start and end in time, and its first and last channel, all from 0 to 1."""
    starts, lengths, first, last = torch.rand(4, WORDS // 2, GLIDES, generator=generator)
    starts, first, last = 0.05 + 0.5 * starts, 0.08 + 0.84 * first, 0.08 + 0.84 * last
    ends = starts + 0.2 + 0.25 * lengths
    backwards = torch.stack([1 - ends, 1 - starts, last, first], 1)
    return torch.stack([torch.stack([starts, ends, first, last], 1), backwards], 1).flatten(0, 1)


def speak(word: Tensor, num_steps: int, generator: torch.Generator) -> Tensor:
    """The spikes of one recording of a word ``[4, GLIDES]``, as :class:`Recordings` has them."""

    def vary(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    times = 0.5 + (word[:2] - 0.5) * (1 + TEMPO * vary(1)) + SHIFT * vary(1) + WOBBLE * vary(2, GLIDES)
    channels = word[2:] + SHIFT * vary(1) + WOBBLE * vary(2, GLIDES)
    many = (SPIKES * (times[1] - times[0]).clamp_min(0) * (LOUDNESS * vary(GLIDES)).exp()).long()
    glide = torch.arange(GLIDES).repeat_interleave(many)
    # The mean of two numbers: it swells and fades, alike forwards and backwards.
    part = torch.rand(2, len(glide), generator=generator).mean(0)
    time = torch.lerp(times[0, glide], times[1, glide], part)
    channel = torch.lerp(channels[0, glide], channels[1, glide], part) + WIDTH * vary(len(glide))
    noise = torch.rand(2, NOISE, generator=generator)
    return to_places(torch.cat([time, noise[0]]), CHANNELS * torch.cat([channel, noise[1]]), num_steps)


def make(samples: int, num_steps: int, seed: int) -> tuple[Recordings, Recordings]:
    """Recordings to train on, and half as many to test on."""
    generator = torch.Generator().manual_seed(seed)
    words = make_words(generator)

    def record(count: int) -> Recordings:
        said = torch.arange(count) % WORDS
        return Recordings([speak(words[i], num_steps, generator) for i in said.tolist()], said)

    return record(samples), record(max(samples // 2, WORDS))


def read(path: Path, num_steps: int) -> Recordings:
    """One file of the real data set, as its authors publish it.

    Raises:
        InputError: h5py is missing, there is no such file, or it holds something else.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError("--data: reading the recordings needs h5py: pip install h5py") from None
    if not path.is_file():
        raise InputError(f"--data: no {path.name} in {path.parent}")
    try:
        with h5py.File(path) as file:
            words = torch.from_numpy(file["labels"][:].astype("int64"))
            rows = zip(file["spikes/times"], file["spikes/units"], strict=True)
            # The file's own dtypes are of 16 bits.
            values = (tuple(torch.from_numpy(row.astype("float32")) for row in pair) for pair in rows)
            spikes = [to_places(times / SECONDS, units, num_steps) for times, units in values]
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(f"--data: {path} is corrupt: {str(error).splitlines()[0]}") from None
    if not len(spikes) == len(words) > 0 or not 0 <= int(words.min()) <= int(words.max()) < WORDS:
        raise InputError(f"--data: {path} is corrupt: its labels don't fit its spikes")
    return Recordings(spikes, words)


def load(args: argparse.Namespace) -> tuple[Recordings, Recordings]:
    start = time.perf_counter()
    if args.data is None:
        train, test = make(args.samples or 1000, args.num_steps, args.seed)
        origin = "made"
    else:
        train, test = (read(Path(args.data) / f"shd_{split}.h5", args.num_steps) for split in ("train", "test"))
        train = Recordings(train.spikes[: args.samples], train.words[: args.samples])
        origin = "read"
    if len(train.words) < args.batch_size:
        raise InputError(f"--batch-size {args.batch_size} is more than the {len(train.words)} training recordings")
    spikes = sum(map(len, train.spikes)) / len(train.spikes)
    print(
        f"{len(train.words)} recordings to train on and {len(test.words)} to test on, {spikes:.0f} spikes in each, "
        f"{origin} in {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return train, test


def count_readout(train: Recordings, test: Recordings) -> float:
    """Test accuracy of a linear layer that sees how often each channel spiked."""
    x, x_test = train.counts(), test.counts()
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    linear = nn.Linear(CHANNELS, WORDS)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(200):
        loss = nn.functional.cross_entropy(linear((x - mean) / deviation), train.words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return accuracy(linear((x_test - mean) / deviation), test.words)


def accuracy(scores: Tensor, words: Tensor) -> float:
    return (scores.argmax(1) == words).float().mean().item()


def listen(net: snnfast.MultiStep, x: Tensor) -> Tensor:  # [B, words]
    """The scores of the words: the readout's mean membranes."""
    _, mem_rec = net(x)
    scores: Tensor = mem_rec.mean(0)
    return scores


def build(library: ModuleType, hidden: int) -> list[nn.Module]:
    """The layers, of snnfast or of snnTorch. The readout is never reset: its membrane is the score of each word."""
    spike_grad = library.surrogate.fast_sigmoid(slope=SLOPE)
    return [
        nn.Linear(CHANNELS, hidden),
        library.RSynaptic(alpha=ALPHA, beta=BETA, all_to_all=True, linear_features=hidden, spike_grad=spike_grad),
        nn.Linear(hidden, WORDS),
        library.Leaky(beta=READOUT_BETA, reset_mechanism="none"),
    ]


def loop(net: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The loop over time as snnTorch's users write it: ``[T, B, channels]`` to ``[B, words]``."""
    layers: list[Any] = list(net)
    fc1, hidden, fc2, readout = layers

    def forward(x: Tensor) -> Tensor:
        spk, syn, mem = hidden.reset_mem()
        score = readout.reset_mem()
        scores = []
        for step in x:
            spk, syn, mem = hidden(fc1(step), spk, syn, mem)
            _, score = readout(fc2(spk), score)
            scores.append(score)
        return torch.stack(scores).mean(0)

    return forward


def compare(net: snnfast.MultiStep, batches: Iterator[tuple[Tensor, ...]], args: argparse.Namespace) -> None:
    """Train copies of ``net`` on the same minibatches: one with snnfast, one with snnTorch in its loop.

    Products of all steps at once add up in another order than those of one step. So the losses agree to rounding, until
    a neuron close to its threshold spikes in one and not in the other. Most of a step's time is matrix products, which
    both make.
    """
    try:
        import snntorch
        import snntorch.surrogate
    except ModuleNotFoundError:
        raise InputError("--compare needs snnTorch: pip install snntorch") from None
    device = next(net.parameters()).device
    ours = snnfast.MultiStep(*build(snnfast, args.hidden)).to(device)
    theirs = nn.Sequential(*build(snntorch, args.hidden)).to(device)
    for copy in (ours, theirs):
        copy.load_state_dict(net.state_dict())
    loss_fn = nn.CrossEntropyLoss()
    trainers = {
        "snnfast": make_trainer(ours, partial(listen, ours), loss_fn, LR),
        "snnTorch": make_trainer(theirs, loop(theirs), loss_fn, LR),
    }
    losses, milliseconds = in_turn(trainers, batches, args.compare)
    print_losses(losses)
    print_times(milliseconds)


def run(args: argparse.Namespace, device: torch.device) -> None:
    output = Path(args.output)
    try_folder(output, [RASTER], b"")
    train, test = load(args)
    torch.manual_seed(args.seed)
    net = snnfast.MultiStep(*build(snnfast, args.hidden)).to(device)

    def batches(recordings: Recordings, order: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for chosen in order.split(args.batch_size):
            yield recordings.frames(chosen, args.num_steps, device), recordings.words[chosen].to(device)

    def shuffled() -> Iterator[tuple[Tensor, ...]]:
        return batches(train, torch.randperm(len(train.words)))

    @torch.no_grad()
    def test_accuracy() -> float:
        heard = [(listen(net, x), y) for x, y in batches(test, torch.arange(len(test.words)))]
        scores, words = map(torch.cat, zip(*heard, strict=True))
        return accuracy(scores, words)

    if args.compare is not None:
        compare(net, (batch for _ in range(args.compare) for batch in shuffled()), args)
    print(f"linear readout of spike counts: test accuracy {count_readout(train, test):.4f}", flush=True)
    train_on = make_trainer(net, partial(listen, net), nn.CrossEntropyLoss(), LR)
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        losses = [train_on(x, y) for x, y in shuffled()]
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch} of {args.epochs}: loss {sum(losses) / len(losses):.4f}, "
            f"test accuracy {test_accuracy():.4f}, {seconds:.1f} s",
            flush=True,
        )
    x, word = next(batches(test, torch.arange(1)))
    draw(net, x, word, output / RASTER)


@torch.no_grad()
def draw(net: snnfast.MultiStep, x: Tensor, word: Tensor, path: Path) -> None:
    _, mem_rec, (hidden, _) = net(x, return_spikes=True)
    said, heard = int(word), int(mem_rec.mean(0).argmax())
    names = {said: f"word {said}, which was said", heard: f"word {heard}, which has the highest mean"}
    if said == heard:
        names = {said: f"word {said}, said and heard"}
    title = f"a test recording of word {said}"
    save_trial(path, title, x[:, 0].cpu(), hidden[:, 0].cpu(), mem_rec[:, 0].cpu(), names)
    print(f"saved {path}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "Spoken digits as spikes, and a recurrent spiking network that tells them apart.", batch_size=64, num_steps=100
    )
    add = parser.add_argument
    add("--data", type=folder, metavar="FOLDER", help="that holds shd_train.h5 and shd_test.h5 (default: make them up)")
    add("--samples", type=integer(WORDS), help="recordings to train on (default: 1000, or all of --data)")
    add("--hidden", type=integer(), default=128, help="neurons in the hidden layer (default: %(default)s)")
    add("--epochs", type=integer(), default=8, help="passes over the recordings (default: %(default)s)")
    add(
        "--compare",
        type=integer(),
        nargs="?",
        const=10,
        metavar="N",
        help="first train snnTorch's layers beside these on N minibatches (10 if not given), and show losses and times",
    )
    add_output(parser)
    add_quick(parser)
    return run_main(run, parse_quick(parser, argv, QUICK))


if __name__ == "__main__":
    sys.exit(main())
