"""States that a step keeps in one tensor become tensors of their own: what is read of a stack is what was stacked.

::

    v, z = state.unbind(0)            state = stack([v, z])
    state = stack([v, z])             v_1 = add(v, x)
    v_1 = add(state[0], x)
"""

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.fx import Graph, Node

from snnfast.compiler.graph.memory import Memory, erase_unread, take_place
from snnfast.compiler.graph.nodes import (
    Site,
    as_leaf,
    aten,
    name_of,
    same_context,
    signature_of,
    site_of,
    tensors_of,
    value,
)


def run(graph: Graph) -> None:
    stacks = graph.find_nodes(op="call_function", target=aten.stack.default)
    times = Counter(map(site_of, stacks))
    stacks = [n for n in stacks if _is_of_one_step(n, times[site_of(n)])]
    if not stacks:
        return
    requiring = _requiring(graph, stacks)
    with_gradient = {place for stack in stacks for place in _places_with_gradient(stack, requiring)}
    memory = Memory(graph)
    shown = {s for n in graph.output_node().all_input_nodes for s in memory.storage[n]}
    sites = set()
    for stack in stacks:
        if memory.is_written(stack) or any(s in shown for s in memory.storage[stack]) or has_hook(stack):
            continue  # somebody may see that they share memory, or what goes back through the stack
        for read, index in reads(stack):
            entry = _entries(stack)[index]
            if memory.is_written(entry) or has_hook(read) or not _is_whole(entry, read, stack):
                continue
            if (site_of(stack), index % len(_entries(stack))) not in with_gradient:
                continue
            sites.add(site_of(read))
            take_place(read, entry)
        for node in [*stack.users, stack]:
            erase_unread(node)
    for target in (operator.getitem, aten.select.int):
        for node in graph.find_nodes(op="call_function", target=target):
            if site_of(node) in sites:  # What the first step reads is no loop over the entries.
                node.meta["modules"] = (*node.meta["modules"], f"entry {node.args[-1]}")


def _entries(stack: Node) -> list[Any]:
    return stack.args[0]  # type: ignore[return-value]


def _is_of_one_step(stack: Node, times: int) -> bool:
    """Whether it holds states, and not the rows of a record: they come from one line, and few records are made."""
    entries = _entries(stack)
    sites = {site_of(n) if n.op == "call_function" else n for n in entries}
    return len(sites) == len(entries) or len(entries) < times


def _requiring(graph: Graph, stacks: list[Node]) -> set[Node]:
    """The nodes that require a gradient if what is read of a stack has that of its entry, and not of the others."""
    entry_of = {read: _entries(stack)[index] for stack in stacks for read, index in reads(stack)}
    found: set[Node] = set()
    for node in graph.nodes:
        given = [entry_of[node]] if node in entry_of else node.all_input_nodes
        own = not any(tensors_of(a) for a in given) or node.op != "call_function" or node.target is as_leaf
        if node.meta.get("requires_grad", True) and (own or not found.isdisjoint(given)):
            found.add(node)
    return found


def _places_with_gradient(stack: Node, requiring: set[Node]) -> Iterator[tuple[Site, int]]:
    """The places in a stack whose entries require a gradient if what is read there does.

    A state that begins with a number gets its gradient at a later step, and a recurrence has one for all of its steps.
    """
    does = [entry in requiring for entry in _entries(stack)]
    reads_require = any(does) and stack.meta["context"].records
    return ((site_of(stack), i) for i, entry_does in enumerate(does) if entry_does or not reads_require)


def reads(stack: Node) -> list[tuple[Node, Any]]:
    """The calls that read one entry, and its number."""
    rank = value(stack).dim()
    dim: Any = stack.args[1] if len(stack.args) > 1 else 0
    found: list[tuple[Node, Any]] = []
    for user in stack.users:
        given: tuple[Any, ...] = user.args
        if not same_context(user, stack):  # under no_grad, what is read has no gradient
            continue
        if user.target is aten.select.int and given[1] % rank == dim % rank:
            found.append((user, given[2]))
        elif user.target is aten.unbind.int and (given[1] if len(given) > 1 else 0) % rank == dim % rank:
            found += [(n, n.args[1]) for n in user.users if n.target is operator.getitem]
    return found


def has_hook(node: Node) -> bool:
    return any("hook" in name_of(user.target) for user in node.users)


def _is_whole(entry: Node, read: Node, stack: Node) -> bool:
    """Whether an entry has the very numbers that are read, and their gradient."""
    # Under no_grad, what is stacked has no gradient, though the entry itself may have one.
    loses = not stack.meta["context"].records and (entry.op != "call_function" or entry.meta["context"].records)
    return not loses and signature_of(entry) == signature_of(read)
