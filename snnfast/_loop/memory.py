"""Changes in place: which calls make them, which tensors they reach, and which of them are not needed.

Calls may be reordered only where nothing between them is changed in place. So a change is replaced by a new tensor
where nothing depends on it (``loss += ...``, ``rec[t] = spk``). The other changes become edges: they say which call
must run before which.
"""

import inspect
import operator
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfast._loop.nodes import argument, fake_call, one_int, place_of, size_of, storage_of, tensors_of, value

_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
_METHODS = (
    "abs", "add", "ceil", "clamp", "clamp_max", "clamp_min", "div", "exp", "floor", "log", "masked_fill", "mul", "neg",
    "pow", "relu", "round", "sigmoid", "sign", "sqrt", "square", "sub", "tanh",
)  # fmt: skip
_OTHER_IN_PLACE = (operator.setitem, operator.iand, operator.ior, operator.ixor, operator.ifloordiv, operator.imod)


def changed(node: Node) -> list[Any]:
    """The arguments that a call changes in place."""
    if node.op == "call_method":
        name = str(node.target)
        return [node.args[0]] if name.endswith("_") and not name.endswith("__") else []
    if node.op != "call_function":
        return []
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        given = zip(target._schema.arguments, node.args, strict=False)
        return [a for s, a in given if s.alias_info is not None and s.alias_info.is_write]
    changed = [node.kwargs["out"]] if node.kwargs.get("out") is not None else []
    if target in _IN_PLACE or target in _OTHER_IN_PLACE or argument(node, "inplace"):
        return [*changed, node.args[0]]
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return [*changed, node.args[0]]
    if name in ("batch_norm", "instance_norm"):
        native = not inspect.isfunction(target)  # torch.batch_norm has its arguments in another order
        training = argument(node, "training" if name == "batch_norm" else "use_input_stats", 5)
        places = (3, 4) if native else (1, 2)
        if training:
            changed += [argument(node, n, p) for n, p in zip(("running_mean", "running_var"), places, strict=True)]
    return changed


def _new_instead(node: Node) -> tuple[str, Any, dict[str, Any], tuple[Any, ...]] | None:
    """The call that returns what this one writes: op, target, keywords, arguments."""
    target: Any = node.target
    if target in _IN_PLACE:
        return node.op, _IN_PLACE[target], dict(node.kwargs), node.args
    if node.op == "call_method":
        name = str(target).removesuffix("_")
        return (node.op, name, dict(node.kwargs), node.args) if name in _METHODS else None
    if not argument(node, "inplace"):
        return None
    if "inplace" in node.kwargs:
        return node.op, target, {**node.kwargs, "inplace": False}, node.args
    place = place_of(target, "inplace")
    return node.op, target, dict(node.kwargs), (*node.args[:place], False, *node.args[place + 1 :])  # type: ignore[operator]


class Memory:
    """Which nodes share memory, by the fake tensors that dynamo made, and which calls change it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.storage: dict[Node, list[int]] = {}
        self.writes: dict[int, list[Node]] = defaultdict(list)
        self.sharing: dict[int, list[Node]] = defaultdict(list)
        self.given: set[int] = set()  # memory that comes from outside
        for node in graph.nodes:
            self.storage[node] = found = node.meta.get("storage") or [storage_of(t) for t in tensors_of(node)]
            for s in found:
                self.sharing[s].append(node)
            if node.op in ("placeholder", "get_attr"):
                self.given.update(found)
            for a in changed(node):
                if isinstance(a, Node):
                    for s in self.storage[a]:
                        self.writes[s].append(node)

    def changed_by(self, node: Node) -> bool:
        return any(isinstance(a, Node) for a in changed(node))

    def is_written(self, node: Node) -> bool:
        return any(s in self.writes for s in self.storage.get(node, ()))

    def order(self) -> dict[Node, list[Node]]:
        """Keep reads and changes of the same memory in their order."""
        before: dict[Node, list[Node]] = defaultdict(list)
        last: dict[int, Node] = {}
        reads: dict[int, list[Node]] = defaultdict(list)
        for node in self.graph.nodes:
            read = {s for a in node.all_input_nodes for s in self.storage[a] if s in self.writes}
            written = {s for a in changed(node) if isinstance(a, Node) for s in self.storage[a]}
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
            if s in self.given or any(_reads(node, s, self) > 1 for node in writes):
                continue
            if not self._fill(s, writes, position):
                for node in writes:
                    if not self._replace(node, s, position):
                        break

    def _replace(self, node: Node, s: int, position: dict[Node, int]) -> bool:
        instead, now, before = _new_instead(node), position[node], node.args[0]
        for other in self.sharing[s]:
            # A later reader of a view of the old tensor would miss the change.
            if other is not before and position[other] < now and any(position[u] > now for u in other.users):
                return False
        if instead is None:
            return False
        op, target, kwargs, args = instead
        with self.graph.inserting_before(node):
            new = self.graph.create_node(op, target, args, kwargs)
        try:
            new.meta = {**node.meta, "example_value": fake_call(op, target, args, kwargs)}
        except Exception:  # such as a broadcast that only the call in place refuses, or the other way round
            self.graph.erase_node(new)
            return False
        old, made = value(node), value(new)
        if old.shape != made.shape or old.dtype != made.dtype:
            self.graph.erase_node(new)
            return False
        # Views of the result keep the memory's old number in their fake tensors.
        for other in self.sharing[s]:
            if position[other] > now:
                other.meta["storage"] = [_fresh(s, now) if t == s else t for t in self.storage[other]]
        position[new] = now
        new.meta["storage"] = self.storage[new] = [_fresh(s, now)]
        node.replace_all_uses_with(new)
        for user in list(before.users):  # type: ignore[union-attr]
            if position[user] > now:
                user.replace_input_with(before, new)
        self.graph.erase_node(node)
        # The next change is one of the new memory.
        self.sharing[s] = [new, *(o for o in self.sharing[s] if position[o] > now)]
        return True

    def _fill(self, s: int, writes: list[Node], position: dict[Node, int]) -> bool:
        """``rec = zeros(T, ...)``, then ``rec[t] = spk`` for all t: a stack of them."""
        base = self.sharing[s][0]
        rec = value(base)
        if not isinstance(rec, Tensor) or any(
            n.target is not operator.setitem or n.args[0] is not base for n in writes
        ):
            return False
        places = [one_int(n.args[1], rec.dim()) for n in writes]
        values = [n.args[2] for n in writes]
        if None in places or len({p[0] for p in places if p}) != 1:
            return False
        dim = places[0][0]  # type: ignore[index]
        last = position[writes[-1]]
        if any(position[u] < last and u not in writes for other in self.sharing[s] for u in other.users):
            return False  # somebody reads it half filled
        size = size_of(rec, dim)
        if not size:
            return False
        by_time: dict[int, Any] = {p[1] % size: v for p, v in zip(places, values, strict=True) if p}
        if sorted(by_time) != list(range(size)) or len(by_time) != len(values):
            return False
        row = rec.select(dim, 0)
        for v in values:
            if not isinstance(v, Node) or not isinstance(value(v), Tensor):
                return False
            if any(t in self.writes for t in self.storage[v]):
                return False  # it may be changed after it was copied
            if value(v).shape != row.shape or value(v).dtype != rec.dtype or value(v).device != rec.device:
                return False
        with self.graph.inserting_before(writes[-1]):
            rows = [by_time[t] for t in range(size)]
            new = self.graph.call_function(torch.stack, (rows, dim))
        new.meta = {**base.meta, "storage": [_fresh(s, last)]}
        self.storage[new] = new.meta["storage"]
        for other in self.sharing[s]:
            if position[other] > last:
                other.meta["storage"] = [_fresh(s, last)]
        position[new] = last
        for node in writes:
            self.graph.erase_node(node)
        base.replace_all_uses_with(new)
        return True


def _reads(node: Node, s: int, memory: Memory) -> int:
    return sum(s in memory.storage[a] for a in node.all_input_nodes)


def _fresh(s: int, at: int) -> int:
    return hash((s, at)) | 1  # addresses are even
