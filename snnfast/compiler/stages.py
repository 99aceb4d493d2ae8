"""The forms of a graph between the stages of the compiler: printed if somebody asks, and checked in tests.

``SNNFAST_LOG=stages`` logs them, and :func:`snnfast.explain` keeps them in its reports.
"""

import logging
import operator
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from snnfast.compiler import verify
from snnfast.compiler.calls import is_step, line_of, module_of, name_of, tensors_of, value

CHECKS = False
"""Whether every form is checked; also under ``SNNFAST_VERIFY=1``."""

_log = logging.getLogger("snnfast")
_kept: ContextVar[bool] = ContextVar("snnfast_stages", default=False)


@contextmanager
def kept() -> Iterator[None]:
    """Keep the forms of the graphs that are compiled inside."""
    before = _kept.set(True)
    try:
        yield
    finally:
        _kept.reset(before)


class Stages:
    """The forms of one graph by the names of the stages: empty unless somebody asked for them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.forms: dict[str, str] = {}
        self._logs = "stages" in os.environ.get("SNNFAST_LOG", "").split(",")
        self._prints = self._logs or _kept.get()
        self._checks = CHECKS or verify.is_wanted()

    def after(self, name: str, form: Any) -> None:
        """Check, keep and log a form: a graph, or anything that ``str`` prints."""
        if self._checks and isinstance(form, Graph):
            check(form)
        if self._prints:
            before = next(reversed(self.forms.values()), "")
            self.forms[name] = text = print_graph(form) if isinstance(form, Graph) else str(form)
            if self._logs:
                _log.warning("snnfast: %s after %s:\n%s", self.where, name, "as before" if text == before else text)


def check(graph: Graph) -> None:
    """Check that a graph can run, that nothing removed is left in it, and that its calls have what passes ask for."""
    graph.lint()
    nodes = set(graph.nodes)
    for node in graph.nodes:
        assert nodes.issuperset(node.users), f"{node.format_node()} has a reader that was removed"
        if node.op == "call_function" and tensors_of(node):
            assert "context" in node.meta, f"{node.format_node()} has no context"


def print_graph(graph: Graph, shapes: bool = False) -> str:
    """Print a graph, one line a call: ``linear = linear(x, W, b)  # net.py:14``.

    The names depend on the calls and their order alone: W and b are parameters, x are other tensors.
    """
    names: dict[Node, str] = {}
    counts: Counter[str] = Counter()
    lines = []

    def spelled(a: Any) -> str:
        if isinstance(a, Node):
            return names[a]
        if isinstance(a, list | tuple):
            return f"[{', '.join(map(spelled, a))}]"
        return str(a) if isinstance(a, torch.dtype | torch.device) else repr(a)

    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {spelled(node.args[0])}")
            continue
        base = _base_name(node)
        names[node] = f"{base}_{counts[base]}" if counts[base] else base
        counts[base] += 1
        if not node.op.startswith("call"):
            continue
        # The options of a step are packed numbers and a digest of snnfast's sources, those of other calls are dynamo's.
        named = node.kwargs if isinstance(node.target, OpOverload) and not is_step(node.target) else {}
        given = [*map(spelled, node.args[: 3 if is_step(node.target) else None])]
        text = f"{_call_name(node)}({', '.join([*given, *(f'{k}={spelled(a)}' for k, a in named.items())])})"
        if node.target is operator.getitem:
            text = f"{given[0]}[{given[1]}]"
        if shapes:
            text += "".join(f" [{', '.join(map(str, t.shape))}]" for t in tensors_of(node))
        context, line = node.meta.get("context"), line_of(node, with_code=False)
        modes = [enter.__name__.removeprefix("_enter_") for enter, *_ in context.blocks] if context else []
        modes += ["no_grad"] if context and not context.grad else []
        lines.append(
            f"{names[node]} = {text}"
            + f" under {', '.join(modes)}" * bool(modes)
            + f"  # {Path(line).name}" * bool(line)
        )
    return "\n".join(lines)


def _call_name(node: Node) -> str:
    return name_of(node.target).rpartition(".")[2]


def _base_name(node: Node) -> str:
    if node.op == "placeholder":
        if not isinstance(value(node), Tensor):
            return "size"
        return ("W" if value(node).dim() > 1 else "b") if node.meta.get("parameter") else "x"
    return "constant" if isinstance(module_of(node), Tensor) else "body" if node.op == "get_attr" else _call_name(node)
