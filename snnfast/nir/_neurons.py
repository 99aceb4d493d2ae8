"""Neuron layers as nodes of NIR, and back.

NIR states equations in continuous time. A step of ``dt`` is one of Euler's method, as in the exporters of snnTorch and
SpikingJelly: ``v + dt / tau * (v_leak - v + r * I)``.
"""

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snnfast.neurons import LAYERS, Leaky, RLeaky, RSynaptic, Synaptic
from snnfast.neurons.base import SpikingLayer
from snnfast.nir import _stateless
from snnfast.spikingjelly import neuron as nodes

__all__ = ["Shape", "layer_of", "node_of"]

Array = NDArray[Any]
Shape = tuple[int, ...]
"""The shape of one step of one sample, ``[*]``."""


# ---- from a layer to a node


def node_of(layer: Any, shape: Shape, dt: float) -> nir.NIRNode:
    """The node of a neuron layer. Neurons whose spikes come back to them are a graph, as snnTorch's exporter has it."""
    if isinstance(layer, nodes.BaseNode):
        return _of_spikingjelly(layer, shape, dt)
    known = (Leaky, Synaptic, RLeaky, RSynaptic)
    if not isinstance(layer, known):
        raise TypeError(f"{type(layer).__name__} has no node in NIR; Leaky, Synaptic, RLeaky and RSynaptic have one")
    if not any(type(layer).forward is ours.forward for ours in LAYERS.values()):
        raise TypeError(f"{type(layer).__name__} has its own forward, which NIR can't say")
    _check_options(layer)
    lif = _lif(layer, shape, dt)
    return _with_recurrence(layer, lif, shape) if isinstance(layer, RLeaky | RSynaptic) else lif


def _check_options(layer: Any) -> None:
    """Raise for an option that changes the spikes, and that NIR can't say."""
    remedy = "; set it on the network, and look at what this does to its results, before the export"
    if layer.reset_mechanism != "zero":
        raise ValueError(
            f"reset_mechanism: neurons of NIR are set to v_reset when they spike, so expected 'zero', got "
            f"{layer.reset_mechanism!r}{remedy}"
        )
    if layer.reset_delay:
        raise ValueError(f"reset_delay: neurons of NIR are reset in the step of the spike, so expected False{remedy}")
    if layer.inhibition:
        raise ValueError("inhibition: NIR has no neurons of which only one spikes; expected False")
    if layer.state_quant:
        raise ValueError("state_quant: NIR has no states that are rounded; expected False")
    if bool((layer.graded_spikes_factor != 1).any()):
        raise ValueError("graded_spikes_factor: spikes of NIR are 0 or 1, so expected 1; scale the next layer's weight")


def _lif(layer: Any, shape: Shape, dt: float) -> nir.NIRNode:
    threshold = layer.threshold
    # snnTorch, and so the layers, compare with a float32 where the threshold is one number.
    threshold = _values("threshold", threshold.float() if threshold.dim() == 0 else threshold, shape)
    zeros = np.zeros_like(threshold)
    beta = _values("beta", layer.beta.clamp(0, 1), shape)
    current_based = isinstance(layer, Synaptic | RSynaptic)
    if not current_based and (beta == 1).all():
        return nir.IF(r=np.full_like(threshold, 1 / dt), v_threshold=threshold, v_reset=zeros)
    tau = _time_constant("beta", beta, dt)
    rest = {"r": tau / dt, "v_leak": zeros, "v_threshold": threshold, "v_reset": zeros}
    if not current_based:
        return nir.LIF(tau=tau, **rest)
    tau_syn = _time_constant("alpha", _values("alpha", layer.alpha.clamp(0, 1), shape), dt)
    return nir.CubaLIF(tau_syn=tau_syn, tau_mem=tau, w_in=tau_syn / dt, **rest)


def _time_constant(name: str, decay: Array, dt: float) -> Array:
    if (decay == 1).any():
        raise ValueError(f"{name}: 1 is an infinite time constant, which NIR has only for a whole layer of Leaky")
    return _inverted(decay, lambda d: dt / (1 - d), lambda tau: 1 - dt / tau)


def _inverted(value: Array, there: Callable[[Array], Array], back: Callable[[Array], Array]) -> Array:
    """``there(value)``, of which ``back`` gives every bit of a float32 ``value`` again.

    It is float32 where that suffices, because snnTorch's importer makes layers of the dtype that it finds.
    """
    exact = there(value.astype(np.float64))
    short = exact.astype(np.float32)
    suffices = np.array_equal(back(short.astype(np.float64)).astype(value.dtype), value)
    return short if suffices else exact


def _values(name: str, value: Tensor, shape: Shape) -> Array:
    """A parameter of a layer for each of its neurons."""
    array = _stateless.array(value)
    while array.ndim > len(shape) and len(array) == 1:  # [1, *], which is broadcast over the batch
        array = array[0]
    try:
        return np.broadcast_to(array, shape).copy()
    except ValueError:
        raise ValueError(
            f"{name}: expected one number, or one for each neuron {shape}, got shape {tuple(value.shape)}"
        ) from None


def _with_recurrence(layer: RLeaky | RSynaptic, lif: nir.NIRNode, shape: Shape) -> nir.NIRGraph:
    if layer.all_to_all:
        recurrence = _stateless.node_of(layer.recurrent, shape, shape)
    elif len(shape) == 1:
        recurrence = nir.Linear(weight=np.diag(_values("V", layer.V, shape)))
    else:
        raise ValueError(f"V: expected neurons in one dimension, got {shape}; NIR has a matrix for it")
    size = np.array(shape)
    return nir.NIRGraph(
        nodes={"input": nir.Input(size), "lif": lif, "w_rec": recurrence, "output": nir.Output(size)},
        edges=[("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
    )


def _of_spikingjelly(node: Any, shape: Shape, dt: float) -> nir.NIRNode:
    if node.v_reset is None:
        raise ValueError(
            "v_reset: neurons of NIR are set to a value when they spike, so expected a number, got None; set it on the "
            "network, and look at what this does to its results, before the export"
        )

    def every(value: float) -> Array:
        return np.full(shape, value)

    v_reset, v_threshold = every(node.v_reset), every(node.v_threshold)
    if isinstance(node, nodes.IFNode):
        return nir.IF(r=every(1 / dt), v_threshold=v_threshold, v_reset=v_reset)
    if not isinstance(node, nodes.LIFNode | nodes.ParametricLIFNode):
        raise TypeError(f"{type(node).__name__} has no node in NIR; IFNode, LIFNode and ParametricLIFNode have one")
    steps = node.tau if isinstance(node, nodes.LIFNode) else 1 / node.w.detach().double().sigmoid().item()
    tau = _inverted(every(steps), lambda t: t * dt, lambda tau: tau / dt)
    r = every(1.0) if node.decay_input else tau / dt
    return nir.LIF(tau=tau, r=r, v_leak=v_reset, v_threshold=v_threshold, v_reset=v_reset)


# ---- from a node to a layer


def layer_of(node: nir.NIRNode, neurons: str, dt: float, dtype: torch.dtype, spike_grad: Any) -> SpikingLayer | None:
    """The neuron layer of a node; ``None``: the node is none of neurons."""
    if isinstance(node, nir.NIRGraph):
        return _recurrent(node, neurons, dt, dtype, spike_grad)
    if not isinstance(node, nir.IF | nir.LIF | nir.CubaLIF):
        return None
    if neurons == "spikingjelly":
        return _node(node, dt, spike_grad)
    return _layer(node, {"spike_grad": spike_grad}, dt, dtype, Leaky, Synaptic)


def _layer(
    node: Any, options: dict[str, Any], dt: float, dtype: torch.dtype, leaky: Any, synaptic: Any
) -> SpikingLayer:
    options |= {"reset_mechanism": "zero", "reset_delay": False, "threshold": _tensor(node.v_threshold, dtype)}
    other = "; neurons='spikingjelly' makes layers that may have another value"
    _expect(node, "v_reset", 0, other)
    if isinstance(node, nir.IF):
        _expect(node, "r", 1 / dt, f" (1 / dt, with dt={dt:g})")
        made: SpikingLayer = leaky(beta=torch.ones((), dtype=dtype), **options)
        return made
    _expect(node, "v_leak", 0, other)
    tau = "tau" if isinstance(node, nir.LIF) else "tau_mem"
    beta = _decay(node, tau, dt, dtype)
    _expect(node, "r", getattr(node, tau) / dt, f" ({tau} / dt, with dt={dt:g}){other if tau == 'tau' else ''}")
    if isinstance(node, nir.LIF):
        made = leaky(beta=beta, **options)
    else:
        _expect(node, "w_in", node.tau_syn / dt, f" (tau_syn / dt, with dt={dt:g})")
        made = synaptic(alpha=_decay(node, "tau_syn", dt, dtype), beta=beta, **options)
    return made


def _recurrent(graph: Any, neurons: str, dt: float, dtype: torch.dtype, spike_grad: Any) -> SpikingLayer:
    """The layer of neurons and a product that leads back to them, in either of the two orders of snnTorch."""
    kinds = {name: type(node) for name, node in graph.nodes.items()}
    lifs = [name for name, kind in kinds.items() if kind in (nir.IF, nir.LIF, nir.CubaLIF)]
    products = [name for name, kind in kinds.items() if kind in (nir.Linear, nir.Affine, nir.Conv2d)]
    if len(kinds) != 4 or len(lifs) != 1 or len(products) != 1:
        raise TypeError(
            "a graph inside of a graph is expected to be IF, LIF or CubaLIF with one product that leads back"
        )
    if neurons == "spikingjelly":
        raise TypeError("SpikingJelly's nodes have no recurrence; import it with neurons='snnfast'")
    (lif,), (product,) = lifs, products
    inside = {(a, b) for a, b in graph.edges if {a, b} == {lif, product}}
    if len(inside) != 2:
        raise TypeError(
            "a graph inside of a graph is expected to be IF, LIF or CubaLIF with one product that leads back"
        )
    weights = graph.nodes[product]
    options: dict[str, Any] = {"spike_grad": spike_grad}
    diagonal = isinstance(weights, nir.Linear) and np.array_equal(weights.weight, np.diag(np.diag(weights.weight)))
    if diagonal:
        options |= {"all_to_all": False, "V": _tensor(np.diag(weights.weight), dtype)}
    elif isinstance(weights, nir.Conv2d):
        options |= {"conv2d_channels": weights.weight.shape[0], "kernel_size": weights.weight.shape[2:]}
    else:
        options["linear_features"] = weights.weight.shape[0]
    layer: Any = _layer(graph.nodes[lif], options, dt, dtype, RLeaky, RSynaptic)
    if not diagonal:
        given: Any = _stateless.layer_of(weights, dtype)
        into = layer.recurrent.to(dtype)
        if isinstance(into, nn.Conv2d) and into.padding != given.padding:
            raise ValueError(f"{product}: padding: expected {into.padding}, which keeps the size of the input")
        with torch.no_grad():
            into.weight.copy_(given.weight)
            into.bias.zero_() if given.bias is None else into.bias.copy_(given.bias)
    made: SpikingLayer = layer
    return made


def _node(node: Any, dt: float, spike_grad: Any) -> SpikingLayer:
    """A node of SpikingJelly, which has one number of each parameter for all neurons."""
    options = {name: _one(node, name) for name in ("v_threshold", "v_reset")} | {"surrogate_function": spike_grad}
    if isinstance(node, nir.IF):
        _expect(node, "r", 1 / dt, f" (1 / dt, with dt={dt:g})")
        return nodes.IFNode(**options)
    if isinstance(node, nir.CubaLIF):
        raise TypeError("CubaLIF is no node of snnfast.spikingjelly; import it with neurons='snnfast'")
    _expect(node, "v_leak", node.v_reset, " (v_reset)")
    tau = _one(node, "tau") / dt
    decays = np.allclose(node.r, 1)
    if not decays:
        _expect(node, "r", tau, f" or 1 (tau / dt, with dt={dt:g})")
    return nodes.LIFNode(tau, bool(decays), **options)


def _expect(node: Any, name: str, expected: Any, remark: str) -> None:
    """Raise unless a parameter of a node has a value up to the rounding of float32."""
    value = getattr(node, name)
    if not np.allclose(value, expected, rtol=1e-5, atol=1e-9):
        shown = np.unique(np.asarray(expected))
        found = np.unique(np.asarray(value))
        raise ValueError(f"{name}: expected {_shown(shown)}{remark}, got {_shown(found)}")


def _shown(values: Array) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _decay(node: Any, name: str, dt: float, dtype: torch.dtype) -> Tensor:
    tau = np.asarray(getattr(node, name), np.float64)
    if not (tau >= dt * (1 - 1e-6)).all():
        raise ValueError(f"{name}: expected time constants of dt={dt:g} or more, got {tau.min():g}")
    return _tensor(np.maximum(1 - dt / tau, 0), dtype)


def _one(node: Any, name: str) -> float:
    values = np.unique(getattr(node, name))
    if len(values) != 1:
        raise ValueError(
            f"{name}: SpikingJelly's nodes have one number for all neurons, got {_shown(values)}; import it with "
            "neurons='snnfast'"
        )
    return float(values[0])


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    """A parameter of a layer: one number where all neurons have the same."""
    values = np.asarray(values)
    one = values.size > 0 and (values == values.flat[0]).all()
    return torch.tensor(values.flat[0].item() if one else values, dtype=dtype)
