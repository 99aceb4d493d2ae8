"""The backend of ``torch.compile``, and what users call: :func:`compile`, :func:`explain`."""

import copy
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from snnfast import _backend
from snnfast._graph_ops import as_function
from snnfast._loop import verify
from snnfast._loop.capture import capture
from snnfast._loop.channels_last import use_channels_last, use_kernels
from snnfast._loop.emission import Emission
from snnfast._loop.nodes import as_python_calls, is_random, is_step
from snnfast._loop.normal import normal
from snnfast._loop.report import (
    Explanation,
    GraphReport,
    RefusedError,
    describe,
    fail,
    leave_alone,
    line_of,
    refuse,
    why_not,
)
from snnfast._loop.series import Series
from snnfast._neurons import convert

Compiled = Callable[..., Any]


def backend(
    gm: GraphModule, example_inputs: Any, *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Compiled:
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
    inner = _inner(options)
    merged, report = merge(gm)
    for message in report.warnings:
        _backend.warn_once(message)
    compiled = merged.forward if inner is None else inner(merged, example_inputs)
    if verify.is_wanted() and merged is not gm:
        return verify.verified(gm, compiled, report)
    return compiled


def merge(gm: GraphModule) -> tuple[GraphModule, GraphReport]:
    """Merge what can be merged. Returns the new graph, or the old one if nothing can, and a report."""
    first = next((n for n in gm.graph.nodes if n.op.startswith("call")), None)
    report = GraphReport(line_of(first) or "a graph")
    try:
        if not any(is_step(n.target) for n in gm.graph.nodes):
            leave_alone(report, gm)
        else:
            return _merged(normal(gm), report), report
    except RefusedError as refusal:
        refuse(report, str(refusal))
    except Exception:
        fail(report, traceback.format_exc())
    if [node for node in gm.graph.nodes if as_function(node)]:
        use_kernels(gm.graph)
    gm.recompile()
    return gm, report


def _merged(found: GraphModule, report: GraphReport) -> GraphModule:
    report.random = any(map(is_random, found.graph.nodes))
    captured = capture(found.graph)
    series = Series(captured)
    emission = Emission(series)
    graph = emission.write()
    describe(series, emission.summed, emission.projected, report)
    if not report.merged:
        raise RefusedError(why_not(report, captured.chains))
    if not captured.written:  # a copy in another order would be written in place of the tensor itself
        use_channels_last(graph)
    use_kernels(graph)
    for node in graph.nodes:
        node.target = as_python_calls(node.target)
    return GraphModule(found, graph)


def _inner(options: dict[str, Any] | None) -> Any:
    given = dict(options or {})
    name = given.pop("inner", None)
    if given:
        raise ValueError(f"options: expected 'inner' at most, got {', '.join(map(repr, given))}")
    if name is None:
        return None
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend(name)


def compile(net: Any, **options: Any) -> Any:
    """Replace the loop over time in a network or function by one call per layer for all time steps.

    If ``net`` is a network, its snnTorch layers are first put on snnfast's kernels, in place
    (:func:`snnfast.snntorch.convert`). Then ``torch.compile(net, backend="snnfast")`` is called.

    Args:
        net: A module with a loop over time in its ``forward``, or a function with one, such as a training step.
            Networks that a function calls are not converted: do so beforehand. A network that is compiled already, with
            any backend, is compiled anew from the original network.
        **options: Options of ``torch.compile``, for example ``dynamic=False``.

    Returns:
        What ``torch.compile`` returns: the same network with the same parameters, or a function.

    Raises:
        TypeError: ``net`` can't be called.

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
    if isinstance(net, nn.Module):
        convert(net)
    return torch.compile(net, backend="snnfast", **options)


def _checked(net: Any) -> Any:
    """What was given, and of a network that is compiled already the network itself.

    ``torch.compile`` makes a function without parameters of the former, and would not call the backend again.
    """
    if not callable(net):
        raise TypeError(f"net: expected a torch.nn.Module or a function, got {type(net).__name__}")
    return net._orig_mod if isinstance(net, torch._dynamo.OptimizedModule) else net


def explain(net: Any, *inputs: Any, **named: Any) -> Explanation:
    """Explain what :func:`compile` does with a network or a function: what is merged, repeated or refused, and why.

    It works on a copy of a network, so that the network does not change. A function is called once.

    Args:
        net: As for :func:`compile`, compiled already or not.
        *inputs: Arguments of the call.
        **named: Named arguments of the call.

    Returns:
        An :class:`Explanation`, with one :class:`GraphReport` for each graph. ``print`` it.

    Raises:
        TypeError: ``net`` can't be called.

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

    def recording(gm: GraphModule, example_inputs: Any) -> Compiled:
        merged, report = merge(gm)
        reports.append(report)
        return merged.forward

    if isinstance(net, nn.Module):
        net = copy.deepcopy(net)
        convert(net)
    torch.compile(net, backend=recording)(*inputs, **named)  # type: ignore[no-untyped-call]
    return Explanation(reports)
