"""Dependence graphs: cycles, reachability, and an order to run in."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter
from typing import Any

from torch.fx import Node

Edges = Mapping[Any, Iterable[Any]]
"""Each vertex with those that it waits for."""


def in_order(before: Edges, number: Callable[[Any], int]) -> list[Any]:
    """The vertices, each behind all that it waits for, otherwise by their numbers."""
    sorter = TopologicalSorter(before)
    sorter.prepare()
    found: list[Any] = []
    ready: list[tuple[int, Any]] = []
    while sorter.is_active():
        for vertex in sorter.get_ready():
            heapq.heappush(ready, (number(vertex), vertex))
        found.append(heapq.heappop(ready)[1])
        sorter.done(found[-1])
    return found


def reverse(before: Edges) -> dict[Any, list[Any]]:
    """Each vertex with those that wait for it."""
    after: dict[Any, list[Any]] = defaultdict(list)
    for vertex, others in before.items():
        for other in others:
            after[other].append(vertex)
    return after


def reached(start: Any, edges: Edges) -> set[Any]:
    """The vertices that edges lead to from one; the one itself if it is in a cycle."""
    found: set[Any] = set()
    rest = [start]
    while rest:
        new = [v for v in edges.get(rest.pop(), ()) if v not in found]
        found.update(new)
        rest += new
    return found


def cycles(before: Edges) -> list[list[Any]]:
    """The sets of vertices that lead to each other (R. Tarjan, 1972), and single ones that lead to themselves."""
    number: dict[Any, int] = {}
    lowest: dict[Any, int] = {}
    open_: dict[Any, None] = {}
    found: list[list[Any]] = []
    for start in before:
        work = [(start, iter(before[start]))] if start not in number else []
        if work:
            number[start] = lowest[start] = len(number)
            open_[start] = None
        while work:
            vertex, others = work[-1]
            for other in others:
                if other not in number:
                    number[other] = lowest[other] = len(number)
                    open_[other] = None
                    work.append((other, iter(before[other])))
                    break
                if other in open_:
                    lowest[vertex] = min(lowest[vertex], number[other])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[vertex])
                if lowest[vertex] == number[vertex]:
                    found.append([])
                    while not found[-1] or found[-1][-1] is not vertex:
                        found[-1].append(open_.popitem()[0])
    return [vertices for vertices in found if len(vertices) > 1 or vertices[0] in set(before[vertices[0]])]


def reads(node: Node, wanted: Node, order: Mapping[Node, int]) -> bool:
    """Whether a node needs the result of another one, by their numbers in ``order``."""
    seen, rest = {node}, [node]
    while rest:
        found = rest.pop()
        if found is wanted:
            return True
        new = [a for a in found.all_input_nodes if order[a] >= order[wanted] and a not in seen]
        seen.update(new)
        rest += new
    return False
