"""What every layer promises of its parameters, checkpoints, copies, dtypes and devices."""

import copy
import gc
import inspect
import pickle
from typing import Any

import pytest
import snntorch
import torch
from helpers import SURROGATES, assert_bits_equal, assert_close
from snntorch_checks import LEARNED, NEURONS, STATES, both, current, held, make, vectors
from torch import nn

import snnfast

LEARN = pytest.mark.parametrize("learned", range(8), ids="{:03b}".format)


def learn(name: str, learned: int) -> dict[str, bool]:
    return {f"learn_{parameter}": bool(learned >> i & 1) for i, parameter in enumerate(LEARNED[name])}


# ---- parameters and checkpoints


@NEURONS
@LEARN
def test_state_dicts_are_interchangeable_with_snntorch(name: str, learned: int) -> None:
    flags = learn(name, learned)
    for values in (dict.fromkeys(LEARNED[name], 0.9), vectors(name)):
        ours, theirs = both(name, **values, reset_mechanism="zero", **flags)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert_bits_equal(a, b, key)
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
        halved = {parameter: value * 0.5 for parameter, value in values.items()}
        other, _ = both(name, **halved, **flags)
        for source, target in ((theirs, other), (ours, theirs)):
            target.load_state_dict(source.state_dict())
            for key, t in source.state_dict().items():
                assert_bits_equal(target.state_dict()[key], t, key)


@NEURONS
@LEARN
def test_learned_parameters_get_the_gradients_of_snntorch(name: str, learned: int, backend: str) -> None:
    decays = {"beta": torch.rand(10), "threshold": 0.8}
    ours, theirs = both(name, **decays, **learn(name, learned))
    x = current(8, 3, 10).requires_grad_()
    x_expected = x.detach().clone().requires_grad_()
    spk, *records = ours.unroll(x)
    (spk.sum() + sum(record.square().sum() for record in records)).backward()
    states, loss = [], torch.zeros(())
    for step in x_expected:
        spk, *states = theirs(step, *states)
        loss = loss + spk.sum() + sum(state.square().sum() for state in states)
    loss.backward()
    assert_close(x.grad, x_expected.grad, 1e-5, "current")
    for (key, p), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, expected.grad, 1e-5, key)


@NEURONS
def test_positional_arguments_have_the_order_and_defaults_of_snntorch(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(c, name).__init__).parameters for c in (snnfast, snntorch))
    extra = [("reset_delay", True)] if "reset_delay" not in theirs else []  # the last one, where snnTorch has none
    assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in theirs.items()] + extra


@NEURONS
def test_a_reset_mechanism_that_is_set_or_loaded_takes_effect_in_an_unroll(name: str) -> None:
    x = torch.full((9, 3, 10), 0.4)
    expected = make(snnfast, name, reset_mechanism="none").unroll(x)
    was_set, loaded = make(snnfast, name), make(snnfast, name, reset_mechanism="zero")
    was_set.unroll(x)
    was_set.reset_mechanism = "none"
    loaded.load_state_dict(make(snntorch, name, reset_mechanism="none").state_dict())
    for layer in (was_set, loaded):
        assert layer.reset_mechanism == "none"
        assert layer.state_dict()["reset_mechanism_val"].item() == 2
        for a, b in zip(layer.unroll(x), expected, strict=True):
            assert_bits_equal(a, b)
    with pytest.raises(ValueError, match="reset_mechanism"):
        was_set.reset_mechanism = "halve"
    assert was_set.reset_mechanism == "none"


@NEURONS
def test_a_layer_can_be_made_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        assert make(snnfast, name).beta.is_meta


@NEURONS
def test_repr_shows_what_was_asked_for(name: str) -> None:
    layer = make(snnfast, name, threshold=torch.rand(10), reset_mechanism="zero")
    layer.reset_delay = False
    text = repr(layer)
    own = "R=1, C=" if name == "Lapicque" else "beta=0.9"
    for part in (own, "threshold=(10,)", "reset_mechanism='zero'", "reset_delay=False", "init_hidden=False"):
        assert part in text


@NEURONS
def test_copies_are_independent_and_equal(name: str, backend: str) -> None:
    options: dict[str, Any] = {"spike_grad": SURROGATES["SFS"], "learn_beta": True, "reset_mechanism": "zero"}
    layer = make(snnfast, name, beta=torch.rand(10), **options)
    x = current(6, 3, 10)
    expected = layer.unroll(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for a, b in zip(other.unroll(x), expected, strict=True):
            assert_bits_equal(a, b)
        with torch.no_grad():
            other.beta.zero_()
    assert layer.beta.any()
    assert not any(isinstance(state, nn.Parameter) for state in held(layer))
    assert not set(STATES[name]) & set(layer.state_dict())


# ---- dtypes, devices, instances


@NEURONS
def test_dtype_moves(name: str, backend: str) -> None:
    layer = make(snnfast, name, beta=torch.rand(10), threshold=0.8, init_hidden=True, output=True)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        layer = layer.to(dtype)
        assert {t.dtype for t in (layer.beta, layer.threshold, layer.graded_spikes_factor, *held(layer))} == {dtype}
        assert layer.reset_mechanism_val.dtype == torch.int64
        layer.reset_mem()
        acc = dtype if dtype.itemsize > 2 else torch.float32
        for spk, *states in (layer.unroll(current(5, 3, 10).to(dtype)), layer(current(3, 10).to(dtype))):
            assert spk.dtype == dtype
            assert all(state.dtype == (acc if state.dim() == 2 else dtype) for state in states)
            assert all(state.dtype == acc for state in held(layer))
            assert set(spk.unique().tolist()) == {0, 1}


@NEURONS
def test_device_moves(name: str, device: torch.device) -> None:
    layer = make(snnfast, name, beta=torch.rand(10), learn_threshold=True, init_hidden=True).to(device)
    x = current(5, 3, 10)
    found = layer.unroll(x.to(device))
    expected = make(snnfast, name, beta=layer.beta.cpu()).unroll(x)
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)
    assert {t.device.type for t in (*found, *held(layer), layer.beta, layer.threshold)} == {device.type}


@NEURONS
def test_hidden_states_of_all_layers_are_reset_and_detached_and_none_is_kept_alive(name: str) -> None:
    cls = getattr(snnfast, name)
    cls.reset_hidden()  # other tests left layers, some of them in cycles through the graph of a membrane
    gc.collect()
    before = len(cls.instances)
    layers = [make(snnfast, name, init_hidden=True, learn_beta=True) for _ in range(3)]
    assert list(cls.instances)[before:] == cls.instances[before:] == layers
    for layer in layers:
        layer(torch.ones(2, 4, requires_grad=True))
        assert all(state.grad_fn is not None for state in held(layer))
    cls.detach_hidden()
    assert all(state.grad_fn is None and state.any() for layer in layers for state in held(layer))
    cls.reset_hidden()
    assert not any(state.any() for layer in layers for state in held(layer))
    del layers, layer
    assert len(cls.instances) == before
