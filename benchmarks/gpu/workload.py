"""Forward and backward of layers as training calls them, for tools that look at kernels from outside."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

import snnfast

LAYERS: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.9},
    "Synaptic": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.9},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
    "RLeaky": {"beta": 0.9, "V": 0.5, "all_to_all": False},
    "RSynaptic": {"alpha": 0.9, "beta": 0.8, "V": 0.5, "all_to_all": False},
}
# Options of a layer and of its call: those that choose another kernel, or another way through one.
OPTIONS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {"record_mem": False}),
    ({}, {"record_mem": True}),
    ({}, {"record_mem": False, "reduce": "sum"}),
    ({"reset_mechanism": "zero"}, {"record_mem": False}),
    ({"learn_beta": True}, {"record_mem": False}),
    ({"spike_grad": snnfast.surrogate.straight_through_estimator()}, {"record_mem": False}),
)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MANY = 1 << 18  # neurons from which on a thread takes several of them
Call = tuple[str, int, int, torch.dtype, dict[str, Any], dict[str, Any]]  # layer, T, N, dtype, options


def watched() -> Iterator[Call]:
    """Every kernel at a few neurons, and at many in the two dtypes whose vectors differ most."""
    for name in LAYERS:
        for layer, call in OPTIONS:
            for dtype in DTYPES:
                yield name, 18, 37, dtype, layer, call
                yield name, 272, 37, dtype, layer, call  # the warps of a block divide the time among them
                if dtype in (torch.float32, torch.float16):
                    yield name, 18, MANY, dtype, layer, call


def profiled() -> Iterator[Call]:
    """The layer and options that most networks have, at sizes that fill a card, and few neurons over many steps."""
    for layer, call in OPTIONS:
        yield "Leaky", 100, MANY, torch.float32, layer, call
    for dtype in DTYPES[1:]:
        yield "Leaky", 100, MANY, dtype, *OPTIONS[0]
    yield "Leaky", 100, MANY - 1, torch.float32, *OPTIONS[0]  # no vector fits
    yield "Leaky", 4096, 256, torch.float32, *OPTIONS[0]
    yield "Synaptic", 100, MANY, torch.float32, *OPTIONS[0]


def run(call: Call, device: str) -> None:
    name, T, N, dtype, layer, options = call
    x = (2 * torch.rand(T, N, dtype=dtype, device=device)).requires_grad_()
    spk, *_ = getattr(snnfast, name)(**LAYERS[name], **layer).to(device).unroll(x, **options)
    spk.backward(torch.rand_like(spk))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.workload", description=__doc__)
    parser.add_argument("--profiled", action="store_true", help="a few launches that fill a card, instead of all kinds")
    args = parser.parse_args()
    with snnfast.use_backend("fused"):
        for call in profiled() if args.profiled else watched():
            print(*call)
            run(call, "cuda")
            torch.cuda.synchronize()  # an error belongs to this call


if __name__ == "__main__":
    main()
