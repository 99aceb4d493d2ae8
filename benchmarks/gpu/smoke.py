"""Whether the kernels work at all on a card, beside torch: streams, a graph, and what a failed launch says."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import snnfast
from snnfast import _ops
from snnfast.functional import lif

from .card import ROOT, Card, open_card

T, BETA = 20, 0.9


def expected(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the CPU kernels."""
    namespace = _ops.used
    _ops.use(_ops.NAMESPACE)
    try:
        return step(x.detach().cpu())
    finally:
        _ops.use(namespace)


def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, last membrane and gradient of the input."""
    x = x.detach().requires_grad_()
    spk, mem = lif(x, beta=BETA, record_mem=False)
    (grad,) = torch.autograd.grad((spk, mem), x, (torch.ones_like(spk), torch.ones_like(mem)))
    return spk.detach(), mem.detach(), grad


def compare(found: tuple[Tensor, Tensor, Tensor], wanted: tuple[Tensor, Tensor, Tensor]) -> None:
    for name, a, b in zip(("spikes", "membranes"), found, wanted, strict=False):
        if not torch.equal(a.cpu(), b):
            raise AssertionError(f"{int((a.cpu() != b).sum())} of {b.numel()} {name} differ from the CPU's")
    torch.testing.assert_close(found[2].cpu(), wanted[2], rtol=1e-4, atol=1e-5)


def random(card: Card, seed: int) -> Tensor:
    return torch.rand(T, card.many, generator=torch.Generator().manual_seed(seed)) * 2


def beside_torch(card: Card) -> str:
    """The extension brings a CUDA runtime of its own, linked statically; both work on the same context."""
    x = random(card, 0)
    there = x.to(card.device)
    compare(step(there), expected(x))
    if not torch.equal((there * 2).cpu(), x * 2):
        raise AssertionError("torch's own kernels are wrong after ours")
    compare(step(there * 0.5), expected(x * 0.5))
    maps = Path("/proc/self/maps")
    loaded = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "libcudart" in line}
    return f"shared CUDA runtimes in the process: {', '.join(sorted(loaded)) or 'none'}"


def current_stream(card: Card) -> str:
    """A kernel on another stream than the current one would find the input not yet filled."""
    x = random(card, 1)
    source, there = x.to(card.device), torch.zeros(x.shape, device=card.device)
    card.synchronize()
    with card.other_stream():
        card.delay()
        there.copy_(source)
        found = step(there)
        card.synchronize()
    compare(found, expected(x))
    return "ordered after a delayed copy on a stream that is not the default one"


def second_stream(card: Card) -> str:
    """Two streams at once, each with work of its own."""
    inputs = [random(card, seed) for seed in (2, 3)]
    sources = [x.to(card.device) for x in inputs]
    targets = [torch.zeros_like(x) for x in sources]
    card.synchronize()
    found = []
    for source, target in zip(sources, targets, strict=True):
        with card.other_stream():
            card.delay()
            target.copy_(source)
            found.append(step(target))
    card.synchronize()
    for x, of in zip(inputs, found, strict=True):
        compare(of, expected(x))
    return "two streams, right results on both"


def graph(card: Card) -> str:
    """Forward and backward, captured once and replayed on other inputs."""
    there = torch.zeros(T, card.many, device=card.device)
    out: list[tuple[Tensor, Tensor, Tensor]] = []

    def capture() -> None:
        out[:] = [step(there)]

    replay = card.captured(capture)
    for seed in (4, 5):
        x = random(card, seed)
        there.copy_(x)
        replay()
        card.synchronize()
        compare(out[0], expected(x))
    return "captured once, replayed on two inputs"


def failed_launch(card: Card) -> str:
    """In another process, whose context an assertion of torch's breaks: what our launch says then."""
    command = [sys.executable, "-m", "benchmarks.gpu.broken", card.device.type]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("lif: ")]
    found = lines[0] if lines else f"no answer, exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    if card.dry or "the CUDA kernel leaky_forward failed" in found:
        return found
    return f"not as expected, and reported only: {found}"  # torch may find the broken context before the launch


CHECKS: tuple[Callable[[Card], str], ...] = (beside_torch, current_stream, second_stream, graph, failed_launch)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.smoke", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    card = open_card(args.dry_run)
    found, failures = {"on": card.name}, 0
    with snnfast.use_backend("fused"):
        for check in CHECKS:
            try:
                found[check.__name__] = check(card)
            except Exception as error:  # each is reported, whatever it is
                found[check.__name__] = f"FAILS: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
                failures += 1
            print(f"{check.__name__}: {found[check.__name__]}", flush=True)
    args.json.write_text(json.dumps(found, indent=1))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
