"""Tell which modules of a network are layers of neurons, snnfast's, those of other libraries, and written by hand."""

from typing import Any

from torch import nn

from snnfast.neurons.base import SpikingLayer
from snnfast.neurons.network import is_snntorchs
from snnfast.neurons.own import StepLayer

__all__ = ["neurons_of", "runs_all_steps", "spikes_surely", "unrolls_inside"]

_LIBRARIES = ("torch", "snnfast", "snntorch", "spikingjelly", "norse")

_BASES = {"spikingjelly": {"BaseNode"}, "norse": {"SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell"}}
"""The base classes of the neurons of libraries."""

_OF_ALL_STEPS = {
    "snntorch": {"LeakyParallel", "StateLeaky", "AssociativeLeaky"},
    "norse": {"SNN", "SNNRecurrent"},
}
"""Classes of libraries whose call takes all steps ``[T, B, *]``."""


def neurons_of(net: nn.Module) -> dict[nn.Module, bool]:
    """The modules that are layers of neurons, or may be; whether each is for sure.

    A module that was written by hand may be one if it has no modules in it with weights, and no neurons. What it
    returns then decides.
    """
    found: dict[nn.Module, bool] = {}
    inside: set[nn.Module] = set()
    for module in net.modules():
        if module in inside:
            continue
        surely = _is_known_neuron(module)
        if surely or _may_be_neuron(module):
            found[module] = surely
            inside.update(module.modules())
    return found


def _is_known_neuron(module: nn.Module) -> bool:
    if isinstance(module, SpikingLayer) or is_snntorchs(module):
        return True
    return _is_of(module, _BASES)


def _is_of(module: nn.Module, classes: dict[str, set[str]]) -> bool:
    """Whether a module is of some classes of libraries."""
    return any(c.__name__ in classes.get(c.__module__.partition(".")[0], ()) for c in type(module).__mro__)


def _may_be_neuron(module: nn.Module) -> bool:
    if type(module).__module__.partition(".")[0] in _LIBRARIES or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    others = [m for m in module.modules() if m is not module]
    weights = any(p.dim() > 1 for m in others for p in m.parameters(recurse=False))
    return not weights and not any(map(_is_known_neuron, others))


def runs_all_steps(module: Any) -> bool:
    """Whether a call of a layer takes all steps ``[T, B, *]``."""
    if hasattr(module, "step_mode"):
        return bool(module.step_mode == "m")
    return _is_of(module, _OF_ALL_STEPS)


def unrolls_inside(module: nn.Module) -> bool:
    """Whether the call of a layer of ours may run all steps by ``unroll``."""
    return isinstance(module, SpikingLayer) and (
        hasattr(module, "step_mode") or type(module).__module__.partition(".")[0] != "snnfast"
    )


def spikes_surely(module: Any) -> bool:
    """Whether all that a layer returns is 0 or 1, so that nobody needs to look."""
    if not isinstance(module, SpikingLayer) or isinstance(module, StepLayer):
        return False
    graded: Any = getattr(module, "graded_spikes_factor", None)
    is_one = graded is None or (not graded.is_meta and bool((graded == 1).all()))
    return is_one and module._options().kernels_do_all
