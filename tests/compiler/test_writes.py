"""What a loop writes to a buffer stays, also if nobody reads what the write returns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler.forms import recorded
from loop_nets import QUICK_WAYS
from torch import Tensor
from torch.fx import Graph

from snnfast.compiler import passes
from snnfast.compiler.graph.aten import to_aten
from snnfast.compiler.graph.memory import Memory, erase_unread, take_place
from snnfast.compiler.graph.nodes import changed

# Where calls are removed: by the two functions of all rewrites, by what removes dead calls and asks for effects, and
# in places that remove no call of the loop: switches of grad mode, and calls in the bodies of functions.
ERASE = {"graph/memory.py": 2, "passes/dead.py": 1, "loop/facts.py": 1, "graph/aten.py": 2, "backend.py": 3}


def test_rewrites_remove_calls_by_functions_that_ask_for_effects_alone() -> None:
    folder = Path(passes.__file__).parents[1]
    found = {str(p.relative_to(folder).as_posix()): p.read_text().count("erase_node(") for p in folder.rglob("*.py")}
    assert {name: times for name, times in found.items() if times} == ERASE


def test_a_call_with_an_effect_is_not_erased_as_unread() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    write, plain = (graph.call_function(getattr(torch.ops.aten, name).Tensor, (x, 1)) for name in ("add_", "add"))
    assert not erase_unread(write)
    assert erase_unread(plain)
    take_place(write, x)
    assert list(graph.nodes) == [x]


def copied(to: Tensor, a: Tensor, b: Tensor) -> None:
    to.copy_(torch.stack((a, b)))


def set_all(to: Tensor, a: Tensor, b: Tensor) -> None:
    to[:] = torch.stack((a, b))


def added(to: Tensor, a: Tensor, b: Tensor) -> None:
    to.add_(torch.stack((a, b)))


def added_by_operator(to: Tensor, a: Tensor, b: Tensor) -> None:
    to += torch.stack((a, b))


def set_data(to: Tensor, a: Tensor, b: Tensor) -> None:
    to.data.copy_(torch.stack((a, b)))


def set_row(to: Tensor, a: Tensor, b: Tensor) -> None:
    to[0] = torch.stack((a, b))[1]


def concatenated(to: Tensor, a: Tensor, b: Tensor) -> None:
    to.copy_(torch.cat((a[None], b[None])))


def out(to: Tensor, a: Tensor, b: Tensor) -> None:
    torch.mul(torch.stack((a, b)), 2, out=to)


WRITES = [copied, set_all, added, added_by_operator, set_data, set_row, concatenated, out]


def loop_with(write: Callable[[Tensor, Tensor, Tensor], None], at_each_step: bool) -> Callable[..., Any]:
    def loop(x: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
        v, z = torch.zeros_like(x[0]), torch.ones_like(x[0])
        for x_t in x:
            v = torch.tanh(0.8 * v + x_t)
            z = 0.9 * z + v.exp()
            if at_each_step:
                with torch.no_grad():
                    write(buffer, v, z)
        with torch.no_grad():
            write(buffer, v, z)
        return v, z

    return loop


@pytest.mark.parametrize("at_each_step", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_each_pass_keeps_the_writes_to_a_buffer(write: Callable[..., None], at_each_step: bool) -> None:
    graph = to_aten(recorded(loop_with(write, at_each_step), torch.rand(4, 2, 3), torch.zeros(2, 2, 3))).graph
    before = writes(graph)
    assert before
    for rewrite in passes.PASSES:
        rewrite.run(graph)
        assert writes(graph) == before, rewrite.__name__


def writes(graph: Graph) -> int:
    """How many calls write to the inputs of a graph."""
    memory = Memory(graph)
    return sum(s in memory.given for n in graph.nodes for a in changed(n) for s in memory.storage[a])


@pytest.mark.needs_extension
@pytest.mark.parametrize("by", QUICK_WAYS)
@pytest.mark.parametrize("at_each_step", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_a_compiled_loop_writes_to_a_buffer_as_the_loop_does(
    write: Callable[..., None], at_each_step: bool, by: Any
) -> None:
    loop = loop_with(write, at_each_step)
    compiled = by(loop)
    for grad in (True, True, False):
        x = torch.rand(7, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(grad)
        found, expected = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
        torch.testing.assert_close(compiled(x, found), loop(x, expected))
        assert expected.any()
        torch.testing.assert_close(found, expected)
