"""See :func:`import_from_nir`."""

from collections import OrderedDict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import nir
import torch
from torch import nn

from snnfast.networks.multistep import MultiStep
from snnfast.nir import _neurons, _stateless
from snnfast.nir._branches import INPUT, OUTPUT, Branches

__all__ = ["import_from_nir"]


def import_from_nir(
    graph: nir.NIRGraph | str | Path,
    *,
    neurons: str = "snnfast",
    spike_grad: Any = None,
    dt: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> MultiStep:
    """Make a network of a NIR graph, whose layers run all time steps at once.

    The layers have the names of the nodes, with ``_`` in place of dots. Nodes between which signals branch, as in a
    skip connection, are one layer of the network, whose neurons take no ``states``.

    The neurons of a graph that :func:`export_to_nir` made of a network in float32 have the same parameters, bit for
    bit; so have those of SpikingJelly, with ``neurons="spikingjelly"`` (of a ``ParametricLIFNode`` up to rounding).

    Args:
        graph: A graph, or the path of a file with one.
        neurons: ``"snnfast"``: ``IF`` and ``LIF`` become ``Leaky``, ``CubaLIF`` becomes ``Synaptic``, and a product
            that leads from one of these back to it makes it ``RLeaky`` or ``RSynaptic``. ``"spikingjelly"``: ``IF``
            and ``LIF`` become ``IFNode`` and ``LIFNode`` of :mod:`snnfast.spikingjelly`. They may have another
            ``v_reset`` than 0, and an input that decays (``r`` is 1), but one value for all neurons. They also spike
            where the membrane equals the threshold, which it must exceed in NIR.
        spike_grad: The surrogate of all neurons, to train the network further; NIR has none. ``None``: the default of
            the layers.
        dt: Length of a time step in seconds, as the graph was exported with.
        dtype: That of the parameters.

    Returns:
        The network. Its call takes ``[T, B, *]``, or ``[B, *]`` and ``num_steps``.

    Raises:
        TypeError: There is no layer for a node.
        ValueError: A layer can't have a parameter of a node, or the graph has a loop that is no recurrent layer. The
            message names it.

    Example::

        >>> import nir, numpy as np, torch
        >>> from snnfast.nir import import_from_nir
        >>> ones = np.ones(4)
        >>> lif = nir.LIF(tau=1e-3 * ones, r=10 * ones, v_leak=0 * ones, v_threshold=ones)
        >>> net = import_from_nir(nir.NIRGraph.from_list(nir.Linear(np.eye(4)), lif))
        >>> net
        MultiStep(
          (linear): Linear(in_features=4, out_features=4, bias=False)
          (lif): Leaky(beta=0.9, threshold=1, reset_mechanism='zero', reset_delay=False, init_hidden=False)
        )
        >>> spk_rec, mem_rec = net(torch.rand(25, 16, 4))
    """
    if neurons not in ("snnfast", "spikingjelly"):
        raise ValueError(f"neurons: expected 'snnfast' or 'spikingjelly', got {neurons!r}")
    if not dt > 0:
        raise ValueError(f"dt: expected a positive number, got {dt}")
    if isinstance(graph, str | Path):
        graph = nir.read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph: expected a nir.NIRGraph or a path, got {type(graph).__name__}")
    (start,), (end,) = (_of_kind(graph, kind) for kind in (nir.Input, nir.Output))
    nodes, edges = _with_recurrences(graph)
    layers: dict[str, nn.Module] = {}
    names = {start: INPUT, end: OUTPUT}
    for name, node in nodes.items():
        if name in (start, end):
            continue
        try:
            layer = _neurons.layer_of(node, neurons, dt, dtype, spike_grad) or _stateless.layer_of(node, dtype)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        if layer is None:
            raise TypeError(f"{name}: there is no layer for {type(node).__name__}")
        names[name] = _attribute(name)
        if names[name] in layers:
            raise ValueError(f"{name}: expected names that differ by more than a dot and a _")
        layers[names[name]] = layer
    sources: dict[str, list[str]] = {name: [] for name in (*layers, OUTPUT)}
    for source, name in edges:
        sources[names[name]].append(names[source])
    return MultiStep(_in_sequence(layers, sources))


def _of_kind(graph: Any, kind: type) -> list[str]:
    found = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(found) != 1:
        raise ValueError(f"graph: expected one {kind.__name__}, got {len(found)}")
    return found


def _with_recurrences(graph: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The nodes and edges of a graph, where neurons and a product that only they read and feed are one node."""
    nodes, edges = dict(graph.nodes), list(graph.edges)
    for lif, product in graph.edges:
        around = {edge for edge in edges if product in edge}
        if around == {(lif, product), (product, lif)} and isinstance(nodes[lif], nir.IF | nir.LIF | nir.CubaLIF):
            inside = {"input": nir.Input(nodes[lif].input_type), "lif": nodes[lif], "w_rec": nodes.pop(product)}
            inside["output"] = nir.Output(nodes[lif].output_type)
            inner = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
            nodes[lif] = nir.NIRGraph(inside, inner)
            edges = [edge for edge in edges if edge not in around]
    return nodes, edges


def _in_sequence(layers: dict[str, nn.Module], sources: dict[str, list[str]]) -> OrderedDict[str, nn.Module]:
    """Layers in sequence: those of a chain, and each stretch with branches as one."""
    try:
        order = [name for name in TopologicalSorter(sources).static_order() if name not in (INPUT, OUTPUT)]
    except CycleError as error:
        raise ValueError(
            f"graph: {' -> '.join(error.args[1][::-1])} is a loop; only neurons with one product can be a layer"
        ) from None
    found: OrderedDict[str, nn.Module] = OrderedDict()
    before: tuple[str, ...] = (INPUT,)  # what the next layers read: the sum of these
    stretch: list[str] = []
    for i, name in enumerate(order):
        stretch.append(name)
        after = _read_of(order[: i + 1], order[i + 1 :], sources)
        if after is None:
            continue
        if stretch == [name] and after == (name,) and sources[name] == list(before):
            found[name] = layers[name]
        else:
            reads = {layer: _of_input(sources[layer], before) for layer in stretch}
            branches = Branches({n: layers[n] for n in stretch}, reads | {OUTPUT: _of_input(list(after), before)})
            found[f"{stretch[0]}_to_{name}"] = branches
        before, stretch = after, []
    return found


def _read_of(done: list[str], later: list[str], sources: dict[str, list[str]]) -> tuple[str, ...] | None:
    """The sum that is all that later layers read of those that are done; ``None``: there is no one sum."""
    lists = [sources[name] for name in (*later, OUTPUT)]
    reads = {tuple(source for source in each if source in (INPUT, *done)) for each in lists} - {()}
    if len(reads) != 1:
        return None
    (read,) = reads
    begin = all(tuple(each[: len(read)]) == read for each in lists if not set(each).isdisjoint(read))
    return read if begin or len(read) == 1 else None


def _of_input(sources: list[str], before: tuple[str, ...]) -> list[str]:
    """The sources of a layer inside of branches, where the sum ``before`` them is their input."""
    at = sources.index(before[0]) if before[0] in sources else len(sources)
    return [*sources[:at], INPUT, *sources[at + len(before) :]] if at < len(sources) else sources


def _attribute(name: str) -> str:
    """The name of a module for the node of a name."""
    name = name.replace(".", "_")
    taken = hasattr(MultiStep, name) or hasattr(Branches, name) or name in (INPUT, OUTPUT, "sources")
    return f"{name}_" if taken else name
