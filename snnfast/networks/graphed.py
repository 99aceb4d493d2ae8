"""A training step as one CUDA graph: see :func:`graphed`."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from snnfast.neurons.base import SpikingLayer

__all__ = ["graphed"]

P = ParamSpec("P")
R = TypeVar("R")

# Calls before a capture, in which libraries set up what a capture must not. The check is in one of them behind the
# first, before which no layer holds a state, and before the last, since compiled code does not run in it.
_WARM_UPS, _CHECKED = 3, 1
_MOST_GRAPHS = 16


def graphed(step: Callable[P, R], optimizer: torch.optim.Optimizer) -> Callable[P, R]:
    """A training step that runs as one CUDA graph: a call on a GPU is one launch, forward, backward and optimizer.

    With a small network, the host takes longer to launch the kernels of a step than the GPU takes to run them. The
    first three calls run ``step`` as it is, on a stream of their own. The next one captures a graph, which that call
    and all later ones replay. Each call is one step of the training, so the results are those of ``step``.

    :class:`MultiStep`, compiled networks, batch normalisation, SpikingJelly's nodes, connected neurons and neurons of
    your own can all be captured. A replay runs no Python, which gives the step a few rules:

    - It does all that belongs to a training step: ``optimizer.zero_grad()``, ``loss.backward()`` and
      ``optimizer.step()``. It waits for nothing: no ``.item()``, ``print`` of a tensor, or ``if`` on one. What Python
      decides, such as ``net.train()``, is decided when the graph is captured.
    - It begins with a reset of the layers that hold their states (:func:`reset`, or SpikingJelly's ``reset_net``).
    - All tensors that change from call to call are arguments. Gradients are read in the step, if at all.
    - A number of the optimizer is part of the graph. A scheduler needs ``lr=torch.tensor(1e-3, device="cuda")``.
    - ``torch.autocast`` is entered in the step. A ``GradScaler`` works with ``fused=True``, where it does not wait.

    If the first parameter of the optimizer is not on a GPU, a call is one of ``step``.

    Args:
        step: Trains on one minibatch. It may return tensors of any shape and dtype, in tuples, lists and dicts.
        optimizer: Has all parameters that ``step`` trains. On a GPU it must be made with ``capturable=True``, where it
            has this option; ``fused=True`` makes it one kernel.

    Returns:
        A function with the arguments and results of ``step``. Tensors among its arguments, also in tuples, lists and
        dicts, are copied to where the graph reads them, from any device. The results have no gradient history, and a
        later call does not change them. Each shape or dtype of the arguments, such as that of a smaller last
        minibatch, and each value of an argument that is no tensor has a graph of its own, up to 16. All graphs share
        their memory.

    Raises:
        TypeError: ``step`` can't be called, ``optimizer`` is no optimizer, or an argument of a call is neither a tensor
            nor can be hashed.
        ValueError: The optimizer was made without ``capturable=True``, or has part of its state on the CPU.
        RuntimeError: The step goes on from a state that a layer holds; it waits or copies from the CPU while it is
            captured; it is called in ``torch.autocast``, or with too many shapes and values; or the optimizer has
            other numbers, or another state, than when the graph was captured.

    Example::

        >>> import torch, snnfast
        >>> from torch import nn
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> net = snnfast.MultiStep(nn.Linear(784, 100), snnfast.Leaky(0.9), nn.Linear(100, 10), snnfast.Leaky(0.9))
        >>> optimizer = torch.optim.Adam(net.to(device).parameters(), fused=True, capturable=device == "cuda")
        >>> loss_fn = snnfast.losses.ce_membrane_loss()
        >>> def step(images, labels):
        ...     _, mem_rec = net(images, num_steps=25)
        ...     loss = loss_fn(mem_rec, labels)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> train = snnfast.graphed(step, optimizer)
        >>> for _ in range(5):
        ...     loss = train(torch.rand(128, 784, device=device), torch.randint(10, (128,), device=device))

    The idea is that of `whole-network capture
    <https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture>`_ in PyTorch.
    """
    if not callable(step):
        raise TypeError(f"step: expected a function, got {type(step).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    run = _Graphed(step, optimizer)

    @functools.wraps(step, updated=())
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return run(args, kwargs)  # type: ignore[no-any-return]

    return call


class _Captured(NamedTuple):
    inputs: list[Tensor]
    outputs: Any
    replay: Callable[[], None]
    seen: dict[str, Any]  # of the optimizer


class _Graphed:
    """The graphs of a step by the form of its arguments, or how often it was called without one."""

    def __init__(self, step: Callable[..., Any], optimizer: torch.optim.Optimizer) -> None:
        self._step, self._optimizer = step, optimizer
        self._graphs: dict[Hashable, _Captured | int] = {}
        self._card: _Card | None = None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = self._optimizer.param_groups[0]["params"][0].device
        if device.type not in _Card.types:
            return _detached(self._step(*args, **kwargs))
        leaves, spec = pytree.tree_flatten((args, kwargs))
        key = spec, *((x.shape, x.dtype) if isinstance(x, Tensor) else (type(x), x) for x in leaves)
        try:
            graph = self._graphs.get(key)
        except TypeError as error:
            raise TypeError(f"step: expected tensors and values that can be hashed, got one of {error}") from None
        if graph is None:
            self._check(device)
        if not isinstance(graph, _Captured):
            calls = graph or 0
            self._card = self._card or _Card(device)
            given = [x.detach().to(device, copy=calls == _WARM_UPS) if isinstance(x, Tensor) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(given, spec)
            if calls < _WARM_UPS:
                with _states_are_not_read() if calls == _CHECKED else contextlib.nullcontext():
                    results = self._card.run(lambda: _detached(self._step(*args, **kwargs)))
                self._graphs[key] = calls + 1
                return results
            graph = self._graphs[key] = self._capture(self._card, args, kwargs, given)
        self._check_seen(graph.seen)
        for to, new in zip(graph.inputs, (x for x in leaves if isinstance(x, Tensor)), strict=True):
            to.copy_(new)
        graph.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, graph.outputs)

    def _check(self, device: torch.device) -> None:
        """Whether a graph can be made for a further form of the arguments."""
        if not all(group.get("capturable", True) for group in self._optimizer.param_groups):
            name = type(self._optimizer).__name__
            raise ValueError(f"optimizer: make it with capturable=True: {name}(..., capturable=True)")
        if torch.is_autocast_enabled(device.type):
            raise RuntimeError("step: enter torch.autocast in it; weights that were cast outside would never change")
        if len(self._graphs) == _MOST_GRAPHS:
            raise RuntimeError(
                f"step: {_MOST_GRAPHS} graphs were made for arguments of other shapes, dtypes or values. Pass numbers "
                "that change as tensors, and few shapes"
            )

    def _capture(self, card: "_Card", args: Any, kwargs: Any, given: list[Any]) -> _Captured:
        for state in self._optimizer.state.values():
            for name, value in state.items():
                if not (value is None or (isinstance(value, Tensor) and value.device.type in card.types)):
                    kind = type(self._optimizer).__name__
                    raise ValueError(f"optimizer: {kind} keeps {name!r} of a parameter on the CPU, for which it waits")
        seen = self._seen()
        for name, value in seen.items():
            if isinstance(value, Tensor) and value.device.type not in card.types:
                raise ValueError(f"optimizer: {name} must be a number or a tensor on the GPU, got one on the CPU")
        try:
            outputs, replay = card.capture(lambda: _detached(self._step(*args, **kwargs)))
        except Exception as error:
            error.add_note("snnfast.graphed: the step can't be captured; docs/gpu.md says what it may do")
            raise
        return _Captured([x for x in given if isinstance(x, Tensor)], outputs, replay, seen)

    def _seen(self) -> dict[str, Any]:
        """Everything of the optimizer that is fixed in a graph: its numbers, and the places of its tensors."""
        names, groups = self._optimizer.defaults, self._optimizer.param_groups
        found = {f"{name} of group {i}": group.get(name) for i, group in enumerate(groups) for name in names}
        return {"state": self._optimizer.state, **found}

    def _check_seen(self, captured: dict[str, Any]) -> None:
        now = self._seen()
        for name in {**now, **captured}:
            a, b = captured.get(name), now.get(name)
            if a is not b and (name == "state" or isinstance(a, Tensor) or isinstance(b, Tensor) or a != b):
                raise RuntimeError(
                    f"optimizer: {name} is another one than in the graph. Make a number that changes a tensor, as in "
                    "lr=torch.tensor(1e-3, device='cuda'), or call snnfast.graphed again"
                )


def _detached(results: Any) -> Any:
    """Without a history, which would keep PyTorch's nodes of the parameters on the stream where they were made."""
    return pytree.tree_map_only(Tensor, Tensor.detach, results)


class _Card:
    """The stream on which a step is warmed up and captured, and the memory that its graphs share."""

    types: ClassVar[tuple[str, ...]] = ("cuda",)

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, step: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            results = step()
        current.wait_stream(self._stream)
        return results

    def capture(self, step: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The results of a step, which a replay writes anew."""
        graph = torch.cuda.CUDAGraph()
        # By thread: a DataLoader may pin memory in another one meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            results = step()
        return results, graph.replay


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The states of layers that are read although they were held before. A graph would not see them change."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = {id(state): (name, state) for name, state in _held_states()}
        self.found: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is not torch.ops.aten.zeros_like.default:  # with which a reset begins
            for x in pytree.tree_leaves((args, kwargs)):
                if id(x) in self._held:
                    self.found.append(self._held[id(x)][0])
        return op(*args, **(kwargs or {}))


def _held_states() -> Iterator[tuple[str, Tensor]]:
    kinds = [SpikingLayer]
    for kind in kinds:  # which grows
        kinds += kind.__subclasses__()
        for layer in vars(kind).get("instances", ()):
            for name in kind.neuron.states:
                if isinstance(state := getattr(layer, name, None), Tensor) and state.numel() > 0:
                    yield f"{name} of {type(layer).__name__}", state


@contextlib.contextmanager
def _states_are_not_read() -> Iterator[None]:
    with _Reads() as reads:
        yield
    if reads.found:
        raise RuntimeError(
            f"step: it goes on from a state that a layer held before, {reads.found[0]}, which a graph does not see. "
            "Reset the states first: snnfast.reset(net), or reset_net(net) of SpikingJelly"
        )
