"""Changes in place become new tensors, where nothing depends on the old ones.

Calls may be reordered only where nothing between them is changed in place::

    rec = zeros(2)                    rec = stack([spk, spk_1])
    copy_ = copy_(rec[0], spk)        out = add(acc, spk)
    copy__1 = copy_(rec[1], spk_1)
    out = add_(acc, spk)
"""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from snnfast.compiler.graph.memory import Memory, erase_unread, take_place
from snnfast.compiler.graph.nodes import arguments, aten, changed, fake_call, name_of, signature_of, size_of, value

# These make a tensor that needs no gradient.
_NEW = (
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty",
)  # fmt: skip


def run(graph: Graph) -> None:
    memory, position = Memory(graph), {n: i for i, n in enumerate(graph.nodes)}
    for s, writes in list(memory.writes.items()):
        if s in memory.given or any(len(changed(n)) != 1 or _reads(n, s, memory) > 1 for n in writes):
            continue
        changes = _Changes(memory, s, writes, position)
        changes.read_what_was_written()
        if not changes.fill():
            all(map(changes.replace, writes))  # up to the first one that must stay


class _Changes:
    """The changes of one memory, ``s``.

    Attributes:
        sharing: The nodes that have this memory.
        writes: The calls that change it.
        position: The order of all nodes.
    """

    def __init__(self, memory: Memory, s: int, writes: list[Node], position: dict[Node, int]) -> None:
        self.memory, self.graph, self.s, self.writes, self.position = memory, memory.graph, s, writes, position
        self.sharing = memory.sharing[s]

    def replace(self, node: Node) -> bool:
        """``acc.add_(spk)``: ``acc = acc.add(spk)``."""
        position, target, now, before = self.position, _new_instead(node), self.position[node], changed(node)[0]
        if target is None:
            return False
        for other in self.sharing:
            if position[other] > now or other is node:
                continue
            # A later reader of a view of the old tensor would miss the change.
            if other is not before and any(position[u] > now for u in other.users):
                return False
            # Under no_grad, a tensor that is changed in place keeps its gradient. A new tensor has none.
            records, recorded = node.meta["context"].records, other.meta["context"].records
            if recorded and not records and name_of(other.target) not in _NEW:
                return False
        old = value(node)
        try:
            made = fake_call(target, node.args, node.kwargs, blocks=node.meta["context"].blocks)
        except Exception:  # such as a broadcast that only the call in place refuses, or the other way round
            return False
        if old.shape != made.shape or old.dtype != made.dtype:
            return False
        with self.graph.inserting_before(node):
            new = self.graph.call_function(target, node.args, node.kwargs)
        # Views of the result keep the memory's old number in their fake tensors.
        for other in self.sharing:
            if position[other] > now:
                other.meta["storage"] = [_fresh(self.s, now) if t == self.s else t for t in self.memory.storage[other]]
        new.meta = {**node.meta, "example_value": made}
        self._enter(new, now)
        for user in list(before.users):
            if position[user] > now:
                user.replace_input_with(before, new)
        take_place(node, new)
        # The next change is one of the new memory.
        self.sharing[:] = [new, *(o for o in self.sharing if position[o] > now)]
        return True

    def read_what_was_written(self) -> None:
        """``rec = zeros(T, ...)``, and ``rec[t]`` behind ``rec[t] = spk``: this is ``spk``. Before it, it is zeros."""
        position, base, last = self.position, self.sharing[0], self.position[self.writes[-1]]
        if name_of(base.target) not in _NEW or "empty" in name_of(base.target):
            return
        written: dict[tuple[int, int], Node] = {}
        for node in self.writes:
            part = _part(node.args[0], base, set()) if node.target is aten.copy_.default else None
            if part is None or part in written or not isinstance(node.args[1], Node):
                return
            written[part] = node
        dims, targets = {dim for dim, _ in written}, {node.args[0] for node in self.writes}
        for read in self.sharing[1:]:
            part = None if read in targets or position[read] > last else _part(read, base, set())
            if part is None or dims != {part[0]}:
                continue
            if any(user.op == "output" or self.s in self.memory.storage[user] for user in read.users):
                continue  # a view, which later changes reach
            write = written.get(part)
            if write is None or all(position[user] < position[write] for user in read.users):
                found = self._at_first(read, base, *part)
            elif position[write] < position[read] and self._is_copied(write, read):
                found = write.args[1]  # type: ignore[assignment]
            else:
                continue
            read.replace_all_uses_with(found)
            view: Any = read
            while view is not base:
                source = view.args[0]
                if not erase_unread(view):
                    break
                self.sharing.remove(view)
                view = source

    def _at_first(self, read: Node, base: Node, dim: int, index: int) -> Node:
        """A part of new memory as it is before it is written."""
        with self.graph.inserting_before(read):
            new = self.graph.node_copy(base)
            part = self.graph.call_function(aten.select.int, (new, dim, index))
        for node, like in ((new, base), (part, read)):
            node.meta = dict(like.meta)
            self._enter(node, self.position[read])
        return part

    def _is_copied(self, write: Node, read: Node) -> bool:
        """Whether a part has the very numbers that were written to it, and their gradient."""
        given: Any = write.args[1]
        same = signature_of(given) == signature_of(read) and write.meta["context"] == read.meta["context"]
        # Under no_grad, what was copied has no gradient, though the tensor itself may have one.
        records = write.meta["context"].records or (given.op == "call_function" and not given.meta["context"].records)
        return same and records and not self.memory.is_written(given)

    def fill(self) -> bool:
        """``rec = zeros(T, ...)``, then ``rec[t] = spk`` for all t: a stack of them."""
        position, base, last = self.position, self.sharing[0], self.writes[-1]
        rec = value(base)
        if not isinstance(rec, Tensor) or any(n.target is not aten.copy_.default for n in self.writes):
            return False
        if any(n.meta["context"] != last.meta["context"] for n in self.writes) or name_of(base.target) not in _NEW:
            return False
        inside = {base}  # filled in part until the last write
        found = [_part(node.args[0], base, inside) for node in self.writes]
        if None in found or not all(isinstance(node.args[1], Node) for node in self.writes):
            return False
        if len({dim for dim, _ in found}) != 1:  # type: ignore[misc]
            return False
        dim, now = found[0][0], position[last]  # type: ignore[index]
        parts = (inside | set(self.writes)) - {base}
        if any(position[other] < now and other not in parts for other in self.sharing if other is not base):
            return False
        if any(u not in parts for n in parts for u in n.users) or any(
            position[u] < now and u not in parts for u in base.users
        ):
            return False  # somebody reads it half filled
        values: list[Any] = [node.args[1] for node in self.writes]
        size = size_of(rec, dim)
        by_time = {i: v for (_, i), v in zip(found, values, strict=True)}  # type: ignore[misc]
        if not size or sorted(by_time) != list(range(size)) or len(by_time) != len(values):
            return False
        row = rec.select(dim, 0)
        for v in values:
            t = value(v)
            if self.memory.is_written(v):
                return False  # it may be changed after it was copied
            if not isinstance(t, Tensor) or (t.shape, t.dtype, t.device) != (row.shape, row.dtype, row.device):
                return False
        with self.graph.inserting_before(last):
            new = self.graph.call_function(aten.stack.default, ([by_time[t] for t in range(size)], dim))
        new.meta = {**base.meta, "context": last.meta["context"]}
        self._enter(new, now)
        for other in self.sharing:
            if position[other] > now:
                other.meta["storage"] = new.meta["storage"]
        for node in sorted(parts, key=position.__getitem__, reverse=True):
            take_place(node, new)
        base.replace_all_uses_with(new, delete_user_cb=lambda user: position[user] > now)
        return True

    def _enter(self, new: Node, now: int) -> None:
        """Give a new node a memory of its own, and a position."""
        new.meta["storage"] = self.memory.storage[new] = [_fresh(self.s, now)]
        self.position[new] = now


def _new_instead(node: Node) -> Any:
    """The operator that returns what this one writes into its first argument: ``add`` for ``add_``."""
    target: Any = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten" or changed(node) != list(node.args[:1]):
        return None
    if name_of(target) in ("copy_", "set_", "resize_"):
        return None  # what they return has no gradient, or another memory
    name, arguments_of = name_of(target), target._schema.arguments
    found: Any = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), target._overloadname, None)
    same = name.endswith("_") and isinstance(found, OpOverload) and not found._schema.is_mutable
    return found if same and [a.name for a in found._schema.arguments] == [a.name for a in arguments_of] else None


def _part(node: Any, base: Node, inside: set[Node]) -> tuple[int, int] | None:
    """Dimension and index of a view ``base[:, ..., t]``. Adds the views between the two to ``inside``."""
    found = None
    passed = []
    while node is not base:
        if not isinstance(node, Node) or not isinstance(value(node), Tensor):
            return None
        given = arguments(node)
        source = given.get("self")
        if not isinstance(source, Node) or not isinstance(value(source), Tensor):
            return None
        rank = value(source).dim()
        if node.target is aten.select.int and found is None and isinstance(given["index"], int):
            size = size_of(value(source), given["dim"] % rank)
            if size is None:
                return None
            found = given["dim"] % rank, given["index"] % size
        elif node.target is not aten.slice.Tensor or list(map(str, value(source).shape)) != list(
            map(str, value(node).shape)
        ):
            return None
        passed.append(node)
        node = source
    inside.update(passed)
    return found


def _reads(node: Node, s: int, memory: Memory) -> int:
    """How often a memory is among the arguments of a call."""
    given = pytree.tree_leaves((node.args, node.kwargs))
    return sum(s in memory.storage[a] for a in given if isinstance(a, Node))


def _fresh(s: int, at: int) -> int:
    return hash((s, at)) | 1  # addresses are even
