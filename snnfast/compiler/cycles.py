"""Cycles of a graph."""

from collections.abc import Callable, Iterator
from typing import Any


def strongly_connected(vertices: list[Any], before: Callable[[Any], Iterator[Any]]) -> Iterator[list[Any]]:
    """Groups of vertices that wait for one another (Tarjan's algorithm, without recursion)."""
    index: dict[Any, int] = {}
    low: dict[Any, int] = {}
    stack: list[Any] = []
    on_stack: set[Any] = set()
    for root in vertices:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, before(root))]
        while work:
            v, rest = work[-1]
            for w in rest:
                if w not in index:
                    index[w] = low[w] = len(index)
                    stack.append(w)
                    on_stack.add(w)
                    work.append((w, before(w)))
                    break
                if w in on_stack:
                    low[v] = min(low[v], index[w])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[v])
                if low[v] == index[v]:
                    found = []
                    while True:
                        w = stack.pop()
                        on_stack.discard(w)
                        found.append(w)
                        if w is v:
                            break
                    yield found
