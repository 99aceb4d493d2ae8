"""States that a step keeps in one tensor become tensors of their own: what is read of a stack is what was stacked.

::

    v, z = state.unbind(0)            state = stack([v, z])
    state = stack([v, z])             v_1 = add(v, x)
    v_1 = add(state[0], x)
"""

import operator
from typing import Any

from torch.fx import Graph, Node

from snnfast.compiler.calls import aten, name_of, same_context, signature_of, site_of, value
from snnfast.compiler.memory import Memory, erase_unread, take_place


def run(graph: Graph) -> None:
    stacks = [n for n in graph.find_nodes(op="call_function", target=aten.stack.default) if _is_of_one_step(n)]
    if not stacks:
        return
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


def _is_of_one_step(stack: Node) -> bool:
    """Whether no two of the stacked tensors come from the same line, as the rows of a record do."""
    entries = _entries(stack)
    sites = {site_of(n) if n.op == "call_function" else n for n in entries}
    return len(sites) == len(entries)


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
