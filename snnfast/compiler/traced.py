"""A function that ``torch.compile`` traces."""

import inspect
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch
from torch.distributions import Distribution

from snnfast._core import backend as _backend
from snnfast._core.pytorch import saved_tensors_are_hooked
from snnfast.compiler import stages
from snnfast.compiler.backend import backend, inner_of, recorded
from snnfast.compiler.failures import Attempt
from snnfast.compiler.report import (
    Explanation,
    GraphReport,
    cuts_since,
    nothing_to_compile,
    number_of_cuts,
    number_of_failures,
)
from snnfast.compiler.tracing import tracing

_PATIENCE = 3
"""Most of what torch.compile can't compile it traces once and never again. Some functions it traces at every call."""

# Where torch has this option, the functions that a call is split into have caches of their own as well.
_OWN_CACHE = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}


class Traced:
    """A function under ``torch.compile``. If its first call merges nothing that pays, later calls run it as it is.

    With gradients a call has other graphs than without, so the first one of either kind decides.

    Args:
        function: It is traced.
        name: Its name in messages.
        options: Those of ``torch.compile``.
        left: The layers of the network that could not be converted, and why.
    """

    def __init__(self, function: Callable[..., Any], name: str, options: dict[str, Any], left: dict[str, str]) -> None:
        inner_of(options.get("options"), options.get("mode"))
        self._function, self._name, self._left = function, name, left
        self._compiled: Callable[..., Any] | None = None  # most functions are never traced
        if options:  # a wrong one raises here
            self._compiled = _compile(function, backend="snnfast", **{**_OWN_CACHE, **options})
        self._another = "inner" in (options.get("options") or {})  # another backend stays, whatever is merged
        self._given_up: set[CodeType] = set()
        self._in_vain = 0  # so many calls in a row were traced in vain
        self._pays: dict[bool, bool] = {}

    @staticmethod
    def explain(function: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Explanation:
        """Make one call. Returns what becomes of its graphs."""
        reports: list[GraphReport] = []
        # A backend that is new to torch.compile compiles what another call has compiled before.
        compiled = _compile(function, backend=lambda gm, inputs: backend(gm, inputs))
        cuts = number_of_cuts()
        with recorded(reports), stages.kept(), tracing, Attempt(name, set()):
            compiled(*args, **kwargs)
        return Explanation(reports, cuts_since(cuts))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        grad = torch.is_grad_enabled()
        # A checkpoint runs what it has seen a second time: it must see the same calls, whatever is chosen in between.
        if grad in self._pays and not saved_tensors_are_hooked():
            return (self._call if self._pays[grad] else self._function)(*args, **kwargs)
        if _backend.current_backend() == "reference":  # there is nothing to merge now, but there may be later
            return self._call(*args, **kwargs)
        reports: list[GraphReport] = []
        cuts = number_of_cuts()
        with recorded(reports):
            result = self._call(*args, **kwargs)
        if not reports:  # torch.compile is switched off
            return result
        reason = None if self._another else _why_it_does_not_pay(reports, self._left)
        self._pays[grad] = reason is None
        if reason is None or any(report.failed for report in reports):
            for message in [message for report in reports for message in report.warnings]:
                _backend.warn_once(message)
            return result
        cut = "".join(f". torch.compile cuts the code at {cut}" for cut in cuts_since(cuts)[:2])
        _backend.warn_once(f"snnfast: {self._name} runs as it is, without torch.compile: {reason}{cut}")
        return result

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            self._compiled = _compile(self._function, backend="snnfast", **_OWN_CACHE)
        failures = number_of_failures()
        with tracing, Attempt(self._name, self._given_up, self._another):
            result = self._compiled(*args, **kwargs)
        self._in_vain = self._in_vain + 1 if number_of_failures() > failures else 0
        if self._in_vain >= _PATIENCE and not self._another:
            self._pays.update({True: False, False: False})
            _backend.warn_once(
                f"snnfast: {self._name} runs as it is, without torch.compile, which traces a part of it at every call "
                'in vain. TORCH_LOGS="graph_breaks" shows where'
            )
        return result


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``torch.compile``, which for the whole process switches off the checks of ``torch.distributions``: not here."""
    checks = Distribution._validate_args
    try:
        return torch.compile(function, **options)
    finally:
        Distribution.set_default_validate_args(checks)


def _why_it_does_not_pay(reports: Sequence[GraphReport], left: dict[str, str]) -> str | None:
    """Why a compiled call takes no less time than the loop, in words; ``None`` if it pays.

    Whatever is merged pays, and even the calls that are repeated are shorter in a graph.
    """
    if any(report.merged for report in reports if report.refused is None):
        return None
    warned = [report for report in reports if report.warnings]
    layers = sum(report.unrolled for report in reports)
    if layers and not warned:
        return nothing_to_compile(layers)
    # Where layers were left, the others are converted already: that advice would not help.
    refused = [str(report.refused) for report in warned or reports[:1] if not (left and report.unconverted)]
    unconverted = [f"{layer or 'it'}: {reason}" for layer, reason in left.items()]
    return "; ".join(list(dict.fromkeys([*unconverted, *refused]))[:3])
