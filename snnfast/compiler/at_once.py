"""Networks by SpikingJelly's names whose nodes run all steps in one call, in step mode ``"m"``.

A batch normalisation, the node behind it and a pooling are called each by itself, and none knows who else reads what
lies between them. In a ``nn.Sequential`` nobody else does. So there they run as one, where there are kernels for it.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.compiler import is_compiling

from snnfast._core.modules import is_only_called
from snnfast._core.norm import Pool
from snnfast._core.ops import has_norm
from snnfast._images.batch_norm import is_pytorchs
from snnfast._images.channels_last import to_call
from snnfast.networks.over_time import norm_of, pool_behind, pool_of
from snnfast.spikingjelly import layer as layers
from snnfast.spikingjelly.functional import seq_to_ann_forward
from snnfast.spikingjelly.neuron import BaseNode

__all__ = ["call", "pair"]


def pair(net: nn.Module) -> None:
    """Let every ``nn.Sequential`` inside a network be called by :func:`call`, as long as the network is compiled.

    One that is compiled by itself stays so.
    """
    for module in net.modules():
        if module is not net and type(module) is nn.Sequential and not _is_compiled(module):
            # It must not hold itself: nothing would free its memory at once.
            module._compiled_call_impl = partial(_inside, weakref.ref(net), weakref.ref(module))


def _is_compiled(module: Any) -> bool:
    """Whether a module is compiled by itself, and not by :func:`pair`."""
    impl = module._compiled_call_impl
    return impl is not None and not (type(impl) is partial and impl.func is _inside)


def _inside(of_net: Callable[[], Any], of_module: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
    net, module = of_net(), of_module()
    is_compiled = net is not None and net._compiled_call_impl is not None
    return call(module, *args, **kwargs) if is_compiled else module._call_impl(*args, **kwargs)


def call(net: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a network. In a ``nn.Sequential`` without hooks, batch normalisations and nodes run as one."""
    if is_compiling() or type(net) is not nn.Sequential or not is_only_called(net) or len(args) != 1 or kwargs:
        return net._call_impl(*args, **kwargs)
    x, rest = args[0], list[Any](net)
    while (first := _next(rest)) is not None:
        node = _next(rest, stays=True)
        fits = isinstance(x, Tensor) and has_norm(x.device) and node is not None and _reads_all_steps(node)
        norm = _norm_in(first) if fits else None
        x = first(x) if norm is None else _together(norm, rest.pop(0), rest, x)
    return x


def _next(rest: list[Any], stays: bool = False) -> Any:
    """The next module to call, which is taken from the rest unless it ``stays``; ``None`` where there is none."""
    while rest and _is_open(rest[0]):
        rest[:1] = rest[0]
    return None if not rest else rest[0] if stays else rest.pop(0)


def _is_open(module: nn.Module) -> bool:
    """Whether a call of a module is nothing but calls of the modules in it, one after the other."""
    return type(module) is nn.Sequential and _is_only_called(module)


def _is_only_called(module: nn.Module) -> bool:
    return is_only_called(module) and not _is_compiled(module)


def _reads_all_steps(node: nn.Module) -> bool:
    if not isinstance(node, BaseNode) or node.step_mode != "m" or node.store_v_seq or not _is_only_called(node):
        return False
    kind = type(node)
    return kind.forward is BaseNode.forward and kind.multi_step_forward is BaseNode.multi_step_forward


class _Norm(NamedTuple):
    """A batch normalisation of all steps ``[T, B, C, *]``."""

    layer: Any
    by_itself: Callable[[Tensor], Tensor]
    before: list[Callable[[Tensor], Tensor]]  # the layers before it, of a batch ``[T * B, *]``


def _norm_in(module: Any) -> _Norm | None:
    """The batch normalisation that a layer is, or with which a container ends."""
    if not _is_only_called(module):
        return None
    if type(module) in layers.BATCH_NORMS and module.step_mode == "m":
        return _Norm(module, module, [])
    if type(module) is not layers.SeqToANNContainer or not len(module) or not is_pytorchs(module[-1]):
        return None
    module._check_layers()
    *before, last = map(to_call, module)
    return _Norm(module[-1], lambda x: seq_to_ann_forward(x, last), before)


def _pool_in(module: Any, current: Tensor) -> Pool | None:
    """The pooling that a layer is, or that is alone in a container."""
    if not _is_only_called(module):
        return None
    if type(module) in layers.POOLINGS and module.step_mode == "m":
        return pool_of(module, current, module)
    if type(module) is not layers.SeqToANNContainer or len(module) != 1:
        return None
    module._check_layers()
    return pool_behind(module[0], current, module)


def _together(norm: _Norm, node: Any, rest: list[Any], x: Tensor) -> Tensor:
    """Call a batch normalisation and a node, and the first one of the rest if it is a pooling."""
    current = seq_to_ann_forward(x, norm.before) if norm.before else x
    of_both = norm_of(norm.layer, current, True, norm.by_itself)
    if of_both is None:
        return node(norm.by_itself(current))  # type: ignore[no-any-return]
    behind = _next(rest, stays=True)
    if behind is not None and (pool := _pool_in(behind, current)) is not None:
        of_both = of_both._replace(pool=pool)
        rest.pop(0)
    return node._unroll(current, (None,), None, False, None, norm=of_both)[0]  # type: ignore[no-any-return]
