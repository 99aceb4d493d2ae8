"""The graph of a loop as ATen calls: one spelling for each call, and a schema that tells what it does.

The program spells its calls as it likes: ``x.sum(axis=0)``, ``torch.sum(x, dim=0)``. Here they run on fake
tensors and are recorded one level below, as PyTorch's dispatcher sees them before autograd:
``aten.sum.dim_IntList(x, [0])``. The schema and the tags of such a call tell which tensors it changes, whether it is
random, and what its arguments are called. Grad mode and autocast are no calls of the new graph: each node knows its
own (:class:`Context`).
"""

import contextlib
import operator
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    make_fx,
    track_tensor_tree,
)
from torch.utils import _pytree as pytree

from snnfast._images.choice import NODES
from snnfast._unroll.graph import of_step
from snnfast.compiler.errors import RefusedError
from snnfast.compiler.graph.context import BLOCKS, ENTER_INFERENCE, Context
from snnfast.compiler.graph.nodes import (
    arguments,
    as_leaf,
    changed,
    fake_mode_of,
    is_step,
    is_view_made_leaf,
    literal,
    name_of,
    tensors_in,
    updates_statistics,
    value,
)
from snnfast.compiler.record.functions import Applied
from snnfast.compiler.record.kinds import Hole
from snnfast.compiler.record.later import like_of

_TRACED = ("torch", "_operator", "operator", "math", "builtins", "None")  # modules whose functions end in ATen calls
_DATA = (
    int, float, complex, bool, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip
"""Types of results of calls that only read metadata, such as ``x.shape``. They leave no node."""


def to_aten(gm: GraphModule) -> GraphModule:
    """Record the graph of a program's calls as a graph of ATen calls.

    Every node has ``meta["example_value"]``, its fake result; ``meta["context"]``; the user's line in ``stack_trace``;
    ``meta["modules"]``, the modules that it is in; and ``meta["parameter"]``, whether it is a parameter of the network.
    The output has ``meta["needs_grad"]``, which of the results require a gradient. A call that PyTorch's dispatcher
    does not see, such as that of an ``autograd.Function``, stays as it is.

    Raises:
        RefusedError: The graph has what has no such form.
    """
    running = _Running(gm)
    given = [n for n in gm.graph.nodes if n.op == "placeholder"]
    inputs = [n.meta["example_value"] for n in given]
    mode = fake_mode_of(inputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode or contextlib.nullcontext())
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))  # restored behind the graph
        try:
            found = make_fx(running.run, pre_dispatch=True)(*inputs)
        except RefusedError as error:  # whose message the interpreter has made longer
            raise RefusedError(str(error).partition("\n")[0]) from None
    made = [n for n in found.graph.nodes if n.op == "placeholder"]
    assert len(made) == len(given), "an input was lost"
    for old, new in zip(given, made, strict=True):
        new.meta["parameter"] = isinstance(old.meta["example_value"], nn.Parameter)
    first = running.first
    for node in list(found.graph.nodes):
        if name_of(node.target).startswith("as_strided"):
            raise RefusedError("it reads a tensor by strides (as_strided)")
        if node in running.switches:
            found.graph.erase_node(node)
            continue
        if node.op == "output":
            node.meta |= {"context": running.context, "needs_grad": running.needs_grad}
        if is_step(node.target):
            neuron, x, tensors, *others = node.args
            fit = of_step(neuron, value(x), [None if t is None else value(t) for t in tensors])
            node.args = neuron, x, [t if f is not None else None for t, f in zip(tensors, fit, strict=True)], *others
        node.meta.setdefault("context", first)
        node.meta["example_value"] = pytree.tree_map_only(Tensor, lambda t: _in_mode(t, mode), node.meta.get("val"))
    return found


def _in_mode(t: Tensor, mode: Any) -> Tensor:
    """A fake tensor of a mode; ``make_fx`` makes those of constants in modes of their own."""
    if mode is None or getattr(t, "fake_mode", mode) is mode:
        return t
    with mode:
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device)


def _module_of(target: Any) -> str:
    return str(getattr(target, "__module__", None))


class _Running(Interpreter):
    """Runs the graph of a program while ``make_fx`` records the calls."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.context = self.first = Context(torch.is_grad_enabled())
        self.switches: set[Node] = set()  # of the graph that is recorded
        self.needs_grad: list[bool] = []
        self._outside: list[Context] = []  # of the blocks that are entered
        self._spellings: dict[Any, _Spelling | None] = {}
        inputs = [n.meta["example_value"] for n in gm.graph.nodes if n.op == "placeholder"]
        self._views = [(t, t._version) for t in inputs if isinstance(t, Tensor) and is_view_made_leaf(t)]

    @property
    def _tracer(self) -> Any:
        mode = get_proxy_mode()
        assert mode is not None
        return mode.tracer

    def run_node(self, n: Node) -> Any:
        last = next(iter(reversed(self._tracer.graph.nodes)), None)
        given = self.fetch_args_kwargs_from_env(n) if n.op.startswith("call") else ()
        tracked = self._tracer.tensor_tracker
        before = [(t, tracked.get(t)) for t in tensors_in(given)]
        key = self._key(n, given) if all(of is not None for _, of in before) else None
        spelling = self._spellings.get(key)
        if spelling is not None:
            found = self._spelled(spelling, [t for t, _ in before])
        else:
            found = self._switched(n) if self._is_switch(n) else super().run_node(n)
        with torch._C.DisableTorchFunction():  # else the mode that records sees each attribute that is read
            return self._recorded(n, given, found, last, before, key)

    def _recorded(self, n: Node, given: Any, found: Any, last: Node | None, before: Any, key: Any) -> Any:
        """Look at the nodes that a call has made behind ``last``. Returns what the call returns."""
        tracked = self._tracer.tensor_tracker
        if any(t._version != version for t, version in self._views):
            # Of fake tensors, PyTorch can't tell the gradient of another view of the memory that was changed.
            raise RefusedError("it changes an input that requires a gradient, and is a view of a tensor that does not")
        made = self._since(last)
        if key is not None and key not in self._spellings:
            self._spellings[key] = _spelling_of(made, found, before, tracked)
        if not any(map(changed, made)):
            # A call may return a tensor that it was given, as ``contiguous`` and ``broadcast_tensors`` do. The tensor
            # stays the result of the call that made it.
            tracked.update((t, of) for t, of in before if of is not None)
        hidden = n.op.startswith("call") and not made and not self._is_switch(n)
        if hidden and not _looked_up(n, given, found):
            found = self._kept(n, given, found)
            made = self._since(last)
        for node in made:
            if self._is_switch(n):
                self.switches.add(node)
            node.meta["context"] = self.context
            if "stack_trace" in n.meta:
                node.meta["stack_trace"] = n.meta["stack_trace"]
            node.meta["modules"] = n.meta.get("modules", ())
        for t in tensors_in((given, found)):
            if t in tracked:
                tracked[t].proxy.node.meta["requires_grad"] = t.requires_grad
        if len(made) == 1 and _drops_nothing(made[0]):
            self._tracer.graph.erase_node(made[0])
            return before[0][0]
        return found

    # ---- calls like an earlier one

    def _key(self, n: Node, given: Any) -> Any:
        """The key of the calls that are spelled alike; ``None``: this one is traced."""
        if not n.op.startswith("call") or self.context.blocks:
            return None
        leaves, spec = pytree.tree_flatten(given)
        numbers: dict[int, int] = {}
        key: list[Any] = []
        with torch._C.DisableTorchFunction():
            for a in leaves:
                if isinstance(a, Tensor):
                    key.append((numbers.setdefault(id(a), len(numbers)), like_of(a)))
                elif isinstance(a, (*_DATA, slice, EllipsisType)):
                    key.append(literal(a))
                else:
                    return None
        return n.op, n.target, self.context.grad, spec, *key

    def _spelled(self, spelling: "_Spelling", given: Sequence[Tensor]) -> Tensor:
        """Record the calls of an earlier one again. To trace them takes several times as long."""
        tracer = self._tracer
        found: list[Tensor] = list(given)
        with torch._C.DisableTorchFunction(), disable_proxy_modes_tracing():
            for target, args, kwargs in spelling.calls:
                args, kwargs = pytree.tree_map_only(Hole, lambda a: found[a.number], (args, kwargs))
                found.append(target(*args, **kwargs))
                args, kwargs = pytree.tree_map_only(Tensor, tracer.unwrap_proxy, (args, kwargs))
                proxy = tracer.create_proxy("call_function", target, args, kwargs)
                track_tensor_tree(found[-1], proxy, constant=None, tracer=tracer)
        return found[spelling.result]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is as_leaf:
            return args[0].requires_grad_()
        if target in NODES:
            target = getattr(F, name_of(target))  # passes know PyTorch's calls; kernels are chosen when they are done
        where = _module_of(target).partition(".")[0]
        if is_step(target) or where not in _TRACED:
            return _KEEP
        return super().call_function(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.needs_grad = [isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(args)]
        return super().output(target, args, kwargs)

    # ---- grad mode and autocast

    def _is_switch(self, n: Node) -> bool:
        return n.op == "call_function" and (
            n.target is torch._C._set_grad_enabled or n.target in BLOCKS or n.target in BLOCKS.values()
        )

    def _switched(self, n: Node) -> Any:
        target: Any = n.target
        args, _ = self.fetch_args_kwargs_from_env(n)
        with torch._C.DisableTorchFunction():
            found = target(*args)
        if target is torch._C._set_grad_enabled:
            self.context = self.context._replace(grad=args[0])
        elif target in BLOCKS:
            self._outside.append(self.context)
            entered = (target, tuple(args), BLOCKS[target])
            grad = not args[0] if target is ENTER_INFERENCE else self.context.grad
            self.context = Context(grad, (*self.context.blocks, entered))
        else:
            before = self._outside.pop()
            autocast = self.context.blocks[-1][0] is not ENTER_INFERENCE
            self.context = before._replace(grad=self.context.grad) if autocast else before
        return found

    # ---- calls that stay as they are

    def _since(self, last: Node | None) -> list[Node]:
        """The nodes recorded behind ``last``, newest first."""
        made = []
        for node in reversed(self._tracer.graph.nodes):
            if node is last:
                break
            made.append(node)
        return made

    def _kept(self, n: Node, given: Any, found: Any) -> Any:
        """Record a call itself. Its results are those that it has, or that the recorder knows."""
        if found is _KEEP:
            found = n.meta.get("example_value")
        args, kwargs = pytree.tree_map(self._tracer.unwrap_proxy, given)
        made = self._tracer.create_proxy("call_function", n.target, args, kwargs)
        if n.target is as_leaf:
            made.node.meta["computes"] = True
        elif isinstance(n.target, Applied):
            made.node.meta["computes"] = n.target.computes
        track_tensor_tree(found, made, constant=None, tracer=self._tracer)
        made.node.meta.setdefault("val", found)
        return found


def _drops_nothing(node: Node) -> bool:
    """Whether a call is a dropout in evaluation. It returns its argument, but not while PyTorch 2.11 traces it."""
    return name_of(node.target).endswith("dropout") and arguments(node).get("train") is False


class _Spelling(NamedTuple):
    """A call of the program as ATen calls that return one tensor each.

    Attributes:
        calls: Operators with their arguments. A :class:`Hole` has the number of an argument of the call, or, behind
            these, of a result.
        result: The number of what the call returns.
    """

    calls: list[tuple[OpOverload, Any, Any]]
    result: int


def _spelling_of(
    made: Sequence[Node], found: Any, given: Sequence[tuple[Tensor, Any]], tracked: Any
) -> _Spelling | None:
    """How a call was spelled that made these nodes, newest first; ``None``: calls like it are traced."""
    places = {of.proxy.node: Hole(i) for i, (_, of) in enumerate(given) if of is not None}
    calls = []
    for i, node in enumerate(reversed(made)):
        target: Any = node.target
        is_one = isinstance(target, OpOverload) and isinstance(node.meta.get("val"), Tensor)
        # What changes its first argument and returns it is the argument's node from then on.
        in_place = name_of(target).endswith("_") and changed(node) == [node.args[0]]
        known = is_one and (in_place or updates_statistics(node) or not changed(node))
        if not known or not places.keys() >= set(node.all_input_nodes):
            return None
        calls.append((target, *pytree.tree_map_only(Node, places.__getitem__, (node.args, dict(node.kwargs)))))
        places[node] = Hole(len(given) + i)
    if not isinstance(found, Tensor) or found not in tracked or tracked[found].proxy.node not in made:
        return None
    return _Spelling(calls, places[tracked[found].proxy.node].number)


_KEEP = object()


def _looked_up(n: Node, given: Any, found: Any) -> bool:
    """Whether a call that was not recorded did nothing but look something up, such as a size."""
    if found is _KEEP or found is None or n.target is as_leaf:
        return False
    if n.target is operator.getitem:
        return True
    name = str(getattr(n.target, "__name__", ""))
    same = {id(t) for t in tensors_in(given)}  # returned as it is, for example by ``contiguous``
    leaves = pytree.tree_leaves(found)
    return not name.endswith("_") and all(isinstance(leaf, _DATA) or id(leaf) in same for leaf in leaves)
