"""An ``assert`` of the user's program raises Python's error, not that of ``torch._assert_async``."""

from torch import Tensor
from torch.fx import GraphModule

from snnfast.compiler.calls import is_assert, line_of


def raise_in_python(gm: GraphModule) -> None:
    """Replace the calls of ``torch._assert_async`` that dynamo made of ``assert``."""
    found = [node for node in gm.graph.nodes if is_assert(node)]
    for node in found:
        node.target = Assert(line_of(node))
    if found:
        gm.recompile()


class Assert:
    """An ``assert`` of the user's program, at a line."""

    __name__ = __qualname__ = "assert_"

    def __init__(self, line: str) -> None:
        self._line = line

    def __call__(self, condition: Tensor, message: str) -> None:
        if not condition:
            error = AssertionError(*[message][: message != NO_MESSAGE])
            error.add_note(f"of {self._line}")
            raise error


NO_MESSAGE = "assertion error"
"""PyTorch's message for an ``assert`` without one."""
