"""The forms of a graph between the stages of the compiler: printed if somebody asks, and checked in tests.

``SNNFAST_LOG=stages`` logs them, and :func:`snnfast.explain` keeps them in its reports.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch.fx import Graph

from snnfast.compiler import verify
from snnfast.compiler.graph.nodes import tensors_of
from snnfast.compiler.printing import print_graph

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
        """Check, keep and log a form: a graph, or one that prints and checks itself."""
        if self._checks:
            check(form)
        if self._prints:
            before = next(reversed(self.forms.values()), "")
            self.forms[name] = text = print_graph(form) if isinstance(form, Graph) else str(form)
            if self._logs:
                _log.warning("snnfast: %s after %s:\n%s", self.where, name, "as before" if text == before else text)


def check(graph: Any) -> None:
    """Check that a graph can run, that nothing removed is left in it, and that its calls have what passes ask for.

    Another form checks itself.
    """
    if not isinstance(graph, Graph):
        graph.check()
        return
    graph.lint()
    nodes = set(graph.nodes)
    for node in graph.nodes:
        assert nodes.issuperset(node.users), f"{node.format_node()} has a reader that was removed"
        if node.op == "call_function" and tensors_of(node):
            assert "context" in node.meta, f"{node.format_node()} has no context"
