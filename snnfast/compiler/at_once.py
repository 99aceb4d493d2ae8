"""Networks by SpikingJelly's names whose nodes run all steps in one call, in step mode ``"m"``.

A batch normalisation, the node behind it and a pooling are called each by itself, and none knows who else reads what
lies between them. In a ``nn.Sequential`` nobody else does. So there they run as one, where there are kernels for it,
and images lie in channels_last order from a convolution in front of neurons on, as in a ``MultiStep``. The layers are
those from here, or an installed SpikingJelly's.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.compiler import is_compiling

from snnfast._core.modules import is_only_called
from snnfast._core.ops import has_norm
from snnfast._images.batch_norm import is_pytorchs, of_batch
from snnfast._images.channels_last import Order, keeps_order, profits, to_call, to_channels_last
from snnfast._images.conv2d import convolved
from snnfast._images.pool2d import averaged, pooled
from snnfast.networks.over_time import norm_of, pool_of
from snnfast.spikingjelly import layer as ours
from snnfast.spikingjelly.functional import seq_to_ann_forward
from snnfast.spikingjelly.neuron import BaseNode

__all__ = ["call", "pair"]


def pair(net: nn.Module) -> None:
    """Let the modules in a network be called by :func:`call`, where that matters, as long as the network is compiled.

    One that is compiled by itself stays so.
    """
    for module in net.modules():
        if module is not net and (type(module) is nn.Sequential or _is_theirs(module)) and not _is_compiled(module):
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
    """Call a module. In a ``nn.Sequential`` without hooks, batch normalisations and nodes run as one.

    A layer of SpikingJelly's runs as the one here that has its name.
    """
    if is_compiling() or not is_only_called(net) or len(args) != 1 or kwargs:
        return net._call_impl(*args, **kwargs)
    x, rest, order = args[0], list(_opened(net)) if type(net) is nn.Sequential else [], Order()
    if not rest:
        batch = _batch_of(net, x.dim()) if isinstance(x, Tensor) and _is_theirs(net) else None
        return net._call_impl(x) if batch is None else batch(x)
    while rest:
        first = rest.pop(0)
        batch = _batch_of(first, x.dim()) if isinstance(x, Tensor) else None
        if batch is not None:
            x = _of_batch(batch, rest, x, order)
        else:
            x = first(x if _reads_all_steps(first) else order.usual(x))
    return order.usual(x)


def _opened(net: nn.Sequential) -> Iterator[nn.Module]:
    """The modules in a network, and in place of one that does nothing but call those in it, these."""
    for module in net:
        if type(module) is nn.Sequential and _is_only_called(module):
            yield from _opened(module)
        else:
            yield module


def _is_only_called(module: nn.Module) -> bool:
    return is_only_called(module) and not _is_compiled(module)


def _reads_all_steps(node: nn.Module) -> bool:
    if not isinstance(node, BaseNode) or node.step_mode != "m" or node.store_v_seq or not _is_only_called(node):
        return False
    kind = type(node)
    return kind.forward is BaseNode.forward and kind.multi_step_forward is BaseNode.multi_step_forward


# ---- layers that see all steps as one batch [T * B, *]


class _Batch(NamedTuple):
    """Layers, one after the other.

    Attributes:
        functions: What each of them computes of a batch.
        convolution: The first of them, if it is one.
        norm: The last of them, if it is a batch normalisation.
        pool: The only one, if it is a pooling.
        keeps_order: Whether all of them leave the order of images in memory as it is.
    """

    functions: list[Callable[[Tensor], Tensor]]
    convolution: nn.Conv2d | None
    norm: Any
    pool: Any
    keeps_order: bool

    def __call__(self, x: Tensor) -> Tensor:
        return seq_to_ann_forward(x, self.functions)  # type: ignore[no-any-return]


def _is_theirs(module: nn.Module) -> bool:
    """Whether it is a layer of an installed SpikingJelly."""
    return type(module).__module__.startswith("spikingjelly.activation_based.layer")


_NORMS = "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Conv2d": ours.Conv2d._of_batch,
    "MaxPool2d": pooled,
    "AvgPool2d": averaged,
}


def _batch_of(module: Any, dims: int) -> _Batch | None:
    """A layer, or a container of layers, by its name in SpikingJelly, of a signal with so many dimensions."""
    kind, name = type(module), type(module).__name__
    known = getattr(ours, name, None)
    if known is None or not (kind is known or _is_theirs(module)) or not _is_only_called(module):
        return None
    if name == "SeqToANNContainer":
        return _in_container(module) if len(module) else None
    if name not in (*_NORMS, *_FUNCTIONS) or module.step_mode != "m" or dims not in known.dims:
        return None
    if name in _NORMS:
        by_pytorch = partial(getattr(nn, name).forward, module)
        function: Callable[[Tensor], Tensor] = partial(of_batch, module, otherwise=by_pytorch)
        return _Batch([function], None, module, None, name == "BatchNorm2d")
    if getattr(module, "padding_mode", "zeros") != "zeros" or getattr(module, "return_indices", False):
        return None
    convolution, pool = (module, None) if name == "Conv2d" else (None, module)
    return _Batch([partial(_FUNCTIONS[name], module)], convolution, None, pool, True)


def _in_container(container: Any) -> _Batch:
    if type(container) is ours.SeqToANNContainer:
        container._check_layers()
    first, last = container[0], container[-1]
    return _Batch(
        [partial(convolved, layer) if _is_convolution(layer) else to_call(layer) for layer in container],
        first if _is_convolution(first) else None,
        last if is_pytorchs(last) else None,
        last if len(container) == 1 and type(last) in (nn.MaxPool2d, nn.AvgPool2d) and is_only_called(last) else None,
        all(map(keeps_order, container)),
    )


def _is_convolution(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and keeps_order(layer) and not _is_compiled(layer)


def _of_batch(batch: _Batch, rest: list[Any], x: Tensor, order: Order) -> Tensor:
    """Call layers, and with a batch normalisation those of the rest that can be one with it."""
    if not batch.keeps_order:
        x = order.usual(x)
    elif batch.convolution is not None and x.dim() == 5 and profits(x, batch.convolution.weight) and _has_neurons(rest):
        x, order.is_channels_last = seq_to_ann_forward(x, to_channels_last), True
    if batch.norm is None or not rest or not _reads_all_steps(rest[0]) or not has_norm(x.device):
        return batch(x)
    *before, last = batch.functions
    current = seq_to_ann_forward(x, before) if before else x
    by_itself, node = partial(seq_to_ann_forward, stateless_module=last), rest.pop(0)
    of_both = norm_of(batch.norm, current, True, by_itself)
    if of_both is None:
        return node(by_itself(current))  # type: ignore[no-any-return]
    behind = _batch_of(rest[0], current.dim()) if rest else None
    if (
        behind is not None
        and behind.pool is not None
        and (pool := pool_of(behind.pool, current, behind.__call__)) is not None
    ):
        of_both = of_both._replace(pool=pool)
        rest.pop(0)
    return node._unroll(current, (None,), None, False, None, norm=of_both)[0]  # type: ignore[no-any-return]


def _has_neurons(rest: Sequence[Any]) -> bool:
    """Whether neurons read an image in the order of the convolution. Without these, two copies cost more than it."""
    for module in rest:
        if _reads_all_steps(module):
            return True
        batch = _batch_of(module, 5)
        if batch is None or not batch.keeps_order:
            return False
    return False
