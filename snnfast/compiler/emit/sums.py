"""Sums that grow in a loop: ``out = out + spk``, ``loss += ...``, ``sum(rec)``."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.fx import Node

from snnfast.compiler.graph.nodes import arguments, aten, value


def terms_of(node: Node, may_be_inside: Callable[[Node], bool]) -> tuple[list[Any], list[Node]]:
    """The terms of a sum of sums in their order, and the additions. Empty for any other node.

    Nothing else may read the sums in between. A part of a larger sum has no terms of its own: it is not needed.
    """
    if not _is_add(node) or not may_be_inside(node) or any(_is_part(node, user) for user in node.users):
        return [], []
    terms: list[Any] = []
    parts: list[Node] = []
    rest: list[Any] = [node]
    while rest:
        term = rest.pop()
        if term is node or (_is_part(term, node) and may_be_inside(term)):
            parts.append(term)
            rest += reversed(term.args)
        else:
            terms.append(term)
    return terms, parts


def is_running_sum(calls: Sequence[Node]) -> bool:
    """Whether calls are the additions of a sum that grows, and nothing reads it in between."""
    return all(_is_add(node) for node in calls) and all(list(a.users) == [b] for a, b in pairwise(calls))


def _is_add(node: Any) -> bool:
    """Whether a node is an addition of tensors without a factor."""
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return False
    return isinstance(value(node), Tensor)


def _is_part(term: Any, whole: Node) -> bool:
    if not _is_add(term) or not _is_add(whole) or len(term.users) != 1:
        return False
    part, total = value(term), value(whole)
    same = part.dtype == total.dtype and part.shape == total.shape
    return bool(same and term.meta["context"] == whole.meta["context"])


def is_sum(node: Node) -> bool:
    """Whether a node is the sum over the first dimension, and nothing else."""
    if node.target is not aten.sum.dim_IntList:
        return False
    given = arguments(node)
    return given["dim"] in ([0], (0,)) and not given["keepdim"] and given["dtype"] is None
