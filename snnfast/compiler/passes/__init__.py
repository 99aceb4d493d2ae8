"""Rewrites of the graph of a loop, each with a form before and after in its docstring."""

from collections.abc import Callable

from torch.fx import Graph

from snnfast.compiler.passes import (
    concat,
    connections,
    counts,
    cse,
    dead,
    functionalize,
    gates,
    idempotent,
    pairs,
    repeats,
    unstack,
)

PASSES = (
    functionalize, pairs, unstack, idempotent, repeats, cse, counts, connections, concat, gates, dead
)  # fmt: skip
"""In this order: calls are compared once nothing is changed in place, and removed when nothing needs them."""


def run_passes(graph: Graph, after: Callable[[str, Graph], None]) -> None:
    """Run all passes in place, and tell the name of each and the graph ``after`` it."""
    for rewrite in PASSES:
        rewrite.run(graph)
        after(rewrite.__name__.rpartition(".")[2], graph)
