"""How ``torch.compile`` traces what :func:`snnfast.compile` is given: numbers and prints do not split a loop."""

import functools
from typing import Any

import torch


def tracing() -> Any:
    """A context, to be entered as often as one likes, for each call that may be traced.

    A number that ``.item()``, ``float`` or ``int`` makes of a tensor becomes a node of the graph. It splits the graph
    only where the program decides by it. ``print`` does not split it either: what a graph prints comes behind it, in
    order.
    """
    _keep_prints()
    return torch._dynamo.config.patch(capture_scalar_outputs=True, reorderable_logging_functions={print})


@functools.cache
def _keep_prints() -> None:
    """Let what ``torch.compile`` prints behind a graph be what the program has printed.

    PyTorch moves a print to the end of the function that it is in. It loses it if it has inlined that function, such
    as the ``forward`` of a network. And it prints a tensor as it is at the end, changed in place since. Here, a print
    belongs to the outermost function, and is given copies.
    """
    from torch._dynamo.variables.misc import DebuggingVariable

    original: Any = DebuggingVariable.call_function

    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        kept = [_as_it_is_now(a, tx) for a in args]
        if kwargs or any(a is None for a in kept):
            return original(self, tx, [self], {})  # which PyTorch can't move, so that it splits the graph
        return original(self, tx.output.root_tx, kept, {})

    DebuggingVariable.call_function = call_function  # type: ignore[method-assign]


def _as_it_is_now(a: Any, tx: Any) -> Any:
    """The value that a print would show now; ``None`` where it may be another one later."""
    from torch._dynamo.variables import ConstantVariable, TensorVariable
    from torch._dynamo.variables.misc import StringFormatVariable
    from torch._dynamo.variables.tensor import SymNodeVariable

    a = a.realize()
    if a.is_python_constant():
        return ConstantVariable.create(str(a.as_python_constant()))
    if isinstance(a, SymNodeVariable):
        return StringFormatVariable("{}", [a], {})
    if isinstance(a, TensorVariable):
        return a.call_method(tx, "clone", [], {})
    if isinstance(a, StringFormatVariable):
        parts = [p if isinstance(p, SymNodeVariable) else _as_it_is_now(p, tx) for p in a.sym_args]
        named = {k: p if isinstance(p, SymNodeVariable) else _as_it_is_now(p, tx) for k, p in a.sym_kwargs.items()}
        if not any(p is None for p in (*parts, *named.values())):
            return StringFormatVariable(a.format_string, parts, named)
    return None
