"""Spoken digits as spikes: a recurrent layer tells words apart that differ only in the order of their sounds.

The spike trains have the shape of the Spiking Heidelberg Digits (Cramer et al., 2020): 700 channels of a cochlea,
twenty words, 100 time steps. They are made here. A word is a few glides, as formants are: sound that moves from one
channel to another. Every second word is the one before it, played backwards. A speaker is faster or slower, earlier or
later, higher or lower, and each glide varies besides. Noise adds spikes.

Backwards, each channel spikes as often. So no readout of spike counts can tell the two words of a pair apart, and half
right is the best it can be. The network can: its hidden layer is a ``snnfast.RSynaptic``, whose neurons are all
connected to one another.

    python examples/shd.py
    python examples/shd.py --data FOLDER    # the real recordings, shd_train.h5 and shd_test.h5; needs h5py
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import snnfast

CHANNELS, WORDS, NUM_STEPS, HIDDEN, BATCH_SIZE = 700, 20, 100, 128, 64
ALPHA, BETA, READOUT_BETA, SLOPE, LR = 0.5, 0.9, 0.95, 10, 2e-3
GLIDES, SPIKES, NOISE, WIDTH = (
    4,
    2000,
    700,
    0.02,
)  # SPIKES: of a glide in a duration; WIDTH: of a glide, of all channels
# Standard deviations, in durations of a recording or in all channels: of a speaker, and of each glide besides.
TEMPO, SHIFT, LOUDNESS, WOBBLE = 0.1, 0.03, 0.3, 0.015
SECONDS = 1.4  # of a real recording; the few spikes after that are left out


class Recordings(NamedTuple):
    places: list[Tensor]  # step * CHANNELS + channel of each spike, for each recording
    words: Tensor  # [N] int64

    def batch(self, chosen: Tensor, device: str) -> tuple[Tensor, Tensor]:  # spikes [T, B, channels] 0 or 1, words [B]
        x = torch.zeros(len(chosen), NUM_STEPS * CHANNELS)
        for row, i in zip(x, chosen.tolist(), strict=True):
            row[self.places[i]] = 1.0
        return x.view(-1, NUM_STEPS, CHANNELS).transpose(0, 1).to(device), self.words[chosen].to(device)


def to_places(times: Tensor, channels: Tensor) -> Tensor:
    """Places of spikes at ``times``, in durations of the recording, in ``channels``; what lies outside is left out."""
    inside = (times >= 0) & (times < 1) & (channels >= 0) & (channels < CHANNELS)
    return (times[inside] * NUM_STEPS).long() * CHANNELS + channels[inside].long()


def make_words() -> Tensor:  # [WORDS, 4, GLIDES]
    """Draw the glides of each word: start and end in time, first and last channel, all from 0 to 1."""
    starts, lengths, first, last = torch.rand(4, WORDS // 2, GLIDES)
    starts, first, last = 0.05 + 0.5 * starts, 0.08 + 0.84 * first, 0.08 + 0.84 * last
    ends = starts + 0.2 + 0.25 * lengths
    backwards = torch.stack([1 - ends, 1 - starts, last, first], 1)
    return torch.stack([torch.stack([starts, ends, first, last], 1), backwards], 1).flatten(0, 1)


def speak(word: Tensor) -> Tensor:
    """The places of the spikes of one recording of a word ``[4, GLIDES]``."""
    tempo, earlier, higher = 1 + TEMPO * torch.randn(1), SHIFT * torch.randn(1), SHIFT * torch.randn(1)
    times = 0.5 + (word[:2] - 0.5) * tempo + earlier + WOBBLE * torch.randn(2, GLIDES)
    channels = word[2:] + higher + WOBBLE * torch.randn(2, GLIDES)
    loudness = SPIKES * (LOUDNESS * torch.randn(GLIDES)).exp()
    glide = torch.arange(GLIDES).repeat_interleave((loudness * (times[1] - times[0]).clamp_min(0)).long())
    part = torch.rand(2, len(glide)).mean(0)  # It swells and fades, alike forwards and backwards.
    time = torch.lerp(times[0, glide], times[1, glide], part)
    channel = torch.lerp(channels[0, glide], channels[1, glide], part) + WIDTH * torch.randn(len(glide))
    noise = torch.rand(2, NOISE)
    return to_places(torch.cat([time, noise[0]]), CHANNELS * torch.cat([channel, noise[1]]))


def read(path: Path) -> Recordings:
    """One file of the real data set, as its authors publish it."""
    import h5py

    with h5py.File(path) as file:
        rows = zip(file["spikes/times"], file["spikes/units"], strict=True)
        places = [
            to_places(torch.from_numpy(times.astype("float32")) / SECONDS, torch.from_numpy(units.astype("int64")))
            for times, units in rows
        ]
        return Recordings(places, torch.from_numpy(file["labels"][:].astype("int64")))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Spoken digits as spikes, and a recurrent network that hears them.")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with shd_train.h5 and shd_test.h5 (else: made up)")
    parser.add_argument("--samples", type=int, default=1000, help="recordings that are made up (default: 1000)")
    parser.add_argument("--epochs", type=int, default=8, help="default: 8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    if args.data is None:
        words, said = make_words(), (torch.arange(args.samples) % WORDS, torch.arange(args.samples // 2) % WORDS)
        train, test = (Recordings([speak(words[i]) for i in some.tolist()], some) for some in said)
    else:
        train, test = (read(args.data / f"shd_{split}.h5") for split in ("train", "test"))
    print(f"{len(train.words)} recordings to train on and {len(test.words)} to test on", flush=True)

    net = snnfast.MultiStep(
        nn.Linear(CHANNELS, HIDDEN),
        snnfast.RSynaptic(
            alpha=ALPHA,
            beta=BETA,
            all_to_all=True,
            linear_features=HIDDEN,
            spike_grad=snnfast.surrogate.fast_sigmoid(slope=SLOPE),
        ),
        nn.Linear(HIDDEN, WORDS),
        snnfast.Leaky(beta=READOUT_BETA, reset_mechanism="none"),  # Its mean membranes are the scores of the words.
    ).to(args.device)
    optimizer, loss_fn = torch.optim.Adam(net.parameters(), lr=LR), nn.CrossEntropyLoss()
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        losses = []
        for chosen in torch.randperm(len(train.words)).split(BATCH_SIZE):
            x, labels = train.batch(chosen, args.device)
            _, mem_rec = net(x)
            loss = loss_fn(mem_rec.mean(0), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            tests = [test.batch(chosen, args.device) for chosen in torch.arange(len(test.words)).split(BATCH_SIZE)]
            right = torch.cat([net(x)[1].mean(0).argmax(1) == labels for x, labels in tests]).float().mean()
        seconds = time.perf_counter() - start
        mean = sum(losses) / len(losses)
        print(f"epoch {epoch}: loss {mean:.4f}, test accuracy {right:.4f}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
