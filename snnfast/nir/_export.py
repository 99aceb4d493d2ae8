"""See :func:`export_to_nir`."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from snnfast.networks.multistep import MultiStep, Residual, _opened
from snnfast.networks.over_time import has_unroll
from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.network import convert
from snnfast.nir import _neurons, _stateless
from snnfast.nir._branches import INPUT, OUTPUT, Branches
from snnfast.nir._neurons import Shape
from snnfast.spikingjelly.neuron import BaseNode

__all__ = ["export_to_nir"]


def export_to_nir(
    net: nn.Module, sample_data: Tensor, *, model_fwd_args: Sequence[Any] = (), dt: float = 1e-4
) -> nir.NIRGraph:
    """Make a NIR graph of a network, from one call of it.

    A copy of the network in evaluation mode is called, and what its layers pass to one another is followed. So the time
    may be in a loop in its ``forward``, in :class:`snnfast.MultiStep`, in ``unroll``, in SpikingJelly's step mode
    ``"m"``, or outside of the network, which is then called for one step. A compiled network is exported like the
    original one. Neurons of snnTorch and SpikingJelly are exported as those of snnfast.

    The nodes have the names of the modules. These can be exported:

    - ``Leaky`` as ``LIF``, or ``IF`` if ``beta`` is 1; ``Synaptic`` as ``CubaLIF``; ``RLeaky`` and ``RSynaptic`` as a
      graph of these and a product; ``IFNode``, ``LIFNode`` and ``ParametricLIFNode`` as ``IF`` and ``LIF``.
    - ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.AvgPool2d`` and ``nn.Flatten``, also with SpikingJelly's step
      mode. Dropout is left out. A sum of signals, as in a skip connection, is several edges to one node.

    NIR is for inference: surrogates, and what is learned, are not in it.

    Args:
        net: The network.
        sample_data: An input as the network takes it, with a batch dimension: ``[B, *]`` for one step, or all steps,
            such as ``[T, B, *]``. With two steps, a loop shows all its connections. The values do not matter. In which
            order a network reads the steps of its input is not looked at.
        model_fwd_args: More arguments of the call.
        dt: Length of a time step in seconds, which time constants are a multiple of.

    Returns:
        The graph. Its output is the first tensor that the network returns: spikes, or their sum or mean over time.
        ``nir.write("net.nir", graph)`` stores it.

    Raises:
        TypeError: A neuron has no node in NIR.
        ValueError: NIR can't say an option of a layer, a function between layers, or a delay. The message names it.

    Example::

        >>> import torch, snnfast
        >>> from snnfast.nir import export_to_nir
        >>> from torch import nn
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(8, 4)
        ...         self.lif = snnfast.Leaky(beta=0.9, reset_mechanism="zero", reset_delay=False)
        ...     def forward(self, x):  # [T, B, 8]
        ...         mem, spk_rec = self.lif.reset_mem(), []
        ...         for step in range(x.size(0)):
        ...             spk, mem = self.lif(self.fc(x[step]), mem)
        ...             spk_rec.append(spk)
        ...         return torch.stack(spk_rec)
        >>> export_to_nir(Net(), torch.rand(2, 1, 8)).edges
        [('input', 'fc'), ('fc', 'lif'), ('lif', 'output')]
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if not isinstance(sample_data, Tensor):
        raise TypeError(f"sample_data: expected a torch.Tensor, got {type(sample_data).__name__}")
    if not dt > 0:
        raise ValueError(f"dt: expected a positive number, got {dt}")
    net = _copied(getattr(net, "_orig_mod", net)).eval()
    convert(net)
    trace = _Trace(net, dt)
    x = sample_data.detach().clone()
    trace.mark(x, _Signal(((INPUT, None),)))
    with torch.no_grad(), trace:
        result = net(x, *model_fwd_args)
    return trace.graph(result)


def _copied(net: nn.Module) -> nn.Module:
    """A copy of a network. Held states may have a graph, with which a tensor can't be copied."""
    tensors = [x for module in net.modules() for x in (*vars(module).values(), *module._buffers.values())]
    return copy.deepcopy(net, {id(x): x.detach().clone() for x in tensors if isinstance(x, Tensor) and not x.is_leaf})


class _Signal(NamedTuple):
    """A tensor that is the output of a node, or a sum of outputs."""

    sources: tuple[tuple[str, int | None], ...]  # nodes, each with the number of its step; None: all steps in order
    over_time: bool = False  # whether it is a sum over time, or some steps, which only the result of the network may be

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.sources)


class _Lost(NamedTuple):
    """A tensor that was computed of signals by what NIR has no node for."""

    by: str


_Mark = _Signal | _Lost

_NEURONS = nir.IF, nir.LIF, nir.CubaLIF, nir.NIRGraph

_REMEDIES = {
    "BatchNorm": "; torch.nn.utils.fusion.fuse_conv_bn_eval and fuse_linear_bn_eval make it a part of the layer before",
    "MaxPool": "; it has nn.AvgPool2d",
}
"""The remedies for layers, by the beginning of their names."""


class _Trace(TorchFunctionMode):
    """Follows the outputs of layers through the call of a network."""

    def __init__(self, net: nn.Module, dt: float) -> None:
        super().__init__()
        self.dt = dt
        self.inside = False  # of a layer that is a node
        self.marks: dict[int, tuple[Tensor, _Mark]] = {}  # with the tensors, whose ids are not used again meanwhile
        self.nodes: dict[str, nir.NIRNode] = {}
        self.shapes: dict[str, Shape] = {}  # of the output of each node, for one sample
        self.calls: dict[str, int] = {}
        self.taken_apart: set[str] = set()  # nodes of whose steps some were read from all steps
        self.edges: dict[tuple[str, str], list[tuple[int | None, int]]] = {}  # the calls that each connects
        for name, module in net.named_modules():
            self._watch(name or type(module).__name__.lower(), module)

    # ---- layers

    def _watch(self, name: str, module: Any) -> None:
        """Put a function that follows its signal in the place of a method of a module, which is a copy."""
        if isinstance(module, MultiStep):
            vars(module)["forward"] = self._multi_step(module)
        elif isinstance(module, Residual):
            vars(module)["forward"] = lambda x, num_steps=None: self._residual(module, _steps(x, num_steps))
        elif isinstance(module, BaseNode):
            self._neurons(name, module, "single_step_forward", lambda shape: shape[1:])
            self._neurons(name, module, "multi_step_forward", lambda shape: shape[2:])
        elif isinstance(module, SpikingLayer):
            self._neurons(name, module, "forward", lambda shape: shape[1:])
            self._neurons(name, module, "unroll", lambda shape, steps=None: shape[2 if steps is None else 1 :])
        elif _stateless.is_known(module, tuple(_stateless.KINDS)):
            dims = next(dims for kind, dims in _stateless.KINDS.items() if isinstance(module, kind))
            self._node(
                name, module, "forward", lambda x: x.shape[-dims:], lambda y: y.shape[-dims:],
                lambda shape, out: _stateless.node_of(module, shape, out),
            )  # fmt: skip
        elif _stateless.is_known(module, nn.Flatten):
            self._flatten(name, module)
        elif _stateless.is_known(module, _stateless.PASSED):
            self._passed(module)
        elif _stateless.is_known(module, nn.Module) and not isinstance(module, nn.Sequential):
            self._lost(module)

    def _neurons(self, name: str, layer: Any, method: str, shape_of: Callable[..., Shape]) -> None:
        signature = inspect.signature(getattr(layer, method))

        def shape(x: Tensor, *args: Any, **kwargs: Any) -> Shape:
            given = signature.bind(x, *args, **kwargs).arguments
            return shape_of(x.shape, *([given["num_steps"]] if given.get("num_steps") is not None else []))

        self._node(name, layer, method, shape, None, lambda shape, _: _neurons.node_of(layer, shape, self.dt))

    def _node(
        self,
        name: str,
        module: Any,
        method: str,
        shape_of: Callable[..., Shape],
        shape_of_output: Callable[[Tensor], Shape] | None,  # None: it is that of the input
        make: Callable[[Shape, Shape], nir.NIRNode],
    ) -> None:
        original = getattr(module, method)

        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return original(x, *args, **kwargs)
            shape = tuple(shape_of(x, *args, **kwargs))
            self.inside = True
            try:
                result = original(x, *args, **kwargs)
            finally:
                self.inside = False
            out, *states = result if isinstance(result, tuple) else (result,)
            shape_out = shape if shape_of_output is None else tuple(shape_of_output(out))
            with _named(name):
                if name not in self.nodes:
                    self._check_name(name)
                    self.nodes[name] = make(shape, shape_out)
                self._connect(name, self.mark_of(x), x, shape)
            self.shapes[name] = shape_out
            over_time = kwargs.get("reduce") is not None
            self.mark(out, _Signal(((name, self.calls[name]),), over_time))
            for state in states:
                self.mark(state, _Lost("a state of neurons"))
            return result

        vars(module)[method] = call

    def _flatten(self, name: str, module: Any) -> None:
        original = module.forward

        def call(x: Tensor) -> Tensor:
            mark = self.mark_of(x)
            out: Tensor = original(x)
            many = getattr(module, "step_mode", "s") == "m"
            start, end = (d + many if d >= 0 else x.dim() + d for d in (module.start_dim, module.end_dim))
            before = self._before(x)
            if before is None:  # of the input, what is flattened is one sample
                before = max(start, 1 + many) if module.start_dim >= 0 else 1 + many
            if start < before:
                self.mark(out, _Lost("nn.Flatten of time or samples"))
                return out
            shape, shape_out = tuple(x.shape[before:]), tuple(out.shape[before:])
            with _named(name):
                if name not in self.nodes:
                    self._check_name(name)
                    self.nodes[name] = nir.Flatten(
                        np.array(shape), start - before, end - before if end < x.dim() - 1 else -1
                    )
                self._connect(name, mark, x, shape)
            self.shapes[name] = shape_out
            self.mark(out, _Signal(((name, self.calls[name]),)))
            return out

        self._alone(module, call)

    def _passed(self, module: Any) -> None:
        original = module.forward

        def call(x: Tensor) -> Tensor:
            mark = self.mark_of(x)
            out: Tensor = original(x)
            if mark is not None:
                self.mark(out, mark)
            return out

        self._alone(module, call)

    def _lost(self, module: Any) -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            inside, self.inside = self.inside, True
            try:
                result = original(*args, **kwargs)
            finally:
                self.inside = inside
            if any(self.mark_of(x) is not None for x in pytree.tree_leaves((args, kwargs))):
                for x in pytree.tree_leaves(result):
                    self.mark(x, _Lost(type(module).__name__))
            return result

        vars(module)["forward"] = forward

    def _alone(self, module: Any, call: Callable[[Tensor], Tensor]) -> None:
        """Put ``call`` in the place of a forward, of whose functions nothing is followed."""
        original = module.forward

        vars(module)["forward"] = lambda x: original(x) if self.inside else call(x)

    def _check_name(self, name: str) -> None:
        if name in (INPUT, OUTPUT):
            raise ValueError(f"the graph has a node {name!r} of its own; give the module another name")

    # ---- layers in sequence

    def _multi_step(self, net: MultiStep) -> Callable[..., Any]:
        def forward(
            x: Tensor,
            num_steps: int | None = None,
            *,
            record_mem: bool = True,
            reduce: str | None = None,
            **others: Any,
        ) -> Any:
            for option, value in others.items():
                if value is not None and value is not False:
                    raise ValueError(f"{option}: a call of a MultiStep with it can't be exported")
            spk, last = self._sequence(net.layers, _steps(x, num_steps)), net.layers[-1]
            if not isinstance(last, SpikingLayer):
                return spk
            states = [torch.zeros_like(spk if record_mem else spk[0]) for name in last.neuron.states if name != "spk"]
            for state in states:
                self.mark(state, _Lost("a state of neurons"))
            return (spk if reduce is None else spk.sum(0), *states)

        return forward

    def _sequence(self, layers: Iterable[Any], x: Tensor) -> Tensor:
        for layer in layers:
            if isinstance(layer, Residual):
                x = self._residual(layer, x)
            elif isinstance(layer, BaseNode):
                x = layer.multi_step_forward(x)
            elif isinstance(layer, SpikingLayer):
                x = layer.unroll(x)[0]  # type: ignore[operator]
            elif isinstance(layer, Branches):
                x = layer.over(x, lambda layer, x: self._sequence([layer], x))
            elif has_unroll(layer):
                x = layer.unroll(x)
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return x

    def _residual(self, block: Residual, x: Tensor) -> Tensor:
        y = self._sequence(block.layers.layers, x)
        return y + (x if block.shortcut is None else self._sequence(_opened(block.shortcut), x))

    # ---- signals

    def mark(self, x: Tensor, mark: _Mark) -> None:
        self.marks[id(x)] = x, mark

    def mark_of(self, x: object) -> _Mark | None:
        return self.marks[id(x)][1] if id(x) in self.marks else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            self._follow(func, args, kwargs or {}, result)
        return result

    def _follow(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given = [mark for x in pytree.tree_leaves((args, kwargs)) if (mark := self.mark_of(x)) is not None]
        name: str = func.__name__
        if not given or name.startswith("new_") or name.endswith("_like"):  # without the values of a signal
            return
        if name == "__get__":  # an attribute
            name = func.__self__.__name__
        if name == "__setitem__":
            result = args[0]
        lost = next((mark for mark in given if isinstance(mark, _Lost)), None)
        follow = _FOLLOWED.get(name)
        mark = lost or (follow and follow(self, func, args, kwargs)) or _Lost(name.strip("_"))
        results = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        for i, x in enumerate(results):
            self.mark(x, self._step(mark, i) if name == "unbind" and isinstance(mark, _Signal) else mark)
        if name.endswith("_") and isinstance(mark, _Lost):  # it was changed in place, and so were its views
            changed = {x.untyped_storage().data_ptr() for x in results}
            for x, _ in list(self.marks.values()):
                if x.untyped_storage().data_ptr() in changed:
                    self.mark(x, mark)

    def _step(self, signal: _Signal, i: int) -> _Signal:
        """One step of a signal that has all of them."""
        self.taken_apart |= set(signal.names) - {INPUT}
        return signal._replace(sources=tuple((n, None if n == INPUT else i + 1) for n in signal.names))

    def _of(self, x: object) -> _Signal:
        mark = self.mark_of(x)
        return mark if isinstance(mark, _Signal) else _Signal(())

    def _before(self, x: Tensor) -> int | None:
        """The number of dimensions of a signal before those of one sample, if it is known."""
        shapes = {len(self.shapes[name]) for name in self._of(x).names if name in self.shapes and name != INPUT}
        return None if not shapes else x.dim() - min(shapes)

    def _same(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark:
        return self._of(args[0])

    def _sum(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """A sum of two signals, or of one and zeros."""
        a: Any = args[0]
        b: Any = args[1] if len(args) > 1 else kwargs.get("other")
        if set(kwargs) - {"other"}:
            return None
        if not (self._of(a).sources and self._of(b).sources):
            signal, other = (a, b) if self._of(a).sources else (b, a)
            return self._of(signal) if not torch.as_tensor(other).any() else _Lost("a sum with a constant")
        if a.shape != b.shape:
            return _Lost("a sum of signals of two shapes")
        one, two = self._of(a), self._of(b)
        if set(one.names) == set(two.names):
            # The calls of the same nodes at several steps.
            same = one.sources == two.sources and not one.over_time
            return _Lost("a signal added to itself") if same else _all_steps(one, in_order=False)
        if set(one.names) & set(two.names):
            return _Lost("a signal added to itself")
        if len(two.sources) > len(one.sources):  # sums are commutative; edges are added up from left to right
            one, two = two, one
        return _Signal(one.sources + two.sources, one.over_time or two.over_time)

    def _along(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """Steps that are put together or taken apart along a dimension of time or samples."""
        tensors = args[0] if isinstance(args[0], Sequence) else [args[0]]
        signals = [self._of(x) for x in tensors]
        at = _ALONG[func.__name__]
        dim = kwargs.get("dim", args[at] if len(args) > at else 0)
        before = self._before(tensors[0])
        if dim < 0 or (before is not None and dim > before) or any(s.names != signals[0].names for s in signals):
            return None
        if all(s.sources == signals[0].sources for s in signals):
            if func.__name__ != "select":
                return signals[0]
            return self._indexed(func, (tensors[0], (slice(None),) * dim + (args[2],)), kwargs)
        in_order = all([step for _, step in s.sources] == [i + 1] * len(s.sources) for i, s in enumerate(signals))
        return _all_steps(signals[0], in_order)

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """Dimensions in another order, without those of one sample."""
        x = args[0]
        order = list(range(x.dim()))
        found = list(func(torch.empty(order, device="meta"), *args[1:], **kwargs).shape)
        before = self._before(x)
        if before is None:  # time is moved, or time and samples change places
            fits = any(found[n:] == sorted(found[n:]) for n in (1, 2))
        else:
            fits = found[before:] == order[before:]
        return self._of(x) if fits else None

    def _indexed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """Steps or samples of a signal."""
        x, index = args
        index = index if isinstance(index, tuple) else (index,)
        if any(not (i is None or i is Ellipsis or isinstance(i, int | slice)) for i in index):
            return None
        before = self._before(x)
        parts = [i for i in index if i is not None]
        whole = slice(None)
        if before is None:
            return self._of(x) if all(not isinstance(i, slice) or i == whole for i in parts[1:]) else None
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts = parts[:at] + [whole] * (x.dim() - len(parts) + 1) + parts[at + 1 :]
        if any(i != whole for i in parts[before:]):
            return None
        found = self._of(x)
        for dim, i in enumerate(parts[:before]):
            if isinstance(i, slice) and i != whole:
                found = found._replace(over_time=True)
            elif isinstance(i, int) and before > 1:
                found = self._step(found, i % x.size(dim))
        return found

    def _assigned(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """A record of steps: ``spk_rec[step] = spk``."""
        record, index, value = args
        before, new = self._of(record), self._of(value)
        if not new.sources or (before.sources and before.names != new.names):
            return None
        at = [i for i in (index if isinstance(index, tuple) else (index,)) if isinstance(i, int)]
        in_order = len(at) == 1 and {step for _, step in new.sources} == {at[0] + 1}
        return _all_steps(new, in_order and not before.over_time)

    def _reduced(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """A sum or mean over time."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        before = self._before(args[0])
        if not isinstance(dim, int) or before is None or not 0 <= dim < before:
            return None
        return self._of(args[0])._replace(over_time=True)

    def _scaled(self, func: Any, args: Any, kwargs: dict[str, Any]) -> _Mark | None:
        """A sum over time that is divided by the number of steps."""
        x, other = args[0], args[1] if len(args) == 2 else None
        return self._of(x) if self._of(x).over_time and isinstance(other, int | float) else None

    # ---- the graph

    def _connect(self, name: str, mark: _Mark | None, x: Tensor, shape: Shape) -> None:
        """Note a call of a node with an input of ``shape``."""
        call = self.calls[name] = self.calls.get(name, 0) + 1
        if mark is None:
            if x.any():
                raise ValueError("its input does not come from that of the network, and is not zeros")
            return
        if isinstance(mark, _Lost):
            raise ValueError(f"its input {_no_node(mark)}")
        if mark.over_time:
            raise ValueError("its input is a sum over time, or not all steps in order, for which NIR has no node")
        for source, step in mark.sources:
            self.edges.setdefault((self._flat(source, step, shape), name), []).append((step, call))

    def _flat(self, source: str, step: int | None, shape: Shape) -> str:
        """The node that gives the output of a node in a shape, which may be flat."""
        given = self.shapes.setdefault(source, shape)
        if given == shape:
            return source
        if shape != (prod(given),):
            raise ValueError(f"its input {shape} is not the output of {source}, {given}")
        name = f"{source}_flatten"
        if name not in self.nodes:
            self.nodes[name] = nir.Flatten(np.array(given), 0, -1)
            self.shapes[name] = shape
        self.calls[name] = self.calls.get(source, 1)
        self.taken_apart |= {name} & {f"{n}_flatten" for n in self.taken_apart}
        if not (calls := self.edges.setdefault((source, name), [])) or calls[-1] != (step, step or 1):
            calls.append((step, step or 1))
        return name

    def graph(self, result: Any) -> nir.NIRGraph:
        """The graph, after the call of the network."""
        found = next((x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)), None)
        mark = self.mark_of(found)
        if isinstance(mark, _Lost):
            raise ValueError(f"net: its first result {_no_node(mark)}")
        if mark is None or INPUT not in self.shapes:
            raise ValueError("net: its first result does not come from its input through layers")
        if INPUT in mark.names:
            raise ValueError("net: its first result is not the output of a layer")
        self._check_calls()
        edges = [*self.edges, *((name, OUTPUT) for name in mark.names)]
        shapes = {self.shapes[name] for name in mark.names}
        if len(shapes) != 1:
            raise ValueError("net: its first result is a sum of layers of several shapes")
        first = nir.Input(np.array(self.shapes[INPUT]))
        last = nir.Output(np.array(shapes.pop()))
        return nir.NIRGraph({INPUT: first, **self.nodes, OUTPUT: last}, edges)

    def _check_calls(self) -> None:
        """Raise unless each layer is called once a step, by what others return in the same step."""
        sources: dict[str, dict[int, set[str]]] = {name: {} for name in self.nodes}
        for (source, name), calls in self.edges.items():
            many = self.calls.get(source, 1) > 1 or source in self.taken_apart
            lags = {call - step for step, call in calls if step is not None and many}
            for _, call in calls:
                sources[name].setdefault(call, set())
            if lags == {1} and isinstance(self.nodes[source], _NEURONS):  # whose spikes before the first step are zeros
                if not self._leads(name, source):
                    raise ValueError(
                        f"{name}: it reads what {source} returned a step before, a delay that NIR can't say"
                    )
                continue
            if lags - {0}:
                raise ValueError(f"{name}: NIR can't say that it is called more or less than once a step of {source}")
            for _, call in calls:
                sources[name][call].add(source)
        for name, found in sources.items():
            if not any(name == to for _, to in self.edges):
                raise ValueError(f"{name}: no input of it was seen; give sample_data of at least two steps")
            if any(each != found.get(1, each) for each in found.values()):
                raise ValueError(f"{name}: NIR can't say that it is called with other inputs at other times")

    def _leads(self, start: str, end: str) -> bool:
        reached, ahead = {start}, [start]
        while ahead:
            at = ahead.pop()
            ahead += [to for source, to in self.edges if source == at and to not in reached]
            reached |= set(ahead)
        return end in reached


_ALONG = {"cat": 1, "concat": 1, "select": 1, "stack": 1, "unbind": 1}
"""Functions along a dimension, and the position of that argument."""

_SAME = (
    "clone", "contiguous", "cpu", "cuda", "data", "detach", "detach_", "double", "expand", "flatten", "float", "ravel",
    "requires_grad_", "reshape", "squeeze", "to", "type", "unflatten", "unsqueeze", "view",
)  # fmt: skip
"""Functions that keep the order of the values. The next layer tells whether its input is the shape of one sample."""

_FOLLOWED: dict[str, Callable[..., _Mark | None]] = {
    **dict.fromkeys(_SAME, _Trace._same),
    **dict.fromkeys(("add", "add_", "__add__", "__iadd__", "__radd__"), _Trace._sum),
    **dict.fromkeys(_ALONG, _Trace._along),
    **dict.fromkeys(("permute", "swapaxes", "transpose"), _Trace._moved),
    **dict.fromkeys(("mean", "sum"), _Trace._reduced),
    **dict.fromkeys(("div", "div_", "__itruediv__", "__truediv__"), _Trace._scaled),
    "__getitem__": _Trace._indexed,
    "__setitem__": _Trace._assigned,
}
"""The functions that a signal may go through between layers, each with what it makes of one; ``None``: nothing."""


def _steps(x: Tensor, num_steps: int | None) -> Tensor:
    """The input of every step ``[T, B, *]``."""
    return x if num_steps is None else x.expand(num_steps, *x.shape)


def _all_steps(signal: _Signal, in_order: bool) -> _Signal:
    return _Signal(tuple((name, None) for name in signal.names), signal.over_time or not in_order)


def _no_node(mark: _Lost) -> str:
    remedy = next((remedy for name, remedy in _REMEDIES.items() if mark.by.startswith(name)), "")
    return f"comes from {mark.by}, for which NIR has no node{remedy}"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in errors which module they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
