"""Networks by SpikingJelly's names whose nodes run all steps in one call, in step mode ``"m"``.

A batch normalisation and the node behind it are called each by itself, and neither knows who else reads what lies
between them. In a ``nn.Sequential`` nobody else does. So there the two run as one, where there are kernels for it.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.compiler import is_compiling

from snnfast._core.modules import is_only_called
from snnfast._core.ops import has_norm
from snnfast._images.batch_norm import is_pytorchs
from snnfast._images.channels_last import to_call
from snnfast.networks.over_time import norm_of
from snnfast.spikingjelly import layer as layers
from snnfast.spikingjelly.functional import seq_to_ann_forward
from snnfast.spikingjelly.neuron import BaseNode

__all__ = ["call", "pair"]


def pair(net: nn.Module) -> None:
    """Let every ``nn.Sequential`` inside a network be called by :func:`call`, as long as the network is compiled."""
    for module in net.modules():
        if module is not net and type(module) is nn.Sequential and not _has_call_of_its_own(module):
            module._compiled_call_impl = partial(_inside, weakref.ref(net), weakref.ref(module))


def _inside(compiled: Callable[[], Any], called: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
    net, module = compiled(), called()
    of_module = module._call_impl if net is None or net._compiled_call_impl is None else partial(call, module)
    return of_module(*args, **kwargs)


def call(net: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a network. In a ``nn.Sequential`` without hooks, batch normalisations and nodes run as one."""
    is_open = type(net) is nn.Sequential and is_only_called(net)
    if is_compiling() or not is_open or len(args) != 1 or kwargs:
        return net._call_impl(*args, **kwargs)
    x, rest = args[0], list(net)
    while rest:
        first = rest.pop(0)
        if _is_open(first):
            rest[:0] = first
            continue
        while rest and _is_open(rest[0]):
            rest[:1] = rest[0]
        fits = isinstance(x, Tensor) and has_norm(x.device) and rest and _reads_all_steps(rest[0])
        norm = _norm_in(first) if fits else None
        x = first(x) if norm is None else _both(norm, rest.pop(0), x)
    return x


def _is_open(module: nn.Module) -> bool:
    """Whether a call of a module is nothing but calls of the modules in it, one after the other."""
    return type(module) is nn.Sequential and _is_plain(module)


def _is_plain(module: nn.Module) -> bool:
    return is_only_called(module) and not _has_call_of_its_own(module)


def _has_call_of_its_own(module: nn.Module) -> bool:
    """Whether a part of a network is compiled by itself, by ``Module.compile`` or :func:`snnfast.compile`."""
    compiled = module._compiled_call_impl
    return compiled is not None and getattr(compiled, "func", None) is not _inside


def _reads_all_steps(node: nn.Module) -> bool:
    if not isinstance(node, BaseNode) or node.step_mode != "m" or node.store_v_seq or not _is_plain(node):
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
    if not _is_plain(module):
        return None
    if type(module) in layers.BATCH_NORMS and module.step_mode == "m":
        return _Norm(module, module, [])
    if type(module) is not layers.SeqToANNContainer or not len(module) or not is_pytorchs(module[-1]):
        return None
    module._check_layers()
    *before, last = map(to_call, module)
    return _Norm(module[-1], lambda x: seq_to_ann_forward(x, last), before)


def _both(norm: _Norm, node: Any, x: Tensor) -> Tensor:
    current = seq_to_ann_forward(x, norm.before) if norm.before else x
    of_both = norm_of(norm.layer, current, True, norm.by_itself)
    if of_both is None:
        return node(norm.by_itself(current))  # type: ignore[no-any-return]
    return node._unroll(current, (None,), None, False, None, norm=of_both)[0]  # type: ignore[no-any-return]
