"""Command line: each command prints what it measured and whether its bar holds.

``list`` and ``run`` are the suites against all implementations and have options of their own: ``run --help``.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from . import check, cli, kinds, lif, loop, parity, pool, ranges, rounding, tutorial5
from .measure import machine

COMMANDS = {
    "check": (check.run, "whether a ratio to snnTorch has fallen below half its bar, within a minute"),
    "lif": (lif.run, "LIF layer, forward and backward, against snnTorch's loop"),
    "loop": (loop.run, "the layer called once per time step in a loop of one's own, against snnTorch's"),
    "kinds": (kinds.run, "one call per time step with integer, float64, numpy and half numbers, against float32"),
    "pool": (pool.run, "memory that freed outputs leave idle after steps of varying shapes, and what it saves"),
    "ranges": (ranges.run, "the backward pass of few neurons divided in time, against one pass over all steps"),
    "rounding": (rounding.run, "what membranes kept in bfloat16 do to the gradient"),
    "step": (tutorial5.run_step, "one training step of tutorial 5's network, against snnTorch's own loop"),
    "parity": (parity.run, "bits that differ from snnTorch over random configurations"),
    "epoch": (tutorial5.run_epoch, "one epoch on MNIST with snnfast and with snnTorch: seconds and test accuracy"),
}


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in ("list", "run"):
        return cli.main(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "commands",
        nargs="*",
        metavar="COMMAND",
        help="; ".join(f"{name}: {text}" for name, (_, text) in COMMANDS.items()) + " (default: all of them)",
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(25, 128, 1000), metavar=("T", "B", "N"), help="of lif")
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="of measuring per comparison (default: %(default)s; at most 5 of check)",
    )
    parser.add_argument("--configurations", type=int, default=400, help="of parity (default: %(default)s)")
    parser.add_argument(
        "--data-path",
        type=Path,
        default=os.environ.get("SNNFAST_DATA") or None,
        help="of epoch: folder with MNIST/raw (default: the environment variable SNNFAST_DATA)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as PyTorch chooses)")
    args = parser.parse_args()
    unknown = [name for name in args.commands if name not in COMMANDS]
    if unknown:
        parser.error(f"unknown command {unknown[0]!r}; there are {', '.join(COMMANDS)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    print(machine(), end="\n\n")
    held = [COMMANDS[name][0](args) for name in args.commands or COMMANDS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
