"""The functions that users call: :func:`compile`, :func:`explain`."""

import copy
import functools
import inspect
import itertools
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from snnfast._core import backend as _backend
from snnfast._core.pytorch import current_recorder, saved_tensors_are_hooked
from snnfast.compiler import stages
from snnfast.compiler.backend import backend, inner_of, recorded
from snnfast.compiler.failures import Attempt
from snnfast.compiler.recording.calls import Recorded
from snnfast.compiler.report import (
    Explanation,
    GraphReport,
    cuts_since,
    nothing_to_compile,
    number_of_cuts,
    number_of_failures,
)
from snnfast.compiler.tracing import tracing
from snnfast.neurons.network import convert, layers_at_once

Compiled = Callable[..., Any]

TRACING, RECORDING = "tracing", "recording"


def compile(net: Any, *, by: str = TRACING, **options: Any) -> Any:
    """Replace the loop over time in a network or function by one call per layer for all time steps.

    A network is changed in place: its snnTorch layers are put on snnfast's kernels (:func:`snnfast.snntorch.convert`),
    and so are its nodes of SpikingJelly (:func:`snnfast.spikingjelly.convert`). From then on its call, ``net(x)``, is
    compiled with the backend ``"snnfast"`` of ``torch.compile``. It stays the same object, with the same type,
    parameters, hooks and keys of its ``state_dict``. A copy of it, also a pickled one, is not compiled.
    ``net._compiled_call_impl = None`` goes back to the call without ``torch.compile``; it is the attribute in which
    ``torch.nn.Module.compile`` keeps a compiled call, too.

    If the first call shows that nothing is gained, the network or function runs as it is from then on, and one warning
    says why. So does a part of it that ``torch.compile`` can't trace, whatever error it raises. It stays compiled if
    another backend is asked for with ``options={"inner": ...}``.

    Args:
        net: A module with a loop over time in its ``forward``, or a function with one, such as a training step.
            Networks that a function calls are not converted: do so beforehand. A network that is compiled already, with
            any backend, is compiled anew from the original network.
        by: How the loop is seen. By ``"tracing"``, ``torch.compile`` reads the code: a loop is compiled for one number
            of steps, which takes longer for more of them, and again for another number, at most eight times. By
            ``"recording"``, the code runs at each call, and its calls of PyTorch are written down instead of made: one
            graph serves any number of steps, and the first call takes seconds, however many there are. Writing a call
            down takes some microseconds at each step. A loop that needs values as it goes, such as ``loss.item()`` at
            each step, runs as it is.
        **options: Options of ``torch.compile``, for example ``dynamic=False``. None for a loop that is recorded.

    Returns:
        The network itself, or a compiled function in place of a function.

    Raises:
        TypeError: ``net`` can't be called.
        ValueError: ``by`` is neither, an option for a loop that is recorded, a ``mode``, or an option that the backend
            does not have.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc, self.lif = nn.Linear(784, 10), snnfast.Leaky(beta=0.9)
        ...     def forward(self, x):  # [T, B, 784]
        ...         mem, spk_rec = self.lif.reset_mem(), []
        ...         for step in range(x.size(0)):
        ...             spk, mem = self.lif(self.fc(x[step]), mem)
        ...             spk_rec.append(spk)
        ...         return torch.stack(spk_rec)
        >>> net = snnfast.compile(Net())
        >>> net(torch.rand(25, 128, 784)).shape
        torch.Size([25, 128, 10])
    """
    net = _checked(net)
    records = _check_by(by) == RECORDING
    if records and options:
        raise ValueError(f"{next(iter(options))}: torch.compile has no part in a loop that is recorded; leave it out")
    if not isinstance(net, nn.Module):
        if records:
            return _recorded(net)
        return _compiled(net, _name_of(net), options, {})
    left = convert(net)
    if records:
        recorded = Recorded(_call_of_its_own(), _name_of(net))
        of_net = weakref.ref(net)
        net._compiled_call_impl = lambda *args, **kwargs: recorded(of_net(), *args, **kwargs)
        return net
    itself = weakref.ref(net)  # a network that is not used any more is freed at once, with all that was compiled for it
    call = _compiled(_call_of_its_own(), _name_of(net), options, left, lambda: layers_at_once(itself()))
    net._compiled_call_impl = lambda *args, **kwargs: call(itself(), *args, **kwargs)
    return net


def _recorded(function: Compiled) -> Compiled:
    recorded = Recorded(function, _name_of(function))

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return recorded(*args, **kwargs)

    return wrapper


def _check_by(by: str) -> str:
    if by not in (TRACING, RECORDING):
        raise ValueError(f"by: expected {TRACING!r} or {RECORDING!r}, got {by!r}")
    return by


def _checked(net: Any) -> Any:
    """The function or network that is given; the network itself where ``torch.compile`` has wrapped it."""
    if not callable(net):
        raise TypeError(f"net: expected a torch.nn.Module or a function, got {type(net).__name__}")
    return net._orig_mod if isinstance(net, torch._dynamo.OptimizedModule) else net


def _name_of(net: Any) -> str:
    return str(getattr(net, "__name__", type(net).__name__))


_numbers = itertools.count()


def _call_of_its_own() -> Compiled:
    """A function that calls a network.

    ``torch.compile`` keeps what it compiled, at most 8 graphs, with the code of a function, and what it learned about
    sizes under the name of the code. Networks of one class would share both, so each gets a code of its own.
    """

    def call(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return net._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    return types.FunctionType(call.__code__.replace(co_name=f"call_{next(_numbers)}"), call.__globals__)


# What torch.compile can't compile, it mostly traces once and never again. Some functions it traces at every call.
_PATIENCE = 3

# Where torch has this option, the functions that a call is split into have caches of their own as well.
_OWN_CACHE = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}


def _compiled(
    function: Compiled, name: str, options: dict[str, Any], left: dict[str, str], at_once: Callable[[], int] = int
) -> Compiled:
    """Compile a function. If its first call merges nothing that pays, later calls run it as it is.

    With gradients a call has other graphs than without, so the first one of either kind decides.

    ``at_once`` says before how many layers there are, if all run all steps at once and there is no loop beside them.
    """
    inner_of(options.get("options"), options.get("mode"))
    traced = torch.compile(function, backend="snnfast", **{**_OWN_CACHE, **options})
    another = "inner" in (options.get("options") or {})
    chosen: dict[bool, Compiled] = {}
    given_up: set[types.CodeType] = set()
    in_vain = 0  # so many calls in a row were traced in vain

    def compiled(*args: Any, **kwargs: Any) -> Any:
        nonlocal in_vain
        failures = number_of_failures()
        with tracing, Attempt(name, given_up):
            result = traced(*args, **kwargs)
        in_vain = in_vain + 1 if number_of_failures() > failures else 0
        if in_vain >= _PATIENCE and not another:
            chosen.update({True: function, False: function})
            _backend.warn_once(
                f"snnfast: {name} runs as it is, without torch.compile, which traces a part of it at every call in "
                'vain. TORCH_LOGS="graph_breaks" shows where'
            )
        return result

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # It is a part of another function that is compiled or recorded.
        if torch.compiler.is_compiling() or current_recorder() is not None:
            return function(*args, **kwargs)
        grad = torch.is_grad_enabled()
        # A checkpoint runs what it has seen a second time: it must see the same calls, whatever is chosen in between.
        if grad in chosen and not saved_tensors_are_hooked():
            return chosen[grad](*args, **kwargs)
        if _backend.current_backend() == "reference":  # there is nothing to merge now, but there may be later
            return compiled(*args, **kwargs)
        if not chosen and not another and (layers := at_once()):
            chosen.update({True: function, False: function})
            _backend.warn_once(f"snnfast: {name} runs as it is, without torch.compile: {nothing_to_compile(layers)}")
            return function(*args, **kwargs)
        reports: list[GraphReport] = []
        cuts = number_of_cuts()
        with recorded(reports):
            result = compiled(*args, **kwargs)
        if reports:  # not while torch.compile is switched off
            reason = None if another else _why_it_does_not_pay(reports, left)
            chosen[grad] = compiled if reason is None else function
            if reason is None or any(report.failed for report in reports):
                messages = [message for report in reports for message in report.warnings]
            else:
                cut = "".join(f". torch.compile cuts the code at {cut}" for cut in cuts_since(cuts)[:2])
                messages = [f"snnfast: {name} runs as it is, without torch.compile: {reason}{cut}"]
            for message in messages:
                _backend.warn_once(message)
        return result

    return wrapper


def _why_it_does_not_pay(reports: Sequence[GraphReport], left: dict[str, str]) -> str | None:
    """Why a compiled call takes no less time than the loop, in words; ``None`` if it pays.

    Whatever is merged pays, and even the calls that are repeated are shorter in a graph.
    """
    if not any(report.merged for report in reports if report.refused is None):
        warned = [report for report in reports if report.warnings] or list(reports[:1])
        layers = sum(report.unrolled for report in reports)
        if layers and not any(report.warnings for report in reports):
            return nothing_to_compile(layers)
        # Where layers were left, the others are converted already: that advice would not help.
        refused = [str(report.refused) for report in warned if not (left and report.unconverted)]
        unconverted = [f"{layer or 'it'}: {reason}" for layer, reason in left.items()]
        return "; ".join(list(dict.fromkeys([*unconverted, *refused]))[:3])
    return None


def explain(net: Any, *inputs: Any, by: str = TRACING, **named: Any) -> Explanation:
    """Explain what :func:`compile` does with a network or a function: what is merged, repeated or refused, and why.

    It works on a copy of a network, so that the network does not change. A function is called once.

    Args:
        net: As for :func:`compile`, compiled already or not.
        *inputs: Arguments of the call.
        by: As for :func:`compile`.
        **named: Named arguments of the call.

    Returns:
        An :class:`Explanation`, with one :class:`GraphReport` for each graph. ``print`` it.

    Raises:
        TypeError: ``net`` can't be called.
        ValueError: ``by`` is neither.

    Example::

        >>> import torch, snnfast
        >>> lif = snnfast.Leaky(beta=0.9)
        >>> def loop(x, mem):
        ...     for step in range(5):
        ...         spk, mem = lif(x[step], mem)
        ...     return spk
        >>> print(snnfast.explain(loop, torch.rand(5, 3), torch.zeros(3)).graphs[0].merged[0])
        5 steps of leaky: one unroll
    """
    net = _checked(net)
    reports: list[GraphReport] = []
    function = net
    if isinstance(net, nn.Module):
        net = copy.deepcopy(net)
        convert(net)
        function = functools.partial(_call_of_its_own(), net)
    if _check_by(by) == RECORDING:
        with stages.kept():
            return Recorded(function, _name_of(net)).explain(*inputs, **named)
    # A backend that is new to torch.compile compiles what another call has compiled before.
    compiled = torch.compile(function, backend=lambda gm, inputs: backend(gm, inputs))
    cuts = number_of_cuts()
    with recorded(reports), stages.kept(), tracing, Attempt(_name_of(net), set()):
        compiled(*inputs, **named)  # type: ignore[no-untyped-call]
    return Explanation(reports, cuts_since(cuts))
