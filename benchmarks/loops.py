"""Every loop of the tests under snnfast.compile, against the same network that is not compiled: never slower."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import snnfast

from .bars import LOOPS, Bar, Found
from .measure import alternate

ATTEMPTS = 4  # for a program that misses the bar
LOOP, COMPILED = "loop", "compiled"
WITHOUT_A_LOOP = ("checkpointed",)  # layers that hold a membrane can't be computed again, unless they are compiled


def run(args: argparse.Namespace) -> Found:
    torch.set_num_threads(args.threads or 1)
    programs = _programs()
    print("processor time of a training step: ms of the loop, ms of the compiled loop, and the first / the second")
    width = max(map(len, programs))
    ratios, rows = {}, []
    for name, program in programs.items():
        steps = {LOOP: training_step(program, lambda f: f), COMPILED: training_step(program, snnfast.compile)}
        best: dict[str, float] = {}
        for _ in range(ATTEMPTS):
            for side, times in alternate(steps, args.seconds, clock=processor_time).items():
                best[side] = min(best.get(side, times[0]), *times)
            ratios[name] = best[LOOP] / best[COMPILED]
            if ratios[name] >= LOOPS:
                break
        milliseconds = "".join(f"  {best[side] * 1e3:>8.3f}" for side in steps)
        print(f"{name:<{width}}{milliseconds}  {ratios[name]:>6.2f}", flush=True)
        rows.append({"program": name, "loop": best[LOOP], "compiled": best[COMPILED]})
        torch._dynamo.reset()
    print()
    slowest = min(ratios, key=lambda name: ratios[name])
    bar = Bar(f"the least gain of {len(ratios)} loops: loop / compiled", ratios[slowest], LOOPS, True, slowest)
    return Found([bar], rows)


def training_step(program: Any, compiled: Callable[[Any], Any]) -> Callable[[], None]:
    """Forward and backward of a program of the tests."""
    import snntorch
    from loop_checks import CALLS, Built, inputs_of

    neurons = snntorch.SpikingNeuron.instances = []  # through which snntorch.utils.reset goes
    built = Built.of(program, snnfast.snntorch)
    function, inputs = compiled(built.function), inputs_of(program, *CALLS[0])

    def step() -> None:
        snntorch.SpikingNeuron.instances = neurons
        outputs, _ = torch.utils._pytree.tree_flatten(built.call(function, *inputs))
        asking = [t.sum() for t in outputs if isinstance(t, torch.Tensor) and t.requires_grad]
        if asking:
            torch.stack(asking).sum().backward()
        built.net.zero_grad()

    return step


def processor_time(function: Callable[[], None]) -> float:
    """Seconds, without those in which the machine did something else."""
    start = time.process_time()
    function()
    return time.process_time() - start


def _programs() -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import loop_checks  # noqa: F401 - its import enters the programs
    from loop_programs import PROGRAMS

    warnings.filterwarnings("ignore")  # of snnfast and of torch.compile: each says why a loop is not merged
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    version = torch.torch_version.TorchVersion(torch.__version__)
    return {n: p for n, p in PROGRAMS.items() if version >= p.since and n not in WITHOUT_A_LOOP}
