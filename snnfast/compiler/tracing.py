"""How ``torch.compile`` traces what :func:`snnfast.compile` is given: numbers, prints and asserts split no loop."""

import contextlib
import dis
import functools
import operator
import threading
from typing import Any

import torch

from snnfast.compiler.failures import is_run_by_autograd, keep_running


class _Tracing:
    """Settings of ``torch.compile``, which are global, while any thread is inside; one may enter again."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: dict[str, Any] = {}

    @property
    def is_entered(self) -> bool:
        return self._inside > 0

    def __enter__(self) -> None:
        config: Any = torch._dynamo.config
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                printing = config.reorderable_logging_functions | _extend()
                settings = {
                    "capture_scalar_outputs": True,
                    "reorderable_logging_functions": printing,
                    "max_loop_unroll_nodes": 0,  # no loop is too long; not all versions of PyTorch have this limit
                }
                self._before = {name: getattr(config, name) for name in settings if hasattr(config, name)}
                for name in self._before:
                    setattr(config, name, settings[name])

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for name, before in self._before.items():
                    setattr(torch._dynamo.config, name, before)


tracing = _Tracing()
"""A context for each call that may be traced.

A number that ``.item()``, ``float`` or ``int`` makes of a tensor becomes a node of the graph. It splits the graph only
where the program decides by it. ``print`` does not split it either: what a graph prints comes behind it, in order.
Nor does ``assert``, which becomes a node, too.
"""


@functools.cache
def _extend() -> frozenset[Any]:
    """Extend what PyTorch traces, and return the functions whose calls it then may move behind the graph.

    These are PyTorch's private classes. Where a version has them in another form, what needs them splits the graph, as
    it does without an extension.
    """
    for extend in (keep_running, _keep_asserts, _keep_leaves):
        with contextlib.suppress(AttributeError):
            extend()
    with contextlib.suppress(AttributeError):
        _keep_prints()
        return frozenset({print})
    return frozenset()


def _keep_prints() -> None:
    """Let what ``torch.compile`` prints behind a graph be what the program has printed.

    PyTorch moves a print to the end of the function that it is in. It loses it if it has inlined that function, such
    as the ``forward`` of a network. And it prints a tensor as it is at the end, changed in place since. Here, a print
    belongs to the outermost function, and is given copies.
    """
    variables: Any = torch._dynamo.variables
    kind, nothing = variables.misc.DebuggingVariable, variables.ConstantVariable.create(None)
    original = kind.call_function
    known = variables.TensorVariable, variables.misc.StringFormatVariable, variables.tensor.SymNodeVariable

    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if not tracing.is_entered:
            return original(self, tx, args, kwargs)
        kept = [_as_it_is_now(a, tx, *known) for a in args]
        if kwargs or any(a is None for a in kept):
            return original(self, tx, [self], {})  # which PyTorch can't move, so that it splits the graph
        return original(self, tx.output.root_tx, kept, {}) or nothing  # torch 2.11 returns no variable

    kind.call_function = call_function


def _as_it_is_now(a: Any, tx: Any, *known: Any) -> Any:
    """The value that a print would show now; ``None`` where it may be another one later."""
    tensor, text, number = known
    a = a.realize()
    if a.is_python_constant():
        return torch._dynamo.variables.ConstantVariable.create(str(a.as_python_constant()))
    if isinstance(a, number):
        return text("{}", [a], {})
    if isinstance(a, tensor):
        return a.call_method(tx, "clone", [], {})
    if isinstance(a, text):
        parts = [p if isinstance(p, number) else _as_it_is_now(p, tx, *known) for p in a.sym_args]
        named = {k: p if isinstance(p, number) else _as_it_is_now(p, tx, *known) for k, p in a.sym_kwargs.items()}
        if not any(p is None for p in (*parts, *named.values())):
            return text(a.format_string, parts, named)
    return None


def _keep_asserts() -> None:
    """Let every ``assert`` of what a tensor holds be a call of ``torch._assert_async``.

    PyTorch makes this call of ``assert x``, which it knows by the instruction that jumps over the error where ``x`` is
    true. Of ``assert not x`` and of a number, as in ``assert x.item() < 9``, it is made here. An assert inside of
    ``try`` is none: its error must come where the program expects it. PyTorch then splits the graph.
    """
    dynamo: Any = torch._dynamo
    traced, config = dynamo.symbolic_convert, dynamo.config
    follows, tensor = traced._detect_and_normalize_assert_statement, dynamo.variables.TensorVariable
    number, unknown = (
        dynamo.variables.tensor.SymNodeVariable,
        torch.fx.experimental.symbolic_shapes.free_unbacked_symbols,
    )

    def entered(original: Any, if_true: Any) -> Any:
        def jump(self: Any, inst: Any) -> Any:
            value: Any = self.stack[-1].realize() if tracing.is_entered else None
            is_number = isinstance(value, number) and bool(unknown(value.sym_num))
            if not isinstance(value, tensor) and not is_number:
                return original(self, inst)
            if _is_tried(self):
                with config.patch(rewrite_assert_with_torch_assert=False):
                    return original(self, inst)
            negated = original is not if_true
            if not (negated or is_number) or not follows(self, operator.truth, False):
                return original(self, inst)
            del self.stack[-2:]  # the value, and the message that was found
            if is_number:
                value = _as_tensor(value, self)
            self.push(value.call_method(self, "logical_not", [], {}) if negated else value)
            return if_true(self, inst)

        return jump

    forms = [name for name in ("POP_JUMP_FORWARD_IF_", "POP_JUMP_IF_") if f"{name}FALSE" in dis.opmap]
    if_false, if_true = (dis.opmap[forms[0] + truth] for truth in ("FALSE", "TRUE"))
    kinds: list[Any] = [traced.InstructionTranslatorBase]
    for kind in kinds:
        kinds += kind.__subclasses__()
        jump = kind.dispatch_table[if_true]
        for at in (if_false, if_true):
            kind.dispatch_table[at] = entered(kind.dispatch_table[at], jump)


def _keep_leaves() -> None:
    """Let results depend on a tensor that the program lets require a gradient, as the first states of Norse's cells.

    PyTorch splits the graph there, because AOTAutograd would lose it. What runs a graph here is autograd itself.
    """
    graph: Any = torch._dynamo.output_graph.OutputGraph
    original = graph._check_requires_grad_intermediate_outputs

    def check(self: Any, results: Any, tx: Any) -> None:
        if not is_run_by_autograd():
            original(self, results, tx)

    graph._check_requires_grad_intermediate_outputs = check


def _as_tensor(value: Any, tx: Any) -> Any:
    """A number that is a node of the graph, as a tensor."""
    made = torch._dynamo.variables.builder.wrap_fx_proxy
    return made(tx, tx.output.create_proxy("call_function", torch.scalar_tensor, (value.as_proxy(),), {}))


def _is_tried(tx: Any) -> bool:
    """Whether what is traced is inside of ``try``, or of a ``with`` that may stop an error."""
    known: Any = torch._dynamo.variables.ctx_manager.ContextWrappingVariable  # PyTorch's own, which stop none
    while tx is not None:
        entry = tx.current_instruction.exn_tab_entry
        while entry is not None:
            handler = tx.indexof[entry.target]
            names = [i.opname for i in tx.instructions[handler : handler + 2]]
            # The handler of ``with`` runs its end. Another one only restores the stack.
            if names[0] == "PUSH_EXC_INFO" and names[1] != "WITH_EXCEPT_START":
                return True
            entry = entry.target.exn_tab_entry
        if not all(isinstance(block.with_context, known) for block in tx.block_stack):
            return True
        tx = getattr(tx, "parent", None)
    return False
