"""Take in a first step that differs, where it is the same step with numbers as states.

dynamo computes with numbers as it traces: after ``mem = 0``, the first ``mem * 0.9 + x`` is a call ``0.0 + x``. It is
proven by one trace of both: equal instructions of equal operands are one value.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from snnfast._program.trace import NotElementwiseError, trace
from snnfast.compiler.calls import (
    index_of,
    is_number,
    is_pointwise,
    is_whole,
    module_of,
    run_call,
    signature_of,
    site_of,
    value,
)
from snnfast.compiler.loop import Each, Of, Statement
from snnfast.compiler.parts.program import Program, Row, as_of

_STARTS = 64
"""How many combinations of numbers are tried as first states."""


def take_in_first(program: Program, row: Row, is_free: Callable[[Node], bool]) -> None:
    """Add the step before the first one, of which ``row`` has the calls that are statements of the others, too."""
    begin = [n for n in program.begins() if isinstance(n, Node)]
    if (not row and not begin) or any(map(is_whole, program.samples.values())):  # whole numbers may be too large
        return
    for anywhere in (False, True):
        read = _read_by_first(program, row, [*row.values(), *begin], anywhere)
        if read is not None and all(n in itertools.chain(*read) for n in begin):
            break
    else:
        return
    series, peeled = read
    members = set(row.values())
    leaves = [float(a) for n in peeled for a in pytree.tree_leaves((n.args, n.kwargs)) if is_number(a)]
    # A sum with -0.0 is the other summand, to the bit. So ``mem = x`` is a step, too.
    numbers = [0.0, -0.0, *dict.fromkeys(a for a in leaves if a)]
    states = program.states
    starts = (s for s in itertools.product(numbers, repeat=len(states)) if _one_each([a.statement for a in states], s))
    wanted = [*row.items(), *((a.statement, a.first[0]) for a in program.states)]
    for start in itertools.islice(starts, _STARTS):
        values = _values_of_first(program, series, peeled, start)
        if values is None:
            return
        of_body, of_calls = values
        if all(of_body[s] == of_calls[n] for s, n in wanted):
            break
    else:
        return
    for statement, found in of_body.items():
        same = [n for n, v in of_calls.items() if v == found and n in peeled and n not in members and is_free(n)]
        same = [n for n in same if signature_of(n) == signature_of(program.samples[statement])]
        if statement not in row and found is not None and same:
            row[statement] = same[0]
            members.add(same[0])
    program.rows.insert(0, row)
    now: dict[Any, Any] = {a: Each((n, *a.rows)) for a, n in zip(program.series, series, strict=True)}
    now |= {a: a._replace(first=(c,)) for a, c in zip(program.states, start, strict=True)}
    for args in program.args.values():
        args[:] = [now.get(a, a) if isinstance(a, Each | Of) else a for a in args]


def _one_each(statements: Sequence[Statement], start: Sequence[float]) -> bool:
    """Whether the results of a statement begin with one number, in which 0.0 and -0.0 differ."""
    return len(set(statements)) == len({(s, repr(number)) for s, number in zip(statements, start, strict=True)})


def _read_by_first(
    program: Program, row: Row, calls: list[Node], anywhere: bool
) -> tuple[list[Node], list[Node]] | None:
    """The nodes that the first step reads as series, and its calls, each behind what it reads; ``None``: not known.

    The branch of a first step, as in ``if mem is None: mem = x``, may be ``anywhere`` in the user's code.
    """
    sites, contexts = (
        {_site(n) for n in program.samples.values()},
        [n.meta["context"] for n in program.samples.values()],
    )
    members, every = set(row.values()), program.series
    constants = {a.value for a in program.constants}
    series: list[Node | None] = [None] * len(every)
    peeled: dict[Node, None] = {}

    def visit(node: Node) -> bool:
        if len(peeled) > 2 * len(program.statements):
            return False
        if node in peeled or node in constants or isinstance(module_of(node), GraphModule):
            return True
        for i, a in enumerate(every):
            if node not in members and series[i] in (None, node) and _is_before(node, a.rows[0], anywhere):
                series[i] = node
                return True
        known = node in members or (node.op == "call_function" and _site(node) in sites)
        known = known or (anywhere and is_pointwise(node.target) and node.meta["context"] in contexts)
        if not known or not all(map(visit, node.all_input_nodes)):
            return False
        peeled[node] = None
        return True

    if not all(map(visit, calls)) or None in series:
        return None
    return series, list(peeled)  # type: ignore[return-value]


def _values_of_first(
    program: Program, series: list[Node], peeled: list[Node], start: Sequence[float]
) -> tuple[dict[Statement, Any], dict[Node, Any]] | None:
    """The values of the statements in a step that starts from these numbers, and the values of the first calls.

    Both are values of one trace. A result that is no tensor has none.
    """
    kept = program.outputs()
    tensors = [n for n in (*peeled, *series) if isinstance(value(n), Tensor)]
    constants = program.constants
    nodes: list[Any] = [*series, *(a.value for a in constants)]

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        states = [torch.full_like(given[0], number) for number in start]
        arguments = [*program.series, *program.states, *constants]
        results = program.run(program.layers[0], arguments, [*given[: len(series)], *states, *given[len(series) :]])
        env: dict[Any, Any] = {node: as_of(node, t) for node, t in zip(nodes, given, strict=True)}
        for node in peeled:
            args, kwargs = pytree.tree_map_only(Node, lambda a: env.get(a, module_of(a)), (node.args, node.kwargs))
            env[node] = run_call(node, args, kwargs, program.dtype)
        found = [*(results[Of(s, 0)] for s in kept), *(env[n] for n in tensors)]
        return tuple(t.to(program.dtype).expand_as(given[0]) for t in found)

    try:
        found = trace(step, (len(nodes), 0, 0), program.dtype, len(program.shape)).outputs
    except (NotElementwiseError, RuntimeError):  # of an operator that takes tensors of its own sizes alone
        return None
    of_body = dict.fromkeys(program.statements) | dict(zip(kept, found))  # noqa: B905
    of_calls = dict.fromkeys(peeled) | dict(zip(tensors, found[len(kept) :], strict=True))
    return of_body, of_calls


def _site(node: Node) -> Any:
    """The site and the context of a call, also if it takes a number where another one takes a tensor."""
    return site_of(node).of_any_module, node.meta["context"]


def _is_before(node: Node, first: Node, anywhere: bool) -> bool:
    """Whether a node may be the one before the first of a series."""
    if node.op != "call_function" or node.target is not first.target or signature_of(node) != signature_of(first):
        return False
    part, other = index_of(node), index_of(first)
    alike = part[:2] == other[:2] if part and other else anywhere or site_of(node).trace == site_of(first).trace
    return alike and bool(node.meta["context"] == first.meta["context"])
