"""Write the new graph: each series becomes one call, and each chain of steps one unroll over time."""

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node, map_arg
from torch.utils import _pytree as pytree

from snnfast._program.run import order_of
from snnfast._unroll.graph import as_function, unroll_steps
from snnfast.compiler.calls import (
    are_alike,
    arguments,
    aten,
    changed,
    fake_call,
    fake_mode_of,
    is_number,
    is_opaque,
    may_alias,
    named,
    signature_of,
    size_of,
    storage_of,
    tensors_of,
    value,
)
from snnfast.compiler.capture import Captured, Chain
from snnfast.compiler.context import Context
from snnfast.compiler.errors import TrialError, UnmergedError
from snnfast.compiler.lower.linear import fuse_linear
from snnfast.compiler.lower.sums import is_sum, terms_of
from snnfast.compiler.memory import memory_of
from snnfast.compiler.passes.dead import remove_unused
from snnfast.compiler.recurrence import Recurrence, Unrolled
from snnfast.compiler.results import separate
from snnfast.compiler.rules import StepCall, by_vmap, rule_for
from snnfast.compiler.series import Group, IndexGroup, Series
from snnfast.compiler.writer import Writer


class Piece(NamedTuple):
    """Consecutive nodes of a merged series, or a single node outside of any."""

    owner: Any  # a group, or (chain, output)
    first: int  # its number in the owner
    nodes: list[Node]


class Emitter(Writer):
    """Writes what becomes of each chain, recurrence, group and single call."""

    def __init__(self, series: Series) -> None:
        nodes = series.captured.nodes
        super().__init__(fake_mode_of([value(node) for node in nodes]), nodes[0].meta["context"])
        self.series = series
        self.captured: Captured = series.captured
        self.new: dict[Node, Any] = {}  # of nodes of the old graph
        self._whole: dict[Any, Node] = {}  # [T, *] of a group, or of an output of a chain
        self._parts: dict[Any, list[Any]] = {}
        self._stacked: dict[tuple[tuple[Node, ...], Context], Node] = {}
        self._calls: dict[Chain | Recurrence, Node] = {}  # that run all steps
        self._results: dict[Chain | Recurrence, dict[int, Node]] = defaultdict(dict)  # of these, by their places
        (output,) = (n for n in nodes if n.op == "output")
        self._leaves = set(output.all_input_nodes)
        self._shown = {memory for n in self._leaves for memory in memory_of(n)}
        self._records = any(n.meta["context"].records for n in nodes)
        self.copies: list[Node] = []  # of stacks that are returned
        self.in_place_of: dict[Any, Node] = {}  # of such copies: what they were copied from
        self.summed: set[Node] = set()  # of the old graph: sums that became one
        self.fused: set[Chain | Recurrence] = set()  # with the linear layer that reads their spikes

    def write(self) -> Graph:
        for vertex in self.series.in_order():
            recurs = isinstance(vertex, Recurrence)
            self.switch_to(vertex.context if recurs else self.series.members(vertex)[0].meta["context"])
            if isinstance(vertex, Chain):
                self._unroll(vertex)
            elif isinstance(vertex, Recurrence):
                self._recur(vertex)
            elif isinstance(vertex, Group):
                self._merge(vertex)
            else:
                self._single(vertex)
        # A call that was tried in vain, or that is not needed, must not count as a reader of an unroll.
        remove_unused(self.graph, self.effects.__contains__)
        for vertex, node in self._calls.items():
            if isinstance(vertex, Recurrence):
                self._choose_outputs(vertex, node)
            elif (spk := self._ask(vertex, node)) is not None and (linear := fuse_linear(self, node, spk)) is not None:
                node.args = (*node.args, *linear)
                self.fused.add(vertex)
        self.graph.lint()
        return self.graph

    # ---- new nodes

    def _copy(self, node: Node) -> Any:
        if node.target is operator.getitem and isinstance(source := self.get(node.args[0]), tuple):  # type: ignore[arg-type]
            return source[node.args[1]]  # type: ignore[index]
        made = self.graph.node_copy(node, self.get)
        of = next((a for a in node.all_input_nodes if any(s in memory_of(a) for s in memory_of(node))), None)
        if is_opaque(node):
            if of is not None and signature_of(of) == signature_of(node):
                now = iter(tensors_of(self.get(of)))
                made.meta["example_value"] = pytree.tree_map_only(Tensor, lambda _: next(now), value(node))
        elif (node.target is operator.getitem and of is not None) or may_alias(node.target):
            # It shares the memory of a tensor of the new graph.
            found = self.tried(node, made)
            made.meta["example_value"] = found
            given = {storage_of(t) for a in made.all_input_nodes for t in tensors_of(a)}
            if of is None and isinstance(found, Tensor) and storage_of(found) in given:
                made = self.call(aten.clone.default, made)  # such as ``contiguous``, where it copied in the loop
        elif isinstance(node.target, OpOverload) and any(map(self._lies_otherwise, node.all_input_nodes)):
            made.meta["example_value"] = self.tried(node, made)  # whose order in memory follows that of the arguments
        as_function(made)
        if node in self.captured.effects:
            self.effects.add(made)
        return made

    def _lies_otherwise(self, node: Node) -> bool:
        """Whether the result of a single step has another order in memory than in the loop."""
        before, now = value(node), self.get(node)
        return isinstance(before, Tensor) and value(now).stride() != before.stride()

    def tried(self, node: Node, made: Node) -> Any:
        """What a copied call returns in the new graph. Where strides differ there, ``view`` becomes ``reshape``."""
        target: Any = made.target
        try:
            return fake_call(target, made.args, made.kwargs, self.mode, self.context.blocks)
        except (RuntimeError, ValueError):
            if target is not aten.view.default or node in self.captured.written:
                raise
        made.target = aten.reshape.default
        return fake_call(aten.reshape.default, made.args, made.kwargs, self.mode, self.context.blocks)

    def get(self, node: Node) -> Any:
        """The node in the new graph of a node in the old graph: the result of a single step."""
        if node in self.new:
            return self.in_place_of.get(self.new[node], self.new[node])
        place = self.series.place(node)
        assert place is not None, f"{node} is needed before it is there"
        return self._part(*place)

    def _part(self, owner: Any, number: int) -> Any:
        if isinstance(owner, tuple):
            chain, output = owner
            state = output - 1 + chain.neuron.has_spike_feedback
            if state >= 0 and number == len(chain.steps) - 1:
                # A layer may hold it and detach it in place, which PyTorch forbids for a slice of the record.
                last, dtype = self._result(chain, _last(chain, state)), value(chain.steps[-1])[output].dtype
                return last if value(last).dtype == dtype else self.behind(last, aten.to.dtype, last, dtype)
        elif owner.recurrence is not None and number == owner.recurrence.steps - 1:
            found: Recurrence = owner.recurrence
            state = next((i for i, (s, _) in enumerate(found.states) if s is owner), None)
            if state is not None and value(owner.first).dtype != torch.bool:
                return self._result(found, len(found.outputs()) + state)
        return self._unbound(owner)[number]

    def _unbound(self, owner: Any) -> list[Any]:
        """All steps by one unbind, whose gradient is one stack. That of each index would be a tensor of T steps."""
        if owner not in self._parts:
            whole = self.whole(owner)
            several = value(whole)
            if isinstance(several, Tensor):
                self._parts[owner] = self._taken_apart(self.behind(whole, aten.unbind.int, whole, 0))
            else:
                outputs = [self.behind(part, aten.unbind.int, part, 0) for part in self._taken_apart(whole)]
                self._parts[owner] = list(zip(*map(self._taken_apart, outputs), strict=True))
        return self._parts[owner]

    def _taken_apart(self, results: Node) -> list[Node]:
        # In their own context: whether a step has a gradient must not depend on its first reader.
        return [self.behind(results, operator.getitem, results, i) for i in range(len(value(results)))]

    def whole(self, owner: Any) -> Node:
        """``[T, *]`` of a group, or of an output of a chain."""
        if owner not in self._whole and isinstance(owner, Group):
            assert owner.recurrence is not None
            made = self._result(owner.recurrence, owner.recurrence.outputs().index(owner))
            bools = value(owner.first).dtype == torch.bool
            self._whole[owner] = self.behind(made, aten.to.dtype, made, torch.bool) if bools else made
        elif owner not in self._whole:
            chain, output = owner
            state = output - 1 + chain.neuron.has_spike_feedback
            self._whole[owner] = self._result(chain, _SPIKES if output == 0 else _record(state))
        return self._whole[owner]

    def _result(self, vertex: Chain | Recurrence, place: int) -> Node:
        """A result of the call that runs all steps, directly behind it."""
        results = self._results[vertex]
        if place not in results:
            results[place] = self.behind(self._calls[vertex], operator.getitem, self._calls[vertex], place)
        return results[place]

    # ---- series

    def over_time(self, nodes: list[Node]) -> Node:
        """``[T, *]`` of one node per time step."""
        key = tuple(nodes), self.context
        if key in self._stacked:
            return self._stacked[key]
        pieces: list[Node] = []
        rest: list[Node] = []
        for piece in self.pieces(nodes):
            count = len(piece.nodes)
            if piece.owner is None or (count == 1 and len(nodes) > 1):
                rest += piece.nodes
                continue
            if rest:
                pieces.append(self.call(aten.stack.default, [self.get(n) for n in rest]))
                rest = []
            whole = self.whole(piece.owner)
            if count < self._steps(piece.owner):
                whole = self.call(operator.getitem, whole, slice(piece.first, piece.first + count))
            pieces.append(whole)
        if rest:
            pieces.append(self.call(aten.stack.default, [self.get(n) for n in rest]))
        made = pieces[0] if len(pieces) == 1 else self.call(aten.cat.default, pieces)
        if not any(n in self.captured.written for n in nodes):
            self._stacked[key] = made
        return made

    def pieces(self, nodes: list[Node]) -> list[Piece]:
        """Parts of merged series, in order."""
        found: list[Piece] = []
        for node in nodes:
            owner, number = self.series.place(node) or (None, 0)
            last = found[-1] if found else None
            if (
                last is not None
                and owner is not None
                and last.owner == owner
                and number == last.first + len(last.nodes)
            ):
                last.nodes.append(node)
            else:
                found.append(Piece(owner, number, [node]))
        return found

    # ---- groups

    def _merge(self, group: Group) -> None:
        merged = self._of_index(group) if isinstance(group, IndexGroup) else self._of_calls(group)
        if merged is not None:
            self._whole[group] = merged
            if group.first in self.captured.effects:
                self.effects.add(merged)
            if isinstance(group, IndexGroup):  # the caller may change a step in place, which is a view as in the loop
                self.new |= {node: self._copy(node) for node in group.nodes if node in self._leaves}
            return
        for node in group.nodes:
            self.new[node] = self._copy(node)

    def _of_index(self, group: IndexGroup) -> Node | None:
        base, places, dim = self.get(group.base), group.places, group.dim
        made: Node = base
        stride = places[1] - places[0]
        regular = all(b - a == stride for a, b in pairwise(places))
        if regular and stride > 0:
            stop = places[-1] + 1
            if places[0] != 0 or stride != 1 or stop != size_of(value(base), dim):
                made = self.call(aten.slice.Tensor, base, dim, places[0], stop, stride)
        elif not self.context.records and self._records:
            # Under no_grad, a view of what needs a gradient says that it needs one, too; a copy does not.
            group.reason = "its steps are in no regular order, under no_grad"
            return None
        elif regular and stride == -1:
            made = self.call(aten.slice.Tensor, base, dim, places[-1], places[0] + 1)
            made = self.call(aten.flip.default, made, [dim])
        else:
            made = self.call(operator.getitem, base, (*(slice(None),) * dim, list(places)))
        if dim != 0:
            made = self.call(aten.movedim.int, made, dim, 0)
        if made is base and (base.meta["context"] != self.context or not self.context.records):
            made = self.call(operator.getitem, base, slice(None))  # whose steps have gradients as in this context
        return made

    def _of_calls(self, group: Group) -> Node | None:
        steps, first = len(group.nodes), group.first
        varies: set[Node] = set()
        given: list[Any] = [pytree.tree_flatten((n.args, n.kwargs)) for n in group.nodes]
        made: list[Any] = []
        updated = {a for n in group.nodes for a in changed(n)}
        for column in zip(*(leaves for leaves, _ in given), strict=True):
            if all(is_number(a) for a in column) and any(a != column[0] for a in column):
                found = value(first)
                numbers = self.call(torch.tensor, list(column), dtype=found.dtype, device=found.device)
                made.append(self.call(aten.view.default, numbers, (steps, *(1,) * found.dim())))
                varies.add(made[-1])
            elif not isinstance(column[0], Node):
                made.append(map_arg(column[0], self.get))
            elif all(a is column[0] for a in column):
                made.append(self.get(column[0]))
            elif updated.issuperset(column):
                made.append([self.get(a) for a in column])
            elif not are_alike(column):
                group.reason = "its inputs have other shapes at other steps"
                return None
            elif self.context.records and any(n in self.captured.written_untracked for n in column):
                # In the loop, backward reads what was written since. A stack would keep the old numbers.
                group.reason = "its inputs are changed in place, through .data"
                return None
            elif not all(isinstance(value(n), Tensor) for n in column) and not self._one_owner(column):
                group.reason = "it takes several results of a call that is not merged"
                return None
            else:
                made.append(self.over_time(list(column)))
                varies.add(made[-1])
        if not varies:  # random numbers, anew at every step
            i = next((i for i, a in enumerate(made) if isinstance(a, Node) and isinstance(value(a), Tensor)), None)
            if i is None:
                group.reason = "none of its inputs varies with time"
                return None
            made[i] = self.call(aten.expand.default, made[i], (steps, *(-1,) * value(made[i]).dim()))
            varies.add(made[i])
        args, kwargs = pytree.tree_unflatten(made, given[0][1])
        target: Any = first.target
        if target is operator.getitem:  # one of several results
            return self.call(operator.getitem, *args)
        ways: list[Callable[[], Node | None]] = [lambda: by_vmap(self, target, args, kwargs, varies)]
        if (rule := rule_for(target)) is not None:
            ways.insert(0, lambda: rule(StepCall(self.call, first, named(target, args, kwargs), varies, steps)))
        why = ""
        for way in ways:
            try:
                merged = way()
                if merged is not None and (why := self._unlike(group, merged)) == "":
                    return merged
            except UnmergedError as error:
                group.reason = str(error)
                return None
            except TrialError as error:
                why = str(error)
        group.reason = f"torch.vmap can't merge it ({why})"
        return None

    def _one_owner(self, column: tuple[Node, ...]) -> bool:
        pieces = self.pieces(list(column))
        return len(pieces) == 1 and pieces[0].owner is not None and len(column) == self._steps(pieces[0].owner)

    def _steps(self, owner: Any) -> int:
        if isinstance(owner, tuple):
            return len(owner[0].steps)
        return owner.recurrence.steps if owner.recurrence else len(owner.nodes)

    def _unlike(self, group: Group, merged: Node) -> str:
        """How the results of a merged call differ from T results of the single call; empty if they do not."""
        wanted, found = tensors_of(group.first), tensors_of(merged)
        if len(wanted) != len(found):
            return "another number of results"
        for a, b in zip(wanted, found, strict=True):
            if a.dtype != b.dtype or a.device != b.device:
                return f"{b.dtype} in place of {a.dtype}"
            if list(map(str, b.shape)) != [str(len(group.nodes)), *map(str, a.shape)]:
                return f"steps of shape {tuple(b.shape[1:])} in place of {tuple(a.shape)}"
        return ""

    # ---- chains

    def _unroll(self, chain: Chain) -> None:
        currents = chain.currents()
        constant = all(n is currents[0] for n in currents)
        x = self.get(currents[0]) if constant else self.over_time(currents)
        first: Any = chain.steps[0].args
        tensors = map_arg([*chain.states(0), *chain.parameters()], self.get)
        steps = len(currents) if constant else None
        # It returns all states of every step until `_ask` knows which of them are read.
        node = self.call(unroll_steps, first[0], x, tensors, *first[3:], steps, chain.neuron.every_state, False)
        self._calls[chain] = node

    def _ask(self, chain: Chain, node: Node) -> Node | None:
        """Make an unroll return only what is read. Return the spikes of every step if they are read."""
        used = {place: made for place, made in self._results[chain].items() if made.users}
        record = sum(1 << i for i in range(len(chain.neuron.states)) if _record(i) in used)
        spk = used.get(_SPIKES)
        count = None if spk is None else _count_of(spk)
        node.args = (*node.args[:-2], record, count is not None)
        if spk is None or count is None:
            return spk
        count.replace_all_uses_with(spk)
        self.graph.erase_node(count)
        return None

    # ---- recurrences

    def _recur(self, recurrence: Recurrence) -> None:
        series = [self._with_rank(self.over_time(nodes), len(recurrence.shape)) for nodes in recurrence.series]
        states = [self.get(n) if isinstance(n, Node) else n for _, n in recurrence.states]
        given = [*series, *states, *map(self.get, recurrence.constants)]
        dtype = recurrence.dtype
        other = [isinstance(a, Node) and value(a).dtype != dtype for a in given]
        given = [self.call(aten.to.dtype, a, dtype) if b else a for a, b in zip(given, other, strict=True)]
        node = self.graph.call_function(Unrolled(recurrence, recurrence.outputs()), tuple(given))
        shape = recurrence.shape
        in_order = series and not recurrence.between
        order: Sequence[int] | None = order_of(value(given[0]), shape) if in_order else None
        order = order or range(len(shape))
        step, record = (tuple(shape), tuple(order)), ((recurrence.steps, *shape), (0, *(1 + d for d in order)))
        options = {"dtype": recurrence.dtype, "device": recurrence.device}
        wanted = [record for _ in recurrence.outputs()] + [step for _ in states]
        found = [fake_call(torch.empty_permuted, args, options, self.mode) for args in wanted]
        node.meta |= {"example_value": tuple(found), "context": self.context}
        self._calls[recurrence] = node

    def _with_rank(self, whole: Node, rank: int) -> Node:
        """Inputs of all steps, with the dimensions of a step; a program broadcasts them when it runs."""
        for _ in range(rank + 1 - value(whole).dim()):
            whole = self.call(aten.unsqueeze.default, whole, 1)
        return whole

    def _choose_outputs(self, recurrence: Recurrence, node: Node) -> None:
        """Make a program return only what is read."""
        outputs = recurrence.outputs()
        places: list[Any] = [user.args[1] for user in node.users if user.users]
        chosen = sorted(i for i in places if i < len(outputs))
        for user in list(node.users):
            place: Any = user.args[1]
            if not user.users:
                self.graph.erase_node(user)
            elif place < len(outputs):
                user.args = (node, chosen.index(place))
            else:
                user.args = (node, place - len(outputs) + len(chosen))
        made = node.target = Unrolled(recurrence, [outputs[i] for i in chosen])
        if recurrence.between:
            return
        binary = made.program.binary(recurrence.dtype, len(recurrence.shape))
        users: dict[Any, Any] = {user: user.args[1] for user in node.users if user.args[1] in range(len(binary))}
        for user, place in sorted(users.items(), key=lambda entry: not binary[entry[1]]):  # bits gain the most
            linear = fuse_linear(self, node, user)
            if linear is not None:
                *weights, dims = linear
                node.args = (*node.args, *weights)
                made.output, made.dims = place, dims
                self.fused.add(recurrence)
                return

    # ---- everything else

    def _single(self, node: Node) -> None:
        if node.op == "output":
            self.graph.output(separate(self, node))
            return
        if self.series.place(node) is not None:
            return  # a result of a chain, made when somebody asks
        made = self._stack(node) if node not in self.captured.written else None
        if made is None:
            made = self._sum(node)
        if made is None:
            made = self._copy(node)
        self.new[node] = made

    def _stack(self, node: Node) -> Node | None:
        """``torch.stack`` or ``torch.cat`` of a series."""
        if node.target not in (aten.stack.default, aten.cat.default, aten.concat.default):
            return None
        nodes, dim = arguments(node)["tensors"], arguments(node)["dim"]
        if len(nodes) < 2 or len(set(nodes)) < len(nodes) or not value(node).dim():
            return None
        pieces = self.pieces(list(nodes))
        if 2 * len(pieces) > len(nodes) or not are_alike(nodes):  # cat takes several sizes
            return None
        whole = self.over_time(list(nodes))
        if value(whole).dtype != value(node).dtype:
            return None
        dim %= value(node).dim()
        if dim != 0:
            whole = self.call(aten.movedim.int, whole, 0, dim)
        if node.target is not aten.stack.default:
            whole = self.call(aten.flatten.using_ints, whole, dim, dim + 1)
        # The loop makes a new tensor: without a gradient under no_grad, and with its own memory if it is returned.
        if not self.context.records:
            whole = self.call(aten.detach.default, whole)
        if any(memory in self._shown for memory in memory_of(node)):
            self.copies.append(self.call(aten.clone.default, whole))
            return self.copies[-1]
        return whole

    def _sum(self, node: Node) -> Node | None:
        """A sum that grew in the loop, as one call."""
        terms, parts = terms_of(node, self._may_be_inside)
        if len(terms) < 2:
            return None
        by_owner: dict[Any, list[Node]] = {}
        others = []
        for term in terms:
            place = self.series.place(term) if isinstance(term, Node) else None
            if place is None:
                others.append(term)
            else:
                by_owner.setdefault(place[0], []).append(term)
        dtype = value(node).dtype
        sums: list[Any] = []
        for members in by_owner.values():
            if len(members) < 2 or len(set(members)) < len(members):
                others += members
                continue
            whole = self.over_time(members)
            asked = {} if value(whole).dtype == dtype else {"dtype": dtype}
            sums.append(self.call(aten.sum.dim_IntList, whole, [0], **asked))
        if not sums:
            return None
        total: Any = None
        for term in [self.get(t) if isinstance(t, Node) else t for t in others if t != 0 or isinstance(t, Node)] + sums:
            total = term if total is None else self.call(aten.add.Tensor, total, term)
        if value(total).shape != value(node).shape or value(total).dtype != dtype:
            return None
        self.summed.update(parts)
        return total  # type: ignore[no-any-return]

    def _may_be_inside(self, node: Node) -> bool:
        return self.series.place(node) is None and node not in self.captured.written


# The places of the results of an unroll (see ``unroll_steps``).

_SPIKES = 0


def _record(state: int) -> int:
    return 1 + state


def _last(chain: Chain, state: int) -> int:
    return 1 + len(chain.neuron.states) + state


def _count_of(spk: Node) -> Node | None:
    """The sum over time of spikes, if nothing else reads them: an unroll can return it in their place."""
    reader = next(iter(spk.users))
    if len(spk.users) > 1 or not is_sum(reader) or value(reader).dtype != value(spk).dtype:
        return None
    return reader if reader.meta["context"].records == spk.meta["context"].records else None
