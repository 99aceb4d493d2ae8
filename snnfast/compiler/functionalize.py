"""Changes in place: which calls make them, which tensors they reach, and which of them are not needed.

Calls may be reordered only where nothing between them is changed in place. So a change is replaced by a new tensor
where nothing depends on it (``loss += ...``, ``rec[t] = spk``). The other changes become edges: they say which call
must run before which.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from snnfast.compiler.nodes import (
    arguments,
    aten,
    changed,
    fake_call,
    is_opaque,
    literal,
    memory_of,
    name_of,
    signature_of,
    size_of,
    value,
)

# What makes a tensor that needs no gradient.
_NEW = (
    "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty",
)  # fmt: skip

# What changes nothing when it is done once more.
_SETTLE = ("clamp_", "clamp_min_", "clamp_max_", "relu_", "abs_", "fill_", "zero_", "copy_")


class Memory:
    """Which nodes share memory, by their fake tensors, and which calls change it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.storage: dict[Node, list[int]] = {}
        self.writes: dict[int, list[Node]] = defaultdict(list)
        self.sharing: dict[int, list[Node]] = defaultdict(list)
        self.given: set[int] = set()  # memory that comes from outside
        self.untracked: set[int] = set()  # memory that somebody reaches through ``.data``
        for node in graph.nodes:
            self.storage[node] = found = self._storage_of(node)
            for s in found:
                self.sharing[s].append(node)
            if node.op in ("placeholder", "get_attr"):
                self.given.update(found)
            if _takes_data(node):
                self.untracked.update(found)
            for a in changed(node):
                for s in self.storage[a]:
                    self.writes[s].append(node)

    def _storage_of(self, node: Node) -> list[int]:
        found = memory_of(node)
        if is_opaque(node):  # it may return what it is given
            found += [s for a in node.all_input_nodes for s in self.storage[a]]
        return list(dict.fromkeys(found))

    def is_written(self, node: Node) -> bool:
        return any(s in self.writes for s in self.storage.get(node, ()))

    def is_written_untracked(self, node: Node) -> bool:
        """Whether autograd may not notice that a tensor is changed after it was saved for the backward pass."""
        found = self.untracked.intersection(self.storage.get(node, ()))
        return any(not _takes_data(write) for s in found for write in self.writes[s])

    def order(self) -> dict[Node, list[Node]]:
        """Keep reads and changes of the same memory in their order."""
        before: dict[Node, list[Node]] = defaultdict(list)
        last: dict[int, Node] = {}
        reads: dict[int, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            read = {s for a in node.all_input_nodes for s in self.storage[a] if s in self.writes}
            written = {s for a in changed(node) for s in self.storage[a]}
            for s in read | written:
                if s in last:
                    before[node].append(last[s])
                if s in written:
                    before[node] += [n for n in reads[s] if n is not node]
                    last[s], reads[s] = node, []
                else:
                    reads[s].append(node)
        return before

    def without_changes_in_place(self) -> None:
        """Write a new tensor instead, where nobody reads the old one afterwards."""
        position = {n: i for i, n in enumerate(self.graph.nodes)}
        for s, writes in list(self.writes.items()):
            if s in self.given or any(len(changed(n)) != 1 or _reads(n, s, self) > 1 for n in writes):
                continue
            self._read_what_was_written(s, writes, position)
            if not self._fill(s, writes, position):
                for node in writes:
                    if not self._replace(node, s, position):
                        break

    def without_repeated_changes(self) -> None:
        """Make a change once that is made again and again: ``threshold.data.clamp_(min=0)`` at every step."""
        for writes in self.writes.values():
            last: Node | None = None
            for node in [n for n in writes if not _takes_data(n)]:
                if last is None or not self._changes_nothing(node, last):
                    last = node
                    continue
                taken = node.args[0]
                node.replace_all_uses_with(last)
                self.graph.erase_node(node)
                while isinstance(taken, Node) and _takes_data(taken) and not taken.users:
                    self.graph.erase_node(taken)
                    taken = taken.args[0]

    def _changes_nothing(self, node: Node, last: Node) -> bool:
        """Whether a change is the same as the ``last`` one of a memory, and of a kind that changes nothing then."""
        given, before = (tuple(map(_with_data, n.args)) for n in (node, last))
        others = [a for a in node.all_input_nodes if a is not node.args[0]]
        return (
            node.target is last.target
            and isinstance(node.target, OpOverload)
            and name_of(node.target) in _SETTLE
            and changed(node) == [node.args[0]]
            and len(self.storage[changed(node)[0]]) == 1
            and node.meta["context"] == last.meta["context"]
            and literal((given, node.kwargs)) == literal((before, last.kwargs))
            and not any(map(self.is_written, others))
        )

    def _replace(self, node: Node, s: int, position: dict[Node, int]) -> bool:
        """``acc.add_(spk)``: ``acc = acc.add(spk)``."""
        target, now, before = _new_instead(node), position[node], changed(node)[0]
        if target is None:
            return False
        for other in self.sharing[s]:
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
        new.meta = {**node.meta, "example_value": made}
        # Views of the result keep the memory's old number in their fake tensors.
        for other in self.sharing[s]:
            if position[other] > now:
                other.meta["storage"] = [_fresh(s, now) if t == s else t for t in self.storage[other]]
        position[new] = now
        new.meta["storage"] = self.storage[new] = [_fresh(s, now)]
        node.replace_all_uses_with(new)
        for user in list(before.users):
            if position[user] > now:
                user.replace_input_with(before, new)
        self.graph.erase_node(node)
        # The next change is one of the new memory.
        self.sharing[s] = [new, *(o for o in self.sharing[s] if position[o] > now)]
        return True

    def _read_what_was_written(self, s: int, writes: list[Node], position: dict[Node, int]) -> None:
        """``rec = zeros(T, ...)``, and ``rec[t]`` behind ``rec[t] = spk``: this is ``spk``. Before it, it is zeros."""
        base, last = self.sharing[s][0], position[writes[-1]]
        if name_of(base.target) not in _NEW or "empty" in name_of(base.target):
            return
        written: dict[tuple[int, int], Node] = {}
        for node in writes:
            place = _place(node.args[0], base, set()) if node.target is aten.copy_.default else None
            if place is None or place in written or not isinstance(node.args[1], Node):
                return
            written[place] = node
        dims, targets = {dim for dim, _ in written}, {node.args[0] for node in writes}
        for read in self.sharing[s][1:]:
            place = None if read in targets or position[read] > last else _place(read, base, set())
            if place is None or dims != {place[0]}:
                continue
            if any(user.op == "output" or s in self.storage[user] for user in read.users):
                continue  # a view, which later changes reach
            write = written.get(place)
            if write is None or all(position[user] < position[write] for user in read.users):
                found = self._at_first(read, s, base, *place, position)
            elif position[write] < position[read] and self._is_copied(write, read):
                found = write.args[1]  # type: ignore[assignment]
            else:
                continue
            read.replace_all_uses_with(found)
            view: Any = read
            while view is not base and not view.users:
                source = view.args[0]
                self.sharing[s].remove(view)
                self.graph.erase_node(view)
                view = source

    def _at_first(self, read: Node, s: int, base: Node, dim: int, place: int, position: dict[Node, int]) -> Node:
        """What a part of new memory is before it is written."""
        with self.graph.inserting_before(read):
            new = self.graph.node_copy(base)
            part = self.graph.call_function(aten.select.int, (new, dim, place))
        for node, like in ((new, base), (part, read)):
            node.meta = {**like.meta, "storage": [_fresh(s, position[read])]}
            self.storage[node], position[node] = node.meta["storage"], position[read]
        return part

    def _is_copied(self, write: Node, read: Node) -> bool:
        """Whether a part has the very numbers that were written to it, and their gradient."""
        given: Any = write.args[1]
        same = signature_of(given) == signature_of(read) and write.meta["context"] == read.meta["context"]
        # Under no_grad, what was copied has no gradient, though the tensor itself may have one.
        records = write.meta["context"].records or (given.op == "call_function" and not given.meta["context"].records)
        return same and records and not self.is_written(given)

    def _fill(self, s: int, writes: list[Node], position: dict[Node, int]) -> bool:
        """``rec = zeros(T, ...)``, then ``rec[t] = spk`` for all t: a stack of them."""
        base, last = self.sharing[s][0], writes[-1]
        rec = value(base)
        if not isinstance(rec, Tensor) or any(n.target is not aten.copy_.default for n in writes):
            return False
        if any(n.meta["context"] != last.meta["context"] for n in writes) or name_of(base.target) not in _NEW:
            return False
        inside = {base}  # what has been filled in part until the last write
        places = []
        for node in writes:
            place = _place(node.args[0], base, inside)
            if place is None or not isinstance(node.args[1], Node):
                return False
            places.append(place)
        if len({dim for dim, _ in places}) != 1:
            return False
        dim, now = places[0][0], position[last]
        parts = (inside | set(writes)) - {base}
        if any(position[other] < now and other not in parts for other in self.sharing[s] if other is not base):
            return False
        if any(u not in parts for n in parts for u in n.users) or any(
            position[u] < now and u not in parts for u in base.users
        ):
            return False  # somebody reads it half filled
        values: list[Any] = [node.args[1] for node in writes]
        size = size_of(rec, dim)
        by_time = {p: v for (_, p), v in zip(places, values, strict=True)}
        if not size or sorted(by_time) != list(range(size)) or len(by_time) != len(values):
            return False
        row = rec.select(dim, 0)
        for v in values:
            found = value(v)
            if any(t in self.writes for t in self.storage[v]):
                return False  # it may be changed after it was copied
            if not isinstance(found, Tensor) or (found.shape, found.dtype, found.device) != (
                row.shape, row.dtype, row.device,
            ):  # fmt: skip
                return False
        with self.graph.inserting_before(last):
            new = self.graph.call_function(aten.stack.default, ([by_time[t] for t in range(size)], dim))
        fresh = [_fresh(s, now)]
        new.meta = {**base.meta, "context": last.meta["context"], "storage": fresh}
        self.storage[new] = fresh
        for other in self.sharing[s]:
            if position[other] > now:
                other.meta["storage"] = fresh
        position[new] = now
        for node in sorted(parts, key=position.__getitem__, reverse=True):
            self.graph.erase_node(node)
        base.replace_all_uses_with(new, delete_user_cb=lambda user: position[user] > now)
        return True


def _with_data(a: Any) -> Any:
    """The tensor that has the memory of ``x.data``; anything else as it is."""
    while isinstance(a, Node) and _takes_data(a):
        a = a.args[0]
    return a


def _takes_data(node: Node) -> bool:
    """Whether a call is ``x.data``, which shares the memory of ``x`` but not the count of its changes."""
    return name_of(node.target) == "_get_data_attr"


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


def _place(node: Any, base: Node, inside: set[Node]) -> tuple[int, int] | None:
    """Dimension and place of a view ``base[:, ..., t]``. Adds the views between the two to ``inside``."""
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
