"""The functions that users call: :func:`compile`, :func:`uncompile`, :func:`explain`, :func:`status`."""

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snnfast.compiler.choice import Choice
from snnfast.compiler.history import Status
from snnfast.compiler.record.recorded import Recorded, may_record
from snnfast.compiler.report import Explanation
from snnfast.neurons.network import convert

Compiled = Callable[..., Any]


def compile(net: Any, *, replay: bool = True) -> Any:
    """Replace the loop over time in a network or function by one call per layer for all time steps.

    A network is changed in place: its snnTorch layers are put on snnfast's kernels (:func:`snnfast.snntorch.convert`),
    and so are its nodes of SpikingJelly (:func:`snnfast.spikingjelly.convert`). From then on its call, ``net(x)``, is
    compiled. It stays the same object, with the same type, parameters, hooks and keys of its ``state_dict``. A copy of
    it, also a pickled one, is not compiled. :func:`uncompile` goes back to the call as it was, and :func:`status` says
    what became of the calls.

    A call is *recorded*: its code runs, but PyTorch's functions in it are written down instead of run. One graph then
    runs all of them, for any number of steps. The first call makes it, which takes seconds. A loop may read values as
    it goes, such as ``spk.sum().item()`` at each step: the graph runs ahead of it.

    If nothing is gained, the network or function runs as it is from then on, and one warning says why.

    A network in SpikingJelly's step mode ``"m"`` has no loop. In it, each batch normalisation in training and the node
    that alone reads it become one call.

    Args:
        net: A module with a loop over time in its ``forward``, or a function with one, such as a training step.
            Networks that a function calls are not converted: do so beforehand. A network that is compiled already, with
            any backend, is compiled anew from the original network.
        replay: Whether a call like an earlier one is *replayed*: where all that your code can see is as it was, the
            graph runs alone, and your code does not. docs/time-loop.md says what is watched. With ``False``, your code
            runs at each call.

    Returns:
        The network itself, or a compiled function in place of a function.

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
    if not isinstance(net, nn.Module):
        choice = Choice(net, _name_of(net), {}, replays=replay)

        @functools.wraps(net)
        def function(*args: Any, **kwargs: Any) -> Any:
            return choice(*args, **kwargs)

        return _tells(function, choice.status)
    left = convert(net)
    itself = weakref.ref(net)  # a network that is not used any more is freed at once, with all that was compiled for it
    call = Choice(_call, _name_of(net), left, replay)
    # It is the attribute in which torch.nn.Module.compile keeps a compiled call, too.
    net._compiled_call_impl = _tells(lambda *args, **kwargs: call(itself(), *args, **kwargs), call.status)
    return net


def _tells(compiled: Compiled, status: Status) -> Compiled:
    """Let a compiled call tell its status."""
    compiled.snnfast_status = status  # type: ignore[attr-defined]
    return compiled


def uncompile(net: Any) -> Any:
    """Go back to the call as it was before :func:`compile`.

    The layers of a network stay on the kernels; ``snnfast.snntorch.revert(net)`` makes them snnTorch's own.

    Args:
        net: A compiled network or function. One that is not compiled stays as it is.

    Returns:
        The network itself, changed in place, or the function that was compiled.

    Raises:
        TypeError: ``net`` can't be called.

    Example::

        >>> import torch, snnfast
        >>> net = snnfast.compile(torch.nn.Sequential(torch.nn.Linear(3, 2), snnfast.Leaky(0.9)))
        >>> print(snnfast.status(snnfast.uncompile(net)))
        Sequential is not compiled. Copies of a compiled network are not, either: call snnfast.compile
    """
    net = _checked(net)
    if isinstance(net, nn.Module):
        net._compiled_call_impl = None
        return net
    return net.__wrapped__ if hasattr(net, "snnfast_status") else net


def status(net: Any) -> Status:
    """Tell what became of the calls of a compiled network or function: replayed, recorded, or as they are, and why.

    :func:`explain` says of one call what is merged; this says what happened to yours, and how long it took.

    Args:
        net: A network or a function.

    Returns:
        A :class:`Status`. ``print`` it. That of a network goes on with its calls.

    Raises:
        TypeError: ``net`` can't be called.

    Example::

        >>> import torch, snnfast
        >>> lif = snnfast.Leaky(beta=0.9)
        >>> @snnfast.compile
        ... def loop(x):
        ...     mem = torch.zeros(3)
        ...     for step in x:
        ...         spk, mem = lif(step, mem)
        ...     return mem
        >>> for _ in range(3):
        ...     mem = loop(torch.rand(5, 3))
        >>> snnfast.status(loop).training
        'recorded'
    """
    net = _checked(net)
    call = net._compiled_call_impl if isinstance(net, nn.Module) else net
    found = getattr(call, "snnfast_status", None)
    return found if found is not None else Status(_name_of(net), is_compiled=False)


def _call(net: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The call of a network as it is."""
    return net._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def _checked(net: Any) -> Any:
    """The function or network that is given; the network itself where ``torch.compile`` has wrapped it."""
    if not callable(net):
        raise TypeError(f"net: expected a torch.nn.Module or a function, got {type(net).__name__}")
    return net._orig_mod if isinstance(net, torch._dynamo.OptimizedModule) else net


def _name_of(net: Any) -> str:
    return str(getattr(net, "__name__", type(net).__name__))


def _with_values(net: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that ``copy.deepcopy`` refuses, by their ids: states of a call that autograd records."""
    held = [t for module in net.modules() for t in pytree.tree_leaves(vars(module)) if isinstance(t, Tensor)]
    return {id(t): t.detach().clone() for t in held if not t.is_leaf}


_NOT_HERE = (
    "no call is recorded here: the reference is chosen, or a transform, a mode, hooks of saved tensors, a backward "
    "pass or another recorded call is around it"
)


def explain(net: Any, *inputs: Any, **named: Any) -> Explanation:
    """Explain what :func:`compile` does with a network or a function: what is merged, repeated or refused, and why.

    It works on a copy of a network, so that the network does not change. A function is called once, or twice if it
    reads values.

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
    if not may_record():
        return Explanation([], [_NOT_HERE])
    function = net
    if isinstance(net, nn.Module):
        copied = copy.deepcopy(net, _with_values(net))
        convert(copied)
        function = functools.partial(_call, copied)
    return Recorded(function, _name_of(net)).explain(*inputs, **named)
