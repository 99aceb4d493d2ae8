"""What tests against snnTorch share: the same layer of either library, for every neuron that snnfast has."""

import copy
import io
import pickle
from typing import Any

import pytest
import snntorch
import torch
from helpers import gradients_of
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate

DECAYS: dict[str, dict[str, float]] = {
    "Leaky": {"beta": 0.9}, "Synaptic": {"alpha": 0.8, "beta": 0.9}, "Lapicque": {"beta": 0.4}
}  # fmt: skip
# Beside these where a promise may depend on the equations: test_alpha_lapicque.py and test_recurrent.py are about them.
OTHER_DECAYS: dict[str, dict[str, Any]] = {
    "Alpha": {"alpha": 0.9, "beta": 0.6}, "RLeaky": {"beta": 0.9, "V": 0.4, "all_to_all": False},
    "RSynaptic": {"alpha": 0.8, "beta": 0.9, "V": -0.4, "all_to_all": False},
}  # fmt: skip
LEARNED = {
    "Leaky": ("beta", "threshold", "graded_spikes_factor"), "Synaptic": ("alpha", "beta", "threshold"),
    "Lapicque": ("beta", "threshold"), "Alpha": ("alpha", "beta", "threshold"), "RLeaky": ("beta", "threshold", "V"),
    "RSynaptic": ("alpha", "beta", "V"),
}  # fmt: skip
STATES = {
    "Leaky": ("mem",), "Synaptic": ("syn", "mem"), "Lapicque": ("mem",), "Alpha": ("syn_exc", "syn_inh", "mem"),
    "RLeaky": ("spk", "mem"), "RSynaptic": ("spk", "syn", "mem"),
}  # fmt: skip
TAKE_DELAY = ("Leaky", "Synaptic", "RLeaky")  # the others of snnTorch have no reset_delay, or raise when it is False

CONNECTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # between neurons, and the shape of a step
    "linear": ({"linear_features": 16}, (4, 16)),
    "odd rows": ({"linear_features": 10}, (3, 10)),  # of which the second does not begin where a tensor would
    "more dimensions": ({"linear_features": 6}, (2, 3, 6)),
    "one sample": ({"linear_features": 10}, (10,)),
    "conv": ({"conv2d_channels": 2, "kernel_size": 3}, (3, 2, 5, 4)),
    "conv of a pair": ({"conv2d_channels": 2, "kernel_size": (1, 5)}, (2, 2, 4, 8)),
}

NEURONS = pytest.mark.parametrize("name", DECAYS)
EVERY = pytest.mark.parametrize("name", STATES)
# snnTorch's has no reset_delay, no values per neuron, one backward pass of a learned beta, and no export to NIR.
NOT_LAPICQUE = pytest.mark.parametrize("name", [name for name in DECAYS if name != "Lapicque"])
RECURRENT = pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
CONNECTED = pytest.mark.parametrize("kind", CONNECTIONS)
BOTH = pytest.mark.parametrize("library", [snn, snntorch], ids=["ours", "theirs"])
OURS = pytest.mark.parametrize("library", [snn, snnfast], ids=["snnfast.snntorch", "snnfast"])


def make(library: Any, name: str, **options: Any) -> Any:
    """A layer with decays that are not given; with copies of tensors, so that no other layer learns them."""
    options = {**(DECAYS | OTHER_DECAYS)[name], **copy.deepcopy(options)}
    if name == "Lapicque":  # snnTorch's takes no beta of several values
        options["beta"] = options["beta"].flatten()[:1] if isinstance(options["beta"], Tensor) else options["beta"]
    if name not in TAKE_DELAY:
        options.pop("reset_delay", None)
    return getattr(library, name)(**options)


def both(name: str, **options: Any) -> tuple[Any, Any]:
    """The same layer of either library."""
    return make(snnfast, name, **options), make(snntorch, name, **options)


def learning(name: str, learned: int = 7) -> dict[str, bool]:
    """Arguments that let a layer learn those of its parameters whose bits are set; snnTorch's Alpha learns no alpha."""
    learned &= 6 if name == "Alpha" else 7
    names = ("learn_recurrent" if parameter == "V" else f"learn_{parameter}" for parameter in LEARNED[name])
    return {flag: bool(learned >> i & 1) for i, flag in enumerate(names)}


def current(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 0.4


def held(layer: Any) -> tuple[Tensor, ...]:
    """The states of a layer of either library."""
    names = next(STATES[c.__name__] for c in type(layer).__mro__ if c.__name__ in STATES)
    return tuple(getattr(layer, name) for name in names)


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def loop(layer: Any, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    """A layer called step by step, from zeros if no states are given: records of the spikes and the states."""
    record = []
    states = states or tuple(torch.zeros_like(x[0]) for _ in held(layer))
    for step in x:
        found = layer(step, *states)
        record.append(found)
        states = found[len(found) - len(held(layer)) :]  # the spikes are the first state of a recurrent layer
    return tuple(torch.stack(r) for r in zip(*record, strict=True))


def over_time(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """What a network that holds its states returns at each step, as records ``[T, B, *]``."""
    return tuple(torch.stack(r) for r in zip(*(as_tuple(net(step)) for step in x), strict=True))


def copies_of(layer: Any) -> list[Any]:
    """By a deep copy, a pickle, and a file."""
    torch.save(layer, file := io.BytesIO())
    file.seek(0)
    return [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]


def neurons(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, snntorch.SpikingNeuron)]


# ---- neurons that are connected, or of which each hears itself alone


def connected(library: Any, name: str, kind: str | None, **options: Any) -> Any:
    torch.manual_seed(3)
    how = {"V": 0.4, "all_to_all": False} if kind is None else CONNECTIONS[kind][0]
    decays = {"beta": 0.9} if name == "RLeaky" else {"alpha": 0.7, "beta": 0.9}
    # A surrogate of ours in either layer: those of snnTorch return float32 spikes, which no float64 weights take.
    return getattr(library, name)(**{**decays, "spike_grad": surrogate.atan(), **how, **options})


def current_of(kind: str | None, steps: int = 19, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(steps, *(CONNECTIONS[kind][1] if kind else (3, 10)), dtype=dtype) * 1.5 - 0.3


def trained(layer: nn.Module, outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    return gradients_of(outputs, [*leaves, *layer.parameters()])
