"""Write the new graph: each series becomes one call, and each chain of steps one unroll over time."""

import operator
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node, map_arg
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from snnfast._unroll.graph import as_function, unroll_steps
from snnfast.compiler.capture import Captured, Chain
from snnfast.compiler.nodes import (
    are_alike,
    arguments,
    aten,
    changed,
    fake_call,
    fake_mode_of,
    is_number,
    is_opaque,
    may_alias,
    memory_of,
    named,
    remove_unused,
    signature_of,
    size_of,
    storage_of,
    tensors_of,
    value,
)
from snnfast.compiler.normal import ENTER_INFERENCE, Context
from snnfast.compiler.peephole import fuse_linear, is_sum, terms_of
from snnfast.compiler.recurrence import Recurrence, Unrolled
from snnfast.compiler.report import RefusedError
from snnfast.compiler.rules import StepCall, UnmergedError, by_vmap, rule_for
from snnfast.compiler.series import Group, IndexGroup, Series


class Piece(NamedTuple):
    """Consecutive nodes of a merged series, or a single node outside of any."""

    owner: Any  # a group, or (chain, output)
    first: int  # its number in the owner
    nodes: list[Node]


class TrialError(Exception):
    """PyTorch does not take the arguments of a call. The message is its own, one line."""


class Emitter:
    """The new graph, while it is written."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.captured: Captured = series.captured
        self.graph = Graph()
        self._mode = fake_mode_of([value(node) for node in self.captured.nodes])
        self.new: dict[Node, Any] = {}  # of nodes of the old graph
        self._whole: dict[Any, Node] = {}  # [T, *] of a group, or of an output of a chain
        self._parts: dict[Any, list[Any]] = {}
        self._stacked: dict[tuple[tuple[Node, ...], Context], Node] = {}
        self._unrolled: dict[Chain, tuple[Node, dict[int, Node]]] = {}
        self._recurring: dict[Recurrence, Node] = {}
        self._context: Context = self.captured.nodes[0].meta["context"]  # of what is written now
        self._entered: list[Node] = []  # the nodes that entered its blocks
        (output,) = (n for n in self.captured.nodes if n.op == "output")
        self._leaves = set(output.all_input_nodes)
        self._shown = {memory for n in self._leaves for memory in memory_of(n)}
        self._records = any(n.meta["context"].records for n in self.captured.nodes)
        self._copies: list[Node] = []  # of stacks that are returned
        self._in_place_of: dict[Any, Node] = {}  # of such copies: what they were copied from
        self._unbinds: set[Node] = set()  # of all steps of a series
        self.effects: set[Node] = set()
        self.summed: set[Node] = set()  # of the old graph: sums that became one
        self.fused: set[Chain | Recurrence] = set()  # with the linear layer that reads their spikes

    def write(self) -> Graph:
        for vertex in self.series.in_order():
            recurs = isinstance(vertex, Recurrence)
            self._switch_to(vertex.context if recurs else self.series.members(vertex)[0].meta["context"])
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
        for chain, (node, _) in self._unrolled.items():
            spk = self._ask(chain)
            linear = None if spk is None else fuse_linear(self.graph, node, spk, self.effects, self.call)
            if linear is not None:
                node.args = (*node.args, *linear)
                self.fused.add(chain)
        for recurrence, node in self._recurring.items():
            self._choose_outputs(recurrence, node)
        self._select()
        self.graph.lint()
        return self.graph

    # ---- grad mode and autocast

    def _switch_to(self, context: Context) -> None:
        """Let what is written from here on run under a context."""
        if context == self._context:
            return
        now, wanted = self._context.blocks, context.blocks
        common = next((i for i, (a, b) in enumerate(zip(now, wanted)) if a != b), min(len(now), len(wanted)))  # noqa: B905
        for _, _, leave in reversed(now[common:]):
            self._effect(leave, self._entered.pop())
        for enter, given, _ in wanted[common:]:
            self._entered.append(self._effect(enter, *given))
        # Inference mode has a grad mode of its own, and leaves that of the place where it was entered.
        inference = any(enter is ENTER_INFERENCE for enter, *_ in (*now[common:], *wanted[common:]))
        if inference or context.grad != self._context.grad:
            self._effect(torch._C._set_grad_enabled, context.grad)
        self._context = context

    def _effect(self, target: Any, *args: Any) -> Node:
        node = self.graph.call_function(target, args)
        self.effects.add(node)
        return node

    # ---- new nodes

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Append a call, and run it on fake tensors to know its results.

        Raises:
            TrialError: PyTorch does not take these arguments.
        """
        found = self._try(target, args, kwargs)
        node = self.graph.call_function(target, args, kwargs)
        node.meta |= {"example_value": found, "context": self._context}
        return node

    def _try(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            return fake_call(target, args, kwargs, self._mode, self._context.blocks)
        except Exception as error:
            raise TrialError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error

    def _trace(self, function: Any, nodes: list[Node]) -> Graph:
        """The ATen calls of a function of nodes."""
        return cast(Graph, self._try(make_fx(function), nodes, {}).graph)

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
            # Now it has memory of the new graph.
            found = self._tried(node, made)
            made.meta["example_value"] = found
            given = {storage_of(t) for a in made.all_input_nodes for t in tensors_of(a)}
            if of is None and isinstance(found, Tensor) and storage_of(found) in given:
                made = self.call(aten.clone.default, made)  # such as ``contiguous`` of what was not, and now is
        as_function(made)
        if node in self.captured.effects:
            self.effects.add(made)
        return made

    def _tried(self, node: Node, made: Node) -> Any:
        """What a copied call returns in the new graph. Strides may differ there, so that a view has to copy."""
        target: Any = made.target
        try:
            return fake_call(target, made.args, made.kwargs, self._mode, self._context.blocks)
        except (RuntimeError, ValueError):
            if target is not aten.view.default or node in self.captured.written:
                raise
        made.target = aten.reshape.default
        return fake_call(aten.reshape.default, made.args, made.kwargs, self._mode, self._context.blocks)

    def get(self, node: Node) -> Any:
        """The node in the new graph of a node in the old graph: the result of a single step."""
        if node in self.new:
            return self._in_place_of.get(self.new[node], self.new[node])
        place = self.series.place(node)
        assert place is not None, f"{node} is needed before it is there"
        return self._part(*place)

    def _part(self, owner: Any, number: int) -> Any:
        if isinstance(owner, tuple):
            chain, output = owner
            state = output - 1 + chain.neuron.has_spike_feedback
            if state >= 0 and number == len(chain.steps) - 1:
                # Not a slice of the record, which could not be detached in place: a layer may hold it.
                last, dtype = self._output(chain, _last(chain, state)), value(chain.steps[-1])[output].dtype
                return last if value(last).dtype == dtype else self._behind(last, aten.to.dtype, last, dtype)
        elif owner.recurrence is not None and number == owner.recurrence.steps - 1:
            found: Recurrence = owner.recurrence
            state = next((i for i, (s, _) in enumerate(found.states) if s is owner), None)
            if state is not None and value(owner.first).dtype != torch.bool:
                return self._last(found, state)
        return self._unbound(owner)[number]

    def _unbound(self, owner: Any) -> list[Any]:
        """All steps, by one unbind: its gradient is one stack. That of an index would fill T steps each time."""
        if owner not in self._parts:
            whole = self.whole(owner)
            if isinstance(value(whole), Tensor):
                self._parts[owner] = self._unbind(whole)
            else:
                count = len(value(whole))
                outputs = [self._unbind(self._behind(whole, operator.getitem, whole, i)) for i in range(count)]
                self._parts[owner] = list(zip(*outputs, strict=True))
        return self._parts[owner]

    def _unbind(self, whole: Node) -> list[Node]:
        # Where the whole was made: its steps have gradients wherever their first reader is.
        node = parts = self._behind(whole, aten.unbind.int, whole, 0)
        self._unbinds.add(parts)
        found = []
        for k in range(len(value(parts))):
            node = self._behind(node, operator.getitem, parts, k)
            found.append(node)
        return found

    def _select(self) -> None:
        """Take a step by itself where nobody reads another, and it is asked for its shape alone."""
        for parts in self.graph.find_nodes(op="call_function", target=aten.unbind.int):
            users = [user for user in parts.users if user.users]
            if parts in self._unbinds and len(users) == 1 and all(map(_asks_for_shape, users[0].users)):
                (part,) = users
                for user in list(parts.users):
                    if user is not part:
                        self.graph.erase_node(user)
                part.target, part.args = aten.select.int, (parts.args[0], 0, part.args[1])
                self.graph.erase_node(parts)

    def _behind(self, place: Node, target: Any, *args: Any) -> Node:
        """Insert a call directly behind a node of the new graph, in its context."""
        if place.op == "placeholder":
            place = next(reversed([n for n in self.graph.nodes if n.op == "placeholder"]))
        with self.graph.inserting_after(place):
            made = self.call(target, *args)
        made.meta["context"] = place.meta["context"]
        return made

    def whole(self, owner: Any) -> Node:
        if owner not in self._whole and isinstance(owner, Group):
            assert owner.recurrence is not None
            node, place = self._recurring[owner.recurrence], owner.recurrence.outputs().index(owner)
            made = self._behind(node, operator.getitem, node, place)
            if value(owner.first).dtype == torch.bool:
                made = self._behind(made, aten.to.dtype, made, torch.bool)
            self._whole[owner] = made
        if owner not in self._whole:
            chain, output = owner
            state = output - 1 + chain.neuron.has_spike_feedback
            self._whole[owner] = self._output(chain, _SPIKES if output == 0 else _record(state))
        return self._whole[owner]

    def _last(self, recurrence: Recurrence, state: int) -> Node:
        """A state after the last step."""
        key = recurrence, state
        if key not in self._whole:
            node = self._recurring[recurrence]
            self._whole[key] = self._behind(node, operator.getitem, node, len(recurrence.outputs()) + state)
        return self._whole[key]

    # ---- series

    def over_time(self, nodes: list[Node]) -> Node:
        """``[T, *]`` of one node per time step."""
        key = tuple(nodes), self._context
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
            if isinstance(group, IndexGroup):  # returned, each is the view that it is in the loop, which may be changed
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
        elif not self._context.records and self._records:
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
        if made is base and (base.meta["context"] != self._context or not self._context.records):
            made = self.call(operator.getitem, base, slice(None))  # a view of this context, whose steps are of it, too
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
            elif self._context.records and any(n in self.captured.written_untracked for n in column):
                # Backward reads what was written since. A stack of the inputs would keep what they were.
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
        if first.target is operator.getitem:  # one of several results
            return self.call(operator.getitem, *args)
        why = "no rule"
        for make in (self._by_rule, self._by_vmap):
            try:
                merged = make(first, tuple(args), dict(kwargs), varies, steps)
                if merged is not None and (why := self._unlike(group, merged)) == "":
                    return merged
            except UnmergedError as error:
                group.reason = str(error)
                return None
            except TrialError as error:
                why = str(error)
        group.reason = f"torch.vmap can't merge it ({why})"
        return None

    def _by_rule(self, first: Node, args: Any, kwargs: Any, varies: set[Node], steps: int) -> Node | None:
        found, target = rule_for(first.target), first.target
        if found is None or not isinstance(target, OpOverload):
            return None
        return found(StepCall(self.call, first, named(target, args, kwargs), varies, steps))

    def _by_vmap(self, first: Node, args: Any, kwargs: Any, varies: set[Node], steps: int) -> Node:
        return by_vmap(self.call, self._trace, first.target, args, kwargs, varies)

    def _one_owner(self, column: tuple[Node, ...]) -> bool:
        pieces = self.pieces(list(column))
        return len(pieces) == 1 and pieces[0].owner is not None and len(column) == self._steps(pieces[0].owner)

    def _steps(self, owner: Any) -> int:
        if isinstance(owner, tuple):
            return len(owner[0].steps)
        return owner.recurrence.steps if owner.recurrence else len(owner.nodes)

    def _unlike(self, group: Group, merged: Node) -> str:
        """The results of a merged call do not have the shapes of T results of the single call."""
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
        # Request all outputs; `_ask` prunes.
        node = self.call(unroll_steps, first[0], x, tensors, *first[3:], steps, chain.neuron.every_state, False)
        self._unrolled[chain] = node, {}

    def _output(self, chain: Chain, place: int) -> Node:
        """A result of an unroll."""
        node, outputs = self._unrolled[chain]
        if place not in outputs:
            # Directly behind the unroll, wherever its first reader is.
            outputs[place] = self._behind(next(reversed(outputs.values()), node), operator.getitem, node, place)
        return outputs[place]

    def _ask(self, chain: Chain) -> Node | None:
        """Make an unroll return only what is read. Return the spikes of every step if they are read."""
        node, outputs = self._unrolled[chain]
        used = {place: made for place, made in outputs.items() if made.users}
        record = sum(1 << i for i in range(len(chain.neuron.states)) if _record(i) in used)
        spk = used.get(_SPIKES)
        reduce = spk is not None and all(is_sum(u) and value(u).dtype == value(spk).dtype for u in spk.users)
        if reduce:
            self._become_sums(spk)
        node.args = (*node.args[:-2], record, reduce)
        return None if reduce else spk

    def _become_sums(self, spk: Any) -> None:
        """Let the sums over time of an unroll's spikes be its result. One may be that itself, each other is a copy."""
        direct = next((u for u in spk.users if u.meta["context"].records == spk.meta["context"].records), None)
        for user in list(spk.users):
            if user is direct:
                continue
            with self.graph.inserting_before(user):
                copied = self.graph.call_function(aten.clone.default, (spk,))
            copied.meta = dict(user.meta)
            user.replace_all_uses_with(copied)
            self.graph.erase_node(user)
        if direct is not None:
            direct.replace_all_uses_with(spk)
            self.graph.erase_node(direct)

    # ---- recurrences

    def _recur(self, recurrence: Recurrence) -> None:
        series = [self._with_rank(self.over_time(nodes), len(recurrence.shape)) for nodes in recurrence.series]
        states = [self.get(n) if isinstance(n, Node) else n for _, n in recurrence.states]
        given = [*series, *states, *map(self.get, recurrence.constants)]
        is_bool = [isinstance(a, Node) and value(a).dtype == torch.bool for a in given]
        given = [self.call(aten.to.dtype, a, recurrence.dtype) if b else a for a, b in zip(given, is_bool, strict=True)]
        node = self.graph.call_function(Unrolled(recurrence, recurrence.outputs()), tuple(given))
        shape, shapes = recurrence.shape, []
        shapes = [(recurrence.steps, *shape) for _ in recurrence.outputs()] + [tuple(shape) for _ in states]
        options = {"dtype": recurrence.dtype, "device": recurrence.device}
        found = [fake_call(torch.empty, (s,), options, self._mode) for s in shapes]
        node.meta |= {"example_value": tuple(found), "context": self._context}
        self._recurring[recurrence] = node

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
        binary = made.program.binary(recurrence.dtype, len(recurrence.shape))
        users: dict[Any, Any] = {user: user.args[1] for user in node.users if user.args[1] in range(len(binary))}
        for user, place in sorted(users.items(), key=lambda entry: not binary[entry[1]]):  # bits gain the most
            linear = fuse_linear(self.graph, node, user, self.effects, self.call)
            if linear is not None:
                *weights, dims = linear
                node.args = (*node.args, *weights)
                made.output, made.dims = place, dims
                self.fused.add(recurrence)
                return

    # ---- everything else

    def _single(self, node: Node) -> None:
        if node.op == "output":
            self.graph.output(self._separate(node))
            return
        if self.series.place(node) is not None:
            return  # a result of a chain, made when somebody asks
        made = self._stack(node) if node not in self.captured.written else None
        if made is None:
            made = self._sum(node)
        if made is None:
            made = self._copy(node)
        self.new[node] = made

    def _separate(self, output: Node) -> Any:
        """The results of the new graph, as separate as those of the loop.

        Those that share no memory in the loop share none, neither with inputs. Those that need no gradient have none.
        """
        self._settle_copies(output)
        shared: dict[int, tuple[Node, int]] = {}  # by memory of the new graph: a node that has it, and its old memory
        for old in self.captured.nodes:
            if old.op == "placeholder" and isinstance(value(old), Tensor):
                shared.setdefault(storage_of(value(self.get(old))), (old, memory_of(old)[0]))
        now = {memory: storage for storage, (_, memory) in shared.items()}
        copies: dict[Node, Any] = {}

        def separate(old: Any, needs_grad: bool) -> Any:
            if not isinstance(old, Node):
                return old
            made = copies.get(old) or self.get(old)
            assert signature_of(old) == signature_of(made), f"{made} in place of {old}"
            if not isinstance(value(made), Tensor) or old in copies or old.op == "placeholder":
                return made
            if not needs_grad and made.meta["context"].records and value(made).is_floating_point():
                made = copies[old] = self.call(aten.detach.default, made)
            (memory, *_), storage = memory_of(old), storage_of(value(made))
            by, others = shared.setdefault(storage, (old, memory))
            if memory != others and value(made).numel() and not _are_parts(made, self.get(by)):
                made = copies[old] = self.call(aten.clone.default, made)
                storage = storage_of(value(made))
            if now.setdefault(memory, storage) != storage:
                made = copies[old] = self._view_of(old, now[memory], copies)
            return made

        leaves, spec = pytree.tree_flatten(output.args[0])
        results: dict[int, Any] = {}
        # Views come behind what they are views of.
        for i in sorted(range(len(leaves)), key=lambda i: _source_of(leaves[i]) is not None):
            results[i] = separate(leaves[i], output.meta["needs_grad"][i])
        return pytree.tree_unflatten([results[i] for i in range(len(leaves))], spec)

    def _view_of(self, old: Node, storage: int, copies: dict[Node, Any]) -> Node:
        """A view of the old graph, as one of what has a memory in the new graph."""
        made = copies.get(old) or self.get(old)
        if storage_of(value(made)) == storage:
            return cast(Node, made)
        source = _source_of(old)
        if source is None:
            raise RefusedError("two of its results share memory in the loop, and would not if it was merged")
        of = self._view_of(source, storage, copies)
        outside = self._context
        self._switch_to(old.meta["context"])  # a view under no_grad has no gradient
        copied = self.graph.node_copy(old, lambda a: of if a is source else self.get(a))
        copied.meta["example_value"] = self._tried(old, copied)
        self._switch_to(outside)
        if storage_of(value(copied)) != storage:
            raise RefusedError("two of its results share memory in the loop, and would not if it was merged")
        return copied

    def _settle_copies(self, output: Node) -> None:
        """Leave out copies of stacks that are returned, where nobody else has the memory that they are copied from."""
        old = [n for n in self.captured.nodes if n.op == "placeholder"]
        nodes = [self.get(n) for n in (*old, *output.all_input_nodes)]
        claimed = {storage_of(t) for n in nodes for t in tensors_of(n)}
        for made in self._copies:
            source: Any = made.args[0]
            t = value(source)
            # A tensor whose elements share memory, as after expand, can't be changed in place: its copy stays.
            overlaps = any(step == 0 and n != 1 for step, n in zip(t.stride(), t.shape, strict=True))
            if overlaps or storage_of(value(source)) in claimed:
                continue
            claimed.add(storage_of(value(source)))
            before = storage_of(value(made))
            made.replace_all_uses_with(source)
            self._in_place_of[made] = source
            for node in self.graph.nodes:  # views of the copy are now views of what it was copied from
                if node is not made and any(storage_of(t) == before for t in tensors_of(node)):
                    node.meta["example_value"] = fake_call(node.target, node.args, node.kwargs, self._mode)

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
        # In the loop it is a new tensor. So it has no gradient under no_grad; and if it is returned, its own memory.
        if not self._context.records:
            whole = self.call(aten.detach.default, whole)
        if any(memory in self._shown for memory in memory_of(node)):
            self._copies.append(self.call(aten.clone.default, whole))
            return self._copies[-1]
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


def _asks_for_shape(node: Node) -> bool:
    return node.target in (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)


def _source_of(node: Any) -> Node | None:
    """Of a view in the old graph: what it is a view of."""
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
