"""The backend of ``torch.compile``. dynamo reads the program; what becomes of it is decided as for any other.

dynamo's graph is a function without conditions. It runs once under the recorder, and the plan of the record runs alone
from then on: dynamo's guards say when it holds.
"""

import contextlib
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from snnfast._core.backend import warn_once
from snnfast._core.pytorch import not_compiled_alone
from snnfast.compiler import verify
from snnfast.compiler.emit.any_steps import ForItsSteps
from snnfast.compiler.graph.nodes import literal, name_of, signature_of
from snnfast.compiler.record.later import like_of
from snnfast.compiler.record.lines import Lines
from snnfast.compiler.record.modes import modes
from snnfast.compiler.record.recorded import Recorded, may_record
from snnfast.compiler.record.recorder import Recorder
from snnfast.compiler.record.replay import Again, NotReplayedError, Ran, Reader, written
from snnfast.compiler.report import CUT, OUTSIDE, has_neurons, is_unconverted

_MOST = 64
"""So many calls of a graph are known, such as those of other sizes."""

_PATIENCE = 3
"""So many calls in a row without a plan, where others had one, and the graph runs as it is."""


def backend(
    gm: GraphModule, example_inputs: Any, *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """Turn the graph of a loop over time into layers over time: ``torch.compile(..., backend="snnfast")``.

    Args:
        gm: The graph that dynamo made.
        example_inputs: Its inputs.
        options: ``{"inner": name}``: the backend that is given the new graph, such as ``"inductor"``. Without it the
            graph runs as it is, one PyTorch call after the other.
        mode: ``torch.compile`` passes on what it is given. There are no modes here.

    Raises:
        ValueError: An unknown option, or a mode.
    """
    if mode is not None:
        raise ValueError(f"mode: {mode!r} is one of Inductor's, and the backend 'snnfast' has none; leave it out")
    given = dict(options or {})
    name = given.pop("inner", None)
    if given:
        raise ValueError(f"options: expected 'inner' at most, got {', '.join(map(repr, given))}")
    read = _Read(gm, None if name is None else torch._dynamo.lookup_backend(name))
    return lambda *inputs: read(*inputs)


class _Read:
    """A graph of dynamo, and what its calls have become."""

    def __init__(self, gm: GraphModule, inner: Any) -> None:
        self._tells = has_neurons(gm) or is_unconverted(gm)  # others may be another part of a program
        self._gm, self._inner, self._messages = gm, inner, _without_asserts(gm)
        _apply_classes(gm)
        gm.recompile()
        self._recorded = Recorded(lambda *inputs: _Run(gm).run(*inputs), "a graph", lines=_lines_of)
        self._calls: dict[Any, _Call] = {}
        self._in_vain = 0

    def __call__(self, *inputs: Any) -> Any:
        results = self._results(*inputs)
        for condition, message in zip(results[len(results) - len(self._messages) :], self._messages, strict=True):
            if not condition:
                raise AssertionError(*message)
        return results[: len(results) - len(self._messages)]

    def _results(self, *inputs: Any) -> Any:
        if self._in_vain >= (_PATIENCE if self._calls else 1) or not may_record():
            return self._gm(*inputs)
        key = torch.is_grad_enabled(), modes(), *(like_of(a) if isinstance(a, Tensor) else a for a in inputs)
        call = self._calls.get(key)
        if call is not None and not verify.is_wanted() and (found := call.again(inputs)) is not None:
            return found[0]
        call = _Call(inputs, self._inner)
        result, recorder = self._recorded.record(call, inputs)
        if call.is_known:
            if len(self._calls) >= _MOST:
                self._calls.clear()
            self._calls[key] = call
        self._judge(recorder)
        return result

    def _judge(self, recorder: Recorder) -> None:
        self._in_vain = 0 if recorder.pays or recorder.asks_again else self._in_vain + 1
        if self._in_vain and not self._calls and self._tells:
            reasons = "; ".join(list(dict.fromkeys(recorder.reasons))[:3]).replace(OUTSIDE, CUT)
            warn_once(f"snnfast: a compiled loop runs as it is, step by step: {reasons}")


class _Call:
    """A call of a graph that is recorded, and can be made again by its plan.

    Attributes:
        is_known: Whether it can.
    """

    def __init__(self, inputs: tuple[Any, ...], inner: Any) -> None:
        self._inputs, self._inner = inputs, inner
        self._again: Again | None = None
        self._result: Any = None

    @property
    def is_known(self) -> bool:
        return self._again is not None

    def look(self, is_explained: bool) -> None:
        """Nothing but the inputs is seen by a graph."""

    def watched(self) -> Any:
        return contextlib.nullcontext()

    def end(self, result: list[Any], recorder: Recorder) -> None:
        with contextlib.suppress(NotReplayedError):  # it returns something else: it is recorded each time
            self._result = Reader(recorder, recorder.alive(), _tensors(self._inputs), (), ()).read(result[0])

    def keep(self, ran: Ran | None) -> None:
        inputs, self._inputs = self._inputs, ()
        if ran is None or self._result is None:
            return
        if self._inner is not None and isinstance(ran.graph, ForItsSteps):
            ran = ran._replace(graph=ran.graph.by(self._inner, ran.form.inputs_of(ran.given)))
        with contextlib.suppress(NotReplayedError):
            self._again = Again(ran, _tensors(inputs), (), falls_back=self._inner is None)

    def again(self, inputs: tuple[Any, ...]) -> tuple[Any] | None:
        """Make the call again. Returns its result; ``None``: nothing was done, for that can't be done here."""
        assert self._again is not None
        taken = _tensors(inputs)
        made = self._again.run(taken)
        return None if made is None else (written(self._result, made, taken, {}),)


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [a for a in inputs if isinstance(a, Tensor)]


class _Run(Interpreter):
    """Runs a graph of dynamo."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # an error is that of the program

    def run_node(self, n: Node) -> Any:
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        return _plain(super().fetch_args_kwargs_from_env(n))


def _plain(a: Any) -> Any:
    """Arguments as the program writes them: those of a graph are in containers of its own."""
    if isinstance(a, dict):
        return {name: _plain(b) for name, b in a.items()}
    if isinstance(a, list):
        return list(map(_plain, a))
    return tuple(map(_plain, a)) if type(a) is tuple else a


def _lines_of(frame: FrameType | None) -> Lines:
    """The lines of the program that a node was made of, which a frame runs."""
    while frame is not None and frame.f_code is not _Run.run_node.__code__:
        frame = frame.f_back
    assert frame is not None
    node = frame.f_locals["n"]
    # Each call of a module may have a number of its own behind "@".
    modules = tuple(key.partition("@")[0] for key in node.meta.get("nn_module_stack") or ())
    return Lines(node.stack_trace or "", modules)


# ---- calls that dynamo has written in its own way


def _without_asserts(gm: GraphModule) -> list[tuple[str, ...]]:
    """Let a graph return the conditions of its asserts behind its results. Returns their messages."""
    found = gm.graph.find_nodes(op="call_function", target=torch._assert_async)
    output = gm.graph.output_node()
    results: Any = output.args[0]
    output.args = ((*results, *(node.args[0] for node in found)),)
    messages = [node.args[1:] for node in found]
    for node in found:
        gm.graph.erase_node(node)
    return [() if message == ("assertion error",) else message for message in messages]  # PyTorch's, if there is none


def _apply_classes(gm: GraphModule) -> None:
    """Let the calls of an ``autograd.Function`` be calls of a class, of one for all that are equal."""
    classes: dict[Any, Any] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or name_of(node.target) != "autograd_function_apply":
            continue
        bodies = [getattr(gm, str(a.target)) for a in node.args[:2]]
        key = *map(_key, bodies), repr(sorted(node.kwargs.items()))
        if key not in classes:
            _record_backward(bodies[1])
            classes[key] = _function_of(*bodies, **node.kwargs)
        node.target, node.args, node.kwargs = classes[key], node.args[2:], {}
        if len(bodies[0].graph.output_node().args[0][0]) == 1:
            for user in list(node.users):
                user.replace_all_uses_with(node)
                gm.graph.erase_node(user)


def _key(body: GraphModule) -> Any:
    """A key that two graphs share if they make the same calls."""
    numbers = {node: i for i, node in enumerate(body.graph.nodes)}
    held = {node: id(getattr(body, str(node.target))) for node in body.graph.find_nodes(op="get_attr")}

    def key(node: Node) -> Any:
        args = pytree.tree_map_only(Node, lambda a: ("node", numbers[a]), (node.args, node.kwargs))
        target = None if node.op == "placeholder" else held.get(node, node.target)
        return node.op, target, literal(args), signature_of(node)

    return tuple(map(key, body.graph.nodes))


def _record_backward(body: GraphModule) -> None:
    """Let autograd record a backward pass where the caller asks for it. dynamo writes ``no_grad`` into its graph."""
    calls = [n for n in body.graph.nodes if n.op.startswith("call")]
    ends = (calls[0], calls[-1]) if len(calls) > 1 else ()
    if [(n.target, n.args) for n in ends] == [(torch._C._set_grad_enabled, (on,)) for on in (False, True)]:
        for n in ends:
            body.graph.erase_node(n)
        body.recompile()


def _function_of(
    forward: GraphModule,  # returns the results, and what backward reads
    backward: GraphModule,  # of the gradients of the results, and of what forward has kept
    non_differentiable_idx: Any = (),
    saved_for_backward_idx: Any = (),
    dirty_idx: Any = (),
    **others: Any,
) -> Any:
    """The call of an ``autograd.Function`` that has these graphs as its forward and its backward pass."""
    run_forward, run_backward = forward.forward, backward.forward
    checked = set(saved_for_backward_idx)  # autograd raises an error if they are changed before they are read

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            outputs, kept = run_forward(*args)
            tracked = [i for i, a in enumerate(kept) if i in checked and isinstance(a, Tensor)]
            ctx.save_for_backward(*(kept[i] for i in tracked))
            ctx.tracked, ctx.kept = tracked, [None if i in tracked else a for i, a in enumerate(kept)]
            if dirty_idx:
                ctx.mark_dirty(*(outputs[i] for i in dirty_idx))
            if non_differentiable_idx:
                ctx.mark_non_differentiable(*(outputs[i] for i in non_differentiable_idx))
            return outputs[0] if len(outputs) == 1 else tuple(outputs)

        @staticmethod
        @not_compiled_alone
        def backward(ctx: Any, *grads: Any) -> Any:
            kept = list(ctx.kept)
            for i, a in zip(ctx.tracked, ctx.saved_tensors, strict=True):
                kept[i] = a
            return run_backward(*grads, *kept)

    def autograd_function(*args: Any) -> Any:
        return Function.apply(*args)

    return autograd_function
