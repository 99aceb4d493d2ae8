"""``torch.compile(net, backend="snnfast")``: the user's loop over time, run as layers over time.

``docs/compiler.md`` tells what each file holds.
"""

from snnfast.compiler.backend import backend
from snnfast.compiler.entry import compile, explain, status, uncompile
from snnfast.compiler.history import Status
from snnfast.compiler.report import Explanation, GraphReport

__all__ = ["Explanation", "GraphReport", "Status", "backend", "compile", "explain", "status", "uncompile"]
