"""The base of all parts of a loop."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch.fx import Node

from snnfast.compiler.emit.emitter import Emitter
from snnfast.compiler.graph.nodes import line_of
from snnfast.compiler.loop.loop import Argument, Statement


class Part:
    """Statements that become one call for all steps.

    Attributes:
        kind: Its name in a printed loop.
        fused: Whether the linear layer behind it became a part of the call.
    """

    kind: ClassVar[str]

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = list(statements)
        self.fused = False
        for statement in statements:
            statement.part = self

    def calls(self) -> list[Node]:
        """The calls of the loop that it stands for."""
        return [node for statement in self.statements for node in statement.calls]

    def reads(self) -> list[Node]:
        """The nodes that it waits for."""
        return [a for node in self.calls() for a in node.all_input_nodes]

    def arguments(self, statement: Statement) -> Sequence[Argument]:
        """The arguments of a statement."""
        return statement.args

    @property
    def context(self) -> Any:
        """The grad mode and the blocks that it runs under."""
        return self.statements[0].node.meta["context"]

    def each(self, statement: Statement, to: Emitter) -> Any:
        """The results of all steps, one by one: an unbind, whose gradient is one stack."""
        return to.unbound(to.whole(statement))

    def length(self, statement: Statement) -> int:
        """The steps for which there are results of a statement."""
        return len(statement.calls)

    def emit(self, to: Emitter) -> None:
        """Write what becomes of it."""
        raise NotImplementedError

    def whole(self, statement: Statement, to: Emitter) -> Node:
        """The results ``[T, *]`` of a statement, which somebody asks for behind :meth:`emit`."""
        raise NotImplementedError

    def last(self, statement: Statement, to: Emitter) -> Node | None:
        """The result of a statement at the last step by itself; ``None``: it is a part of the whole."""

    def finish(self, to: Emitter) -> None:
        """Choose what is returned, once all is written and is known to be read or not."""

    def describe(self) -> Iterator[str]:
        """Lines for the user that say what it is; none where nobody needs to know."""
        return iter(())


def at_line(node: Node) -> str:
    """The user's line of a call in brackets; empty if it is unknown."""
    line = line_of(node, with_code=False)
    return f" ({line})" if line else ""


def steps_of(count: int, name: str) -> str:
    return f"{count} step{'s' * (count != 1)} of {name}"
