"""The calls of constructors that are found in public programs for snnTorch work unchanged, with the same numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from snntorch import surrogate
from snntorch.functional.quant import state_quant
from snntorch_checks import TAKE_DELAY, as_tuple, own_list_of_neurons  # noqa: F401
from torch import Tensor

import snnfast
import snnfast.snntorch as snn

N = 10  # neurons

# What comes before the options, as it is written.
FIRST: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "Leaky": [((0.9,), {}), ((), {"beta": 0.95}), ((), {"beta": torch.rand(N)}), ((), {"beta": 1})],
    "Synaptic": [((0.9, 0.8), {}), ((), {"alpha": 0.9, "beta": torch.rand(N)})],
    "Lapicque": [((), {"beta": 0.8}), ((), {"R": 5.1, "C": 5e-3, "time_step": 1e-3}), ((0.5,), {"R": 2.0})],
    "Alpha": [((0.9, 0.8), {}), ((), {"alpha": 0.8, "beta": 0.7})],
    "RLeaky": [((0.9,), {"linear_features": N}), ((), {"beta": 0.9, "V": torch.rand(N), "all_to_all": False})],
    "RSynaptic": [
        ((0.9, 0.8), {"linear_features": N}),
        ((), {"alpha": 0.9, "beta": 0.8, "V": 0.5, "all_to_all": False}),
    ],
}
SURROGATES: dict[str, Callable[[], Any]] = {
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(slope=25),
    "fast_sigmoid()": surrogate.fast_sigmoid,
    "atan": lambda: surrogate.atan(alpha=2.0),
    "sigmoid": lambda: surrogate.sigmoid(slope=5),
    "straight_through": surrogate.straight_through_estimator,
    "spike_rate_escape": lambda: surrogate.spike_rate_escape(beta=1, slope=5),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "init_hidden": {"init_hidden": True},
    "readout": {"init_hidden": True, "output": True},
    "learn": {"learn_beta": True, "learn_threshold": True},
    "threshold": {"threshold": 0.5},
    "thresholds": {"threshold": torch.rand(N) + 0.3, "learn_threshold": True},
    "integer threshold": {"threshold": 1},
    "zero": {"reset_mechanism": "zero"},
    "none": {"reset_mechanism": "none"},
    "subtract": {"reset_mechanism": "subtract"},
    "no delay": {"reset_delay": False},
    "zero without delay": {"reset_mechanism": "zero", "reset_delay": False},
    "state_quant": {"state_quant": state_quant(num_bits=4, uniform=True, threshold=1.0)},
    **{name: {"spike_grad": name} for name in SURROGATES},
    "all at once": {
        "threshold": 0.7, "spike_grad": "fast_sigmoid", "init_hidden": True, "learn_beta": True,
        "learn_threshold": True, "reset_mechanism": "zero", "output": True,
    },
}  # fmt: skip
CALLS = [
    pytest.param(
        name, args, {**kwargs, **options}, id=f"{name}-{i}-{label}",
        marks=[pytest.mark.thorough] if i and label != "nothing" else [],
    )
    for name, starts in FIRST.items()
    for i, (args, kwargs) in enumerate(starts)
    for label, options in OPTIONS.items()
    if not (name not in TAKE_DELAY and "reset_delay" in options)
    # In snnTorch 1.0.0, an int can't be learned, nor can the beta of a Lapicque layer with an R.
    and not ("learn_beta" in options and (isinstance(kwargs.get("beta"), int) or "R" in kwargs))
]  # fmt: skip


def pair(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The layer of either library by the same call, with the same weights."""
    made = []
    for library in (snn, snntorch):
        given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        if "spike_grad" in given:
            given["spike_grad"] = SURROGATES[given["spike_grad"]]()
        torch.manual_seed(1)
        made.append(getattr(library, name)(*args, **given))
    return made


def steps(layer: Any, x: Tensor) -> list[list[Tensor]]:
    """What a loop over time collects, that passes the states or lets the layer hold them."""
    states = () if layer.init_hidden else as_tuple(layer.reset_mem())
    record = []
    for step in x:
        found = as_tuple(layer(step, *states))
        if not layer.init_hidden:
            # Of recurrent layers the spikes are the first state.
            states = found if len(found) == len(states) else found[1:]
        record.append(found)
    return [list(t) for t in zip(*record, strict=True)]


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS)
@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")
def test_a_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    layers = pair(name, args, kwargs)
    ours, theirs = layers
    assert type(ours) is getattr(snn, name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert_bits_equal(ours.state_dict()[key], value, key)
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    x, losses = torch.rand(5, 3, N) * (400 if "C" in kwargs else 2), []
    for found, expected in zip(*(steps(layer, x) for layer in layers), strict=True):
        for a, b in zip(found, expected, strict=True):
            assert_bits_equal(a, b)
    for layer in layers:
        layer.reset_mem()
        given = x.clone().requires_grad_()
        total = sum(t.square().sum() for record in steps(layer, given) for t in record)
        total.backward()  # type: ignore[union-attr]
        losses.append([given.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-8)


def test_a_layer_that_is_not_fused() -> None:
    """``SConv2dLSTM``, the last of the neurons that were found."""
    assert snn.SConv2dLSTM is snntorch.SConv2dLSTM
    layer = snn.SConv2dLSTM(1, 4, 3, max_pool=2, threshold=0.1, spike_grad=snn.surrogate.fast_sigmoid(slope=10))
    spk, _, _ = layer(torch.rand(2, 1, 8, 8), *layer.reset_mem())
    assert spk.shape == (2, 4, 4, 4)
    assert snnfast.snntorch.convert(layer).left == {"": "snnfast has no kernel for SConv2dLSTM"}
