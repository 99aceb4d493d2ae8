"""What tests against snnTorch share: the same layer of either library, for every neuron that snnfast has."""

import copy
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn

DECAYS: dict[str, dict[str, float]] = {
    "Leaky": {"beta": 0.9}, "Synaptic": {"alpha": 0.8, "beta": 0.9}, "Lapicque": {"beta": 0.4}
}  # fmt: skip
# Beside these where a promise may depend on the equations: test_alpha.py and test_recurrent.py are about them.
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

NEURONS = pytest.mark.parametrize("name", DECAYS)
EVERY = pytest.mark.parametrize("name", STATES)
# snnTorch's has no reset_delay, no values per neuron, one backward pass of a learned beta, and no export to NIR.
NOT_LAPICQUE = pytest.mark.parametrize("name", [name for name in DECAYS if name != "Lapicque"])
BOTH = pytest.mark.parametrize("library", [snn, snntorch], ids=["ours", "theirs"])
OURS = pytest.mark.parametrize("library", [snn, snnfast], ids=["snnfast.snntorch", "snnfast"])


@pytest.fixture(autouse=True)
def own_list_of_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch keeps every neuron for good: none of another test's here."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


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


def vectors(name: str) -> dict[str, Tensor]:
    """Values for all that a layer can learn."""
    values = {"alpha": torch.rand(10), "beta": torch.rand(10), "threshold": torch.rand(10) + 0.4, "V": torch.rand(10)}
    values["graded_spikes_factor"] = torch.rand(3, 1) + 0.5
    if name == "Alpha":  # whose first decay is the larger one
        values["alpha"], values["beta"] = 0.6 + 0.4 * values["alpha"], 0.5 * values["beta"]
    return {parameter: values[parameter] for parameter in LEARNED[name]}


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


def neurons(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, snntorch.SpikingNeuron)]
