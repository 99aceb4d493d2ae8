"""The results of the new graph: what shares memory, and what has a gradient, is as in the loop."""

import operator
from typing import Any, cast

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils import _pytree as pytree

from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.graph.memory import memory_of
from snnfast.compiler.graph.nodes import as_leaf, aten, fake_call, overlaps, signature_of, storage_of, tensors_of, value


def separate(emitter: Emitter, output: Node) -> Any:
    """The results of the new graph, as separate as those of the loop.

    Those that share no memory in the loop share none, neither with inputs. Those that need no gradient have none.
    """
    _leave_out_copies(emitter, output)
    shared: dict[int, tuple[Node, int]] = {}  # by memory of the new graph: a node that has it, and its old memory
    for old in emitter.facts.nodes:
        if old.op == "placeholder" and isinstance(value(old), Tensor):
            shared.setdefault(storage_of(value(emitter.get(old))), (old, memory_of(old)[0]))
    now = {memory: storage for storage, (_, memory) in shared.items()}
    copies: dict[Node, Any] = {}

    def result(old: Any, needs_grad: bool) -> Any:
        if not isinstance(old, Node):
            return old
        made = copies.get(old) or emitter.get(old)
        assert signature_of(old) == signature_of(made), f"{made} in place of {old}"
        if not isinstance(value(made), Tensor) or old in copies or old.op == "placeholder":
            return made
        if not needs_grad and emitter.records and value(made).is_floating_point():
            made = copies[old] = emitter.call(aten.detach.default, made)
        memory = memory_of(old)[0]
        by, others = shared.setdefault(storage_of(value(made)), (old, memory))
        if memory != others and value(made).numel() and not _are_parts(made, emitter.get(by)):
            made = copies[old] = emitter.call(aten.clone.default, made)
        elif value(old).is_contiguous() and not value(made).is_contiguous():  # the caller may take a view of it
            made = copies[old] = emitter.call(aten.contiguous.default, made)
        storage = storage_of(value(made))
        if now.setdefault(memory, storage) != storage:
            made = copies[old] = _view_of(emitter, old, now[memory], copies)
        if old.target is as_leaf and made.target is not as_leaf:
            raise RefusedError("it returns a tensor of each step of which it has called requires_grad_()")
        return made

    leaves, spec = pytree.tree_flatten(output.args[0])
    results: dict[int, Any] = {}
    # Views come behind what they are views of.
    for i in sorted(range(len(leaves)), key=lambda i: _source_of(leaves[i]) is not None):
        results[i] = result(leaves[i], output.meta["needs_grad"][i])
    return pytree.tree_unflatten([results[i] for i in range(len(leaves))], spec)


def _view_of(emitter: Emitter, old: Node, storage: int, copies: dict[Node, Any]) -> Node:
    """A view of the old graph, as one of what has a memory in the new graph."""
    made = copies.get(old) or emitter.get(old)
    if storage_of(value(made)) == storage:
        return cast(Node, made)
    source = _source_of(old)
    if source is None:
        raise RefusedError("two of its results share memory in the loop, and would not if it was merged")
    of = _view_of(emitter, source, storage, copies)
    outside = emitter.context
    emitter.switch_to(old.meta["context"])  # a view under no_grad has no gradient
    copied = emitter.graph.node_copy(old, lambda a: of if a is source else emitter.get(a))
    copied.meta["example_value"] = emitter.tried(old, copied)
    emitter.switch_to(outside)
    if storage_of(value(copied)) != storage:
        raise RefusedError("two of its results share memory in the loop, and would not if it was merged")
    return copied


def _leave_out_copies(emitter: Emitter, output: Node) -> None:
    """Leave out copies of stacks that are returned, where nobody else has the memory that they are copied from."""
    old = [n for n in emitter.facts.nodes if n.op == "placeholder"]
    nodes = [emitter.get(n) for n in (*old, *output.all_input_nodes)]
    claimed = {storage_of(t) for n in nodes for t in tensors_of(n)}
    for made in emitter.copies:
        source: Any = made.args[0]
        # What overlaps, as after expand, can't be changed in place: its copy stays.
        if overlaps(value(source)) or storage_of(value(source)) in claimed:
            continue
        claimed.add(storage_of(value(source)))
        before = storage_of(value(made))
        made.replace_all_uses_with(source)
        emitter.in_place_of[made] = source
        for node in emitter.graph.nodes:  # views of the copy are now views of what it was copied from
            if node is not made and any(storage_of(t) == before for t in tensors_of(node)):
                node.meta["example_value"] = fake_call(node.target, node.args, node.kwargs, emitter.mode)


def _source_of(node: Any) -> Node | None:
    """The base of a view in the old graph; ``None`` for any other node."""
    if not isinstance(node, Node) or not isinstance(node.target, OpOverload):
        return None
    memory = memory_of(node)
    shares = (a for a in node.all_input_nodes if isinstance(value(a), Tensor) and memory_of(a) == memory)
    return next(shares, None)


def _are_parts(a: Node, b: Node) -> bool:
    """Whether two nodes are different steps of one tensor, which have no element in common."""
    return bool(
        a.target is operator.getitem
        and b.target is operator.getitem
        and a.args[0] is b.args[0]
        and a.args[0].target is aten.unbind.int  # type: ignore[union-attr]
        and a.args[1] != b.args[1]
    )
