"""Runs a benchmark of others as it is, in a process of its own; a way says how snnfast is put in.

    python enter.py BENCHMARK WAY FOLDER [LIBRARY]

``FOLDER`` is a checkout of the repository. In this process, the package ``benchmarks`` is that of jaxpike.
"""

import functools
import importlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AS_IT_IS, SHIM, IMPORT, COMPILED = "as it is", "shim", "import", "compiled"
JAXPIKE, SPIKINGJELLY, SPARX = "jaxpike", "spikingjelly", "sparx"
EPOCHS, TRIALS = 1, 2
BATCH, WARMUP, ITERATIONS = 16, 2, 5  # its own, 64, 20 and 100, are those of a GPU
CALLS = 10


def enter(way: str) -> None:
    """Put snnfast in the place of a library, before the benchmark imports that."""
    if way == SHIM:
        from snnfast.spikingjelly import enable_compat

        enable_compat()
    elif way in (IMPORT, COMPILED):
        import snntorch

        import snnfast.snntorch

        snntorch.Leaky = snnfast.snntorch.Leaky


def jaxpike(way: str, folder: str, library: str) -> None:
    """Training on random spikes in the shape of SHD: ``--smoke`` needs neither SHD nor JAX."""
    sys.path.insert(0, folder)
    if way == AS_IT_IS:  # its keyword `backend` is not one of every SpikingJelly
        sys.path.insert(0, str(Path(folder).parent / "spikingjelly"))
    enter(way)
    bench: Any = importlib.import_module("benchmarks.torch_shd")
    if way == COMPILED:
        import snnfast

        # Each trial builds its network anew. One that is kept is compiled once, in the trial that does not count.
        bench.build = functools.cache(lambda *args, build=bench.build: snnfast.compile(build(*args)))
    options = ["--library", library, "--backend", "torch", "--smoke", "--skip-accuracy"]
    sys.argv = ["torch_shd.py", *options, "--epochs", str(EPOCHS), "--trials", str(TRIALS)]
    bench.main()


def spikingjelly(way: str, folder: str) -> None:
    """Training of a convolutional network. Its settings are constants, which it asks to be edited."""
    if way == AS_IT_IS:
        sys.path.insert(0, folder)
    sys.path.insert(0, f"{folder}/benchmark")
    enter(way)
    bench: Any = importlib.import_module("benchmark_train_backends")
    bench.BATCH_SIZE, bench.WARMUP, bench.ITERS = BATCH, WARMUP, ITERATIONS
    bench.main()


def sparx(way: str, folder: str) -> None:
    """The models of its ``bench_lif.py`` in PyTorch. It is a benchmark of JAX, in which there is nothing to put in."""
    import torch
    from torch import nn

    import snnfast
    from snnfast.spikingjelly import functional, neuron, surrogate

    T, B, N = 100, 64, 512

    def lif(decay: float) -> Any:
        return neuron.LIFNode(
            tau=1 / (1 - decay), decay_input=False, v_reset=None, detach_reset=False, step_mode="m",
            surrogate_function=surrogate.ATan(alpha=2.0),
        )  # fmt: skip

    def report(name: str, net: nn.Module, given: list[torch.Tensor], x: torch.Tensor) -> None:
        for call in range(2 + CALLS):
            functional.reset_net(net)
            start = time.perf_counter()
            found = net(x)
            torch.autograd.grad(found.sum() if isinstance(found, torch.Tensor) else found[0].sum(), given)
            if call >= 2:
                print(f"{name}: {(time.perf_counter() - start) * 1e3} ms")

    x = torch.randn(T, B, N, requires_grad=True)
    report("LIF", lif(0.8), [x], x)
    decay = math.exp(-1 / 2)
    net = snnfast.MultiStep(nn.Linear(N, N), lif(decay), nn.Linear(N, N), lif(decay))
    for dense in (net[0], net[2]):  # as Flax begins
        nn.init.kaiming_normal_(dense.weight, nonlinearity="linear")
        nn.init.zeros_(dense.bias)
    report("two layers", net, list(net.parameters()), (torch.rand(T, B, N) < 0.2).float())


ENTRIES: dict[str, Callable[..., None]] = {JAXPIKE: jaxpike, SPIKINGJELLY: spikingjelly, SPARX: sparx}

if __name__ == "__main__":
    ENTRIES[sys.argv[1]](*sys.argv[2:])
