"""``torch.compile(net, backend="snnfast")``: the user's loop over time, run as layers over time.

- ``normal.py``: the graph that dynamo made of the loop, as ATen calls.
- ``capture.py``: cleans it, and finds the chains of steps.
- ``memory.py``: which calls change a tensor in place.
- ``series.py``: finds the calls that are the same at every step.
- ``rules.py``: how one call on all time steps is written.
- ``emission.py``, ``sums.py``, ``projection.py``: write the new graph.
- ``backend.py``: what ``torch.compile`` calls.
- ``entry.py``: what users call, :func:`compile` and :func:`explain`.
"""

from snnfast.compiler.backend import backend
from snnfast.compiler.entry import compile, explain
from snnfast.compiler.report import Explanation, GraphReport

__all__ = ["Explanation", "GraphReport", "backend", "compile", "explain"]
