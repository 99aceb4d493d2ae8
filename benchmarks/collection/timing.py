"""Times of the programs, as their users meet them: the first call, the twelfth of a shape, and calls of other sizes."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import mean, median, quantiles
from typing import Any

import torch

from ..measure import alternate, seconds_of
from ..peers import PEERS
from ..peers.ours import DEFAULT, PRODUCTS
from ..peers.snntorch_loop import LOOP
from ..registry import Case
from ..runner import Row, compare, failed
from . import Program, built, differences, forget_layers, loss_of, products, programs, silence

KIND = "collection"
BEFORE = 11
"""So many calls come before those that are timed, of one shape and of other sizes."""
TIMED = 12
"""So many calls of other sizes are timed."""
MOST_SECONDS = 2.0
"""All implementations of a program take turns for so long: a loop is not called hundreds of times then."""
COMPILED_AFTER = 3
"""So many calls are enough of the others."""
COMPARED_CALLS = 6
"""So many calls are compared with the loop: the last ones are replayed."""

Step = Callable[[tuple[Any, ...]], None]


def measure(case: Case, names: Sequence[str], seconds: float) -> list[Row]:
    """Rows of a program: the compiled ones are first compared with the loop, in float64 and with few steps."""
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # no word of recompilations
    program = programs()[case.variant.rpartition(" ")[2]]
    rows = {name: Row(case.name, name) for name in names}
    torch._dynamo.reset()
    for row in rows.values():
        _compare(program, case, row)
    torch.manual_seed(0)
    forget_layers()  # of what was compared: utils.reset goes through all that a process ever made
    inputs = program.inputs(case.T, case.B)
    steps: dict[str, Step] = {}
    functions: dict[str, Callable[[], object]] = {}
    for name, row in rows.items():
        if row.problem:
            continue
        way = DEFAULT if name == PRODUCTS else name
        try:
            if way not in steps:
                steps[way] = _step(program, way)
            step = partial(steps[way], inputs)
            start = time.process_time()
            step()
            if name == DEFAULT:
                row.first = time.process_time() - start
            for _ in range((BEFORE if name == DEFAULT else COMPILED_AFTER) - 1):
                step()
            functions[name] = products.alone(step) if name == PRODUCTS else step
        except Exception as error:
            row.problem = failed(error)
    times = alternate(functions, min(seconds, MOST_SECONDS), 3, slow=0.1, clock=seconds_of)
    for name, taken in times.items():
        row = rows[name]
        row.median, row.repeats = median(taken), len(taken)
        row.low, _, row.high = quantiles(taken, n=4)
    varied: dict[str, list[float]] = {name: [] for name in functions if name in (DEFAULT, LOOP)}
    for call, (T, B) in enumerate(sizes(case.T, case.B)):
        others = program.inputs(T, B)
        for name in [name for name in varied if name == DEFAULT or call >= BEFORE]:
            try:
                varied[name].append(seconds_of(partial(steps[name], others)))
            except Exception as error:
                rows[name] = Row(case.name, name, problem=failed(error))
                del varied[name]
    for name, taken in varied.items():
        rows[name].varied = mean(taken[-TIMED:])  # what is compiled so late counts
    compare(case, list(rows.values()))
    return list(rows.values())


def _compare(program: Program, case: Case, row: Row) -> None:
    """Enter why an implementation is not measured: it is not there, or does not do what the loop does."""
    if problem := PEERS[row.peer].missing(torch.device("cpu")):
        row.problem = problem
    elif row.peer == DEFAULT:
        try:
            wrong = list(differences(program, min(case.T, 5), 3, calls=COMPARED_CALLS, how=row.peer))
            assert not wrong, "; ".join(wrong)
        except Exception as error:
            row.problem = failed(error)


def sizes(T: int, B: int) -> Iterator[tuple[int, int]]:
    """Numbers of steps and samples around those of a program: both differ from those of the call before."""
    spread, first = max(1, T // 4), max(1, B - BEFORE)
    for call in range(BEFORE + TIMED):
        yield max(1, T - spread) + 2 * call % (2 * spread + 1), first + call


def _step(program: Program, how: str) -> Step:
    """A training step with Adam, whose learning rate is 0, so that what is measured stays the same."""
    net, train = built(program, how)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)

    def step(inputs: tuple[Any, ...]) -> None:
        optimizer.zero_grad()
        with silence():
            loss_of(train(*inputs)).backward()
        optimizer.step()

    return step
