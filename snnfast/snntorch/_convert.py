"""Turn the layers of a model of snnTorch into snnfast's, in place, and back."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize

from snnfast import surrogate
from snnfast._core.ops import RESET_MECHANISMS
from snnfast._unroll.checks import check_spike_grad
from snnfast.neurons.subclass import derived, is_derived, origin, replaced
from snnfast.snntorch._drop_ins import LAYERS, DropIn, snntorch
from snnfast.surrogate.base import FACTORIES
from snnfast.surrogate.examine import recognise

_STATE_FUNCTIONS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}

_FLAGS = ("surrogate_disable", "init_hidden", "inhibition", "output", "reset_delay")
_NEURONS = (snntorch.SpikingNeuron, snntorch.LeakyParallel)

# The spike_grad that a converted layer had, and its replacement, for revert. They are kept outside of the layer,
# because the former may not be picklable.
_spike_grads: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Report:
    """The result of :func:`convert` or :func:`revert`: the layers of a model by their names in it.

    Attributes:
        swapped: Names of the layers that were swapped (``""`` is the model itself).
        left: Names of the neurons that were left as they are, each with the reason.
        notes: Remarks on swapped layers, by name.
    """

    swapped: tuple[str, ...]
    left: dict[str, str]
    notes: dict[str, str]

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}: {', '.join(n or '(the model)' for n in self.swapped) or 'none'}"]
        lines += [f"left {name or '(the model)'}: {reason}" for name, reason in self.left.items()]
        lines += [f"note on {name or '(the model)'}: {note}" for name, note in self.notes.items()]
        return "\n".join(lines)


def convert(net: nn.Module) -> Report:
    """Put the neurons of a snnTorch model on the kernels, in place.

    Each layer stays the same object, with its parameters, buffers, hooks, flags, held states, training mode, device and
    dtype. So optimizers, references and checkpoints stay valid. Layers that compute something else are left alone:
    neurons that :mod:`snnfast.snntorch` does not have, and subclasses with their own ``forward`` or another part of the
    computation. A second call changes nothing.

    Args:
        net: Any module, also a single layer.

    Returns:
        What was swapped, and what was left and why. ``print`` it.

    Raises:
        TypeError: ``net`` is not a module.

    Example::

        >>> import snntorch, snnfast.snntorch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(784, 10), snntorch.Leaky(beta=0.9), snntorch.SLSTM(10, 10))
        >>> print(snnfast.snntorch.convert(net))
        swapped 1: 1
        left 2: snnfast has no kernel for SLSTM
    """
    swapped, left, notes = [], {}, {}
    for name, module in _neurons(net):
        if isinstance(module, DropIn):
            continue
        reason = _reason_to_leave(module)
        if reason is not None:
            left[name] = reason
            continue
        note = _swap(module)
        swapped.append(name)
        if note is not None:
            notes[name] = note
    return Report(tuple(swapped), left, notes)


def revert(net: nn.Module) -> Report:
    """Turn the layers of :mod:`snnfast.snntorch` in a model into snnTorch's own: undo :func:`convert`.

    It also works for layers that were created as layers of :mod:`snnfast.snntorch`. Parameters, buffers, hooks and held
    states stay. A reverted model can't be pickled, because snnTorch's surrogates are local functions. Save its
    ``state_dict``, which is the same before and after.

    Args:
        net: Any module, also a single layer.

    Returns:
        What was swapped, and what was left and why.

    Raises:
        TypeError: ``net`` is not a module.

    Example::

        >>> import snnfast.snntorch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(784, 10), snnfast.snntorch.Leaky(beta=0.9))
        >>> print(snnfast.snntorch.revert(net))
        swapped 1: 1
    """
    swapped, left = [], {}
    for name, module in _neurons(net):
        if not isinstance(module, DropIn):
            continue
        if type(module) not in LAYERS and not is_derived(type(module)):
            base = type(module)._drop_in.__name__
            left[name] = f"{type(module).__name__} was made as a subclass of snnfast.snntorch.{base}"
            continue
        if not (module.reset_delay or module._takes_delay):
            left[name] = f"snntorch.{module._theirs.__name__} has no reset_delay=False"
            continue
        _swap_back(module)
        swapped.append(name)
    return Report(tuple(swapped), left, {})


def _neurons(net: object) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    for name, module in list(net.named_modules()):
        if isinstance(module, _NEURONS):
            yield name, module


def _reason_to_leave(module: Any) -> str | None:
    cls = type(module)
    layer = _layer_for(cls)
    if layer is None:
        return f"snnfast has no kernel for {cls.__name__}"
    theirs = layer._theirs
    if parametrize.is_parametrized(module):
        return "it is parametrized: convert it before register_parametrization"
    if reason := replaced(module, theirs, ("forward", *layer._parts, "reset_mem", "_init_mem")):
        return reason
    mechanism = int(module.reset_mechanism_val)
    if mechanism not in range(len(RESET_MECHANISMS)):
        return f"snnfast has no kernel for its reset mechanism {module.reset_mechanism!r}"
    if not hasattr(module, "state_function"):
        return "it has no state_function, by which snntorch 1.0 resets"
    function: Any = getattr(module.state_function, "__func__", None)
    if function not in [getattr(theirs, n) for n in _STATE_FUNCTIONS]:
        return "its state_function was replaced"
    if module.state_function.__self__ is not module:
        return "its state_function is that of another layer"
    behaves, stored = _STATE_FUNCTIONS[function.__name__], RESET_MECHANISMS[mechanism]
    if not getattr(module, "reset_delay", True) and behaves != stored:
        return f"it mixes the reset mechanisms {behaves!r} and {stored!r}"
    if (
        layer.neuron.has_spike_feedback
        and not module.all_to_all
        and type(module.recurrent).__name__ != "RecurrentOneToOne"
    ):
        return "its recurrent was replaced"
    for state in layer.neuron.states:
        if state not in module._buffers:
            return f"its {state} is no buffer"
    try:
        check_spike_grad(module.spike_grad)
    except TypeError as error:
        return str(error)
    return None


def _swap(module: Any) -> str | None:
    cls, note = _class_for(type(module)), None
    behaves = _STATE_FUNCTIONS[vars(module).pop("state_function").__func__.__name__]
    stored = RESET_MECHANISMS[int(module.reset_mechanism_val)]
    if behaves != stored:
        note = f"its reset mechanism was set to {stored!r}, which has no effect in snnTorch: it stays {behaves!r}"
    vars(module).pop("reset", None)  # of the last step
    states = {name: module._buffers.pop(name) for name in cls.neuron.states}
    module._non_persistent_buffers_set.difference_update(states)
    before = module.spike_grad
    _set_spike_grad(module, recognise(before))
    _spike_grads[module] = before, module.spike_grad
    for flag in _FLAGS:  # snnTorch takes any truth value; not all of its neurons have a reset_delay
        setattr(module, flag, bool(getattr(module, flag, flag == "reset_delay")))
    module.__class__ = cls
    for name, state in states.items():
        setattr(module, name, state)
    module.reset_mechanism = behaves
    module._register()
    return note


def _swap_back(module: Any) -> None:
    before, converted = _spike_grads.pop(module, (None, None))
    spike_grad = before if module.spike_grad is converted else _snntorchs_own(module.spike_grad)
    module._unregister()
    vars(module).pop("_checked", None)  # options of the fused layer
    states = {name: vars(module).pop(name) for name in module.neuron.states}
    cls = type(module)
    module.__class__ = cls._theirs if cls in LAYERS else origin(cls)
    for name, state in states.items():
        module.register_buffer(name, state, persistent=False)
    _set_spike_grad(module, spike_grad)
    if not cls._takes_delay:
        vars(module).pop("reset_delay", None)
    name = next(n for n, mechanism in _STATE_FUNCTIONS.items() if mechanism == module.reset_mechanism)
    module.state_function = getattr(module, name)


def _set_spike_grad(module: Any, spike_grad: Any) -> None:
    if module.spike_grad is not spike_grad:
        module.spike_grad = spike_grad


def _snntorchs_own(spike_grad: Any) -> Any:
    """snnTorch's equal of one of our surrogates. Ours stays, and works there, if it has none or a broken one (LSO)."""
    if spike_grad is surrogate.DISABLED:
        return snntorch.SpikingNeuron._surrogate_bypass
    if isinstance(spike_grad, surrogate._Custom):
        return snntorch.surrogate.custom_surrogate(spike_grad.function)
    for name, factory in FACTORIES.items():
        theirs = getattr(snntorch.surrogate, name, None)
        if theirs is not None and name != "LSO" and type(spike_grad) is type(factory()):
            return theirs(**vars(spike_grad))
    return spike_grad


def _layer_for(cls: type) -> type[DropIn] | None:
    """Our layer for a class of snnTorch's, or for one derived from it."""
    return next((layer for layer in LAYERS if issubclass(cls, layer._theirs)), None)


def _class_for(cls: type) -> type[DropIn]:
    layer = cast(type[DropIn], _layer_for(cls))
    return layer if cls is layer._theirs else cast(type[DropIn], derived(cls, layer))
