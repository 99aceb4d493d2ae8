"""Mended bugs of snnTorch that concern what a layer holds: its states, copies, replicas, and its end."""

import copy
import gc
import itertools
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import snntorch
import torch
from helpers import SURROGATES, assert_all_bits_equal, assert_bits_equal, assert_close
from snntorch import utils
from snntorch_checks import BOTH, EVERY, NEURONS, OURS, STATES, copies_of, held, make
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast.snntorch._drop_ins import DropIn

# ---- mended: layers and their state are freed, copied and found


@OURS
@NEURONS
def test_an_unused_layer_is_freed(name: str, library: Any) -> None:
    gc.collect()  # what other tests left
    cls, layer = getattr(library, name), make(library, name, init_hidden=True)
    layer(torch.rand(2, 3))
    before = len(cls.instances)
    dead, states = weakref.ref(layer), [weakref.ref(state) for state in held(layer)]
    assert any(other is layer for other in cls.instances)
    assert len(cls.instances[:]) == before
    del layer
    assert dead() is None
    assert [state() for state in states] == [None] * len(states)
    assert len(cls.instances._refs) < before + 1  # the list does not grow with those that died
    assert len(cls.instances) == before - 1
    cls.reset_hidden()
    cls.detach_hidden()
    theirs = make(snntorch, name)
    dead = weakref.ref(theirs)
    del theirs
    gc.collect()
    assert dead() is not None


@OURS
def test_layers_made_in_threads(library: Any) -> None:
    made = [library.Leaky(0.9) for _ in range(300)]  # a long list takes a while to enter
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(4) as pool:
        made += pool.map(lambda _: library.Leaky(0.9), range(400))
    sys.setswitchinterval(interval)
    for cls in (library.Leaky, snnfast.Leaky):
        assert {id(layer) for layer in cls.instances} >= {id(layer) for layer in made}
    if library is snn:
        entries = {id(n.layer()) for n in snntorch.SpikingNeuron.instances if isinstance(n, DropIn)}
        assert entries >= {id(layer) for layer in made}


WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"beta": "x"}, TypeError), ({"threshold": float("nan")}, ValueError), ({"reset_mechanism": "halve"}, ValueError),
    ({"spike_grad": 3}, TypeError), ({"state_quant": 3}, TypeError), ({"beta": 1, "learn_beta": True}, TypeError),
]  # fmt: skip


@OURS
@NEURONS
def test_a_constructor_that_raises(name: str, library: Any) -> None:
    gc.collect()  # what other tests left
    cls = getattr(library, name)
    before = list(cls.instances)
    for options, error in WRONG:
        with pytest.raises(error):
            make(library, name, **options)
    assert list(cls.instances) == before
    assert snntorch.SpikingNeuron.instances == []
    getattr(snn, name).reset_hidden()
    getattr(snntorch, name).detach_hidden()
    with pytest.raises(ValueError, match="reset_mechanism"):
        make(snntorch, name, reset_mechanism="halve")
    with pytest.raises(AttributeError):  # snnTorch's own breaks its reset
        getattr(snntorch, name).reset_hidden()


@OURS
@EVERY
def test_copies_pickles_and_files(name: str, library: Any) -> None:
    """They are equal and independent, and hold what the layer holds, of which a checkpoint has nothing."""
    cls = getattr(library, name)
    options: dict[str, Any] = {"spike_grad": SURROGATES["SFS"], "learn_beta": True, "reset_mechanism": "zero"}
    lif = make(library, name, beta=torch.rand(3) * 0.5, init_hidden=True, **options)
    for step in torch.full((2, 2, 3), 1.5):
        lif(step)
    assert lif.mem.requires_grad
    assert not any(isinstance(state, nn.Parameter) for state in held(lif))
    assert not set(STATES[name]) & {*lif.state_dict(), *dict(lif.named_buffers())}
    copies = copies_of(lif)
    for other in copies:
        assert type(other) is cls
        for state, original in zip(held(other), held(lif), strict=True):
            assert_bits_equal(state, original)
            assert not state.requires_grad
        assert any(layer is other for layer in cls.instances)
    assert lif.mem.requires_grad  # the layer's own graph is left alone
    x = torch.rand(6, 2, 3) * 2
    with torch.no_grad():
        expected = lif.unroll(x)
        for other in copies:
            assert_all_bits_equal(other.unroll(x), expected)
            other.beta.zero_()
    assert lif.beta.any()
    cls.reset_hidden()
    assert not any(state.any() for other in (lif, *copies) for state in held(other))
    for other in copies if library is snn else ():  # which snnTorch's reset reaches, as it does not its own copies
        other(torch.ones(2, 3))
        utils.reset(nn.Sequential(other))
        assert not any(state.any() for state in held(other))
    theirs = make(snntorch, name, init_hidden=True, learn_beta=True)
    theirs(torch.rand(2, 3))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(theirs)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(make(snntorch, name))


@NEURONS
def test_init_forgets_the_layers_there_are(name: str) -> None:
    try:
        for library in (snn, snntorch):
            old = make(library, name, init_hidden=True)
            old(torch.ones(2, 3))
            getattr(library, name).init()
            new = make(library, name, init_hidden=True)
            new(torch.ones(2, 3))
            getattr(library, name).reset_hidden()
            assert all(state.any() for state in held(old))
            assert all(bool(state.any()) == (library is snntorch) for state in held(new))
    finally:
        # snnTorch's gives the class a list of its own, which stays empty.
        del getattr(snntorch, name).instances


# ---- mended: the held membrane


@BOTH
@pytest.mark.parametrize(("name", "state"), [("Leaky", "mem"), ("Synaptic", "syn"), ("Synaptic", "mem")])
def test_an_error_for_a_state_changes_nothing(library: Any, name: str, state: str) -> None:
    layer = make(library, name, init_hidden=True)
    layer(torch.full((1, 1), 0.4))
    with pytest.raises(TypeError, match=state):
        layer(torch.full((1, 1), 0.4), **{state: torch.full((1, 1), 0.7)})
    for other in STATES[name]:
        expected = 0.7 if library is snntorch and other == state else 0.4
        assert getattr(layer, other).item() == pytest.approx(expected)


@NEURONS
def test_states_are_on_the_device_of_the_input(name: str) -> None:
    x = torch.rand(2, 3, device="meta")
    assert all(state.is_meta for state in make(snn, name)(x))
    with pytest.raises(RuntimeError, match="meta"):
        make(snntorch, name)(x)  # they are on the device of the layer


MODES: dict[str, dict[str, Any]] = {
    "record": {},
    "last": {"record_mem": False},
    "constant": {"num_steps": 4},
    "constant-last": {"num_steps": 4, "record_mem": False},
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "nodelay": {"reset_delay": False},
    "inhibition": {"inhibition": True},
    "callable": {"spike_grad": lambda z: snnfast.surrogate.fast_sigmoid(3.0)(z)},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "kind"),  # the spikes of an inhibited recurrent layer come from no kernel
    [case for case in itertools.product(STATES, KINDS) if case[0][0] != "R" or case[1] != "inhibition"],
)
def test_a_held_state_is_never_a_view(name: str, mode: str, kind: str, backend: str) -> None:
    layer = make(snn, name, init_hidden=True, learn_beta=True, **KINDS[kind])
    for dtype in (torch.float32, torch.float16):
        x = torch.rand((2, 3) if "num_steps" in MODES[mode] else (4, 2, 3)).to(dtype)
        x.requires_grad_()
        _, *records = layer.unroll(x, **MODES[mode])
        for state, record in zip(held(layer)[-len(records) :], records, strict=True):
            assert not state._is_view()
            assert state.requires_grad
            assert state.dtype == torch.float32
            assert_bits_equal(state.to(record.dtype), record if "last" in mode else record[-1])
            assert state.untyped_storage().size() == 6 * state.element_size()  # and it keeps no record alive
        getattr(snn, name).detach_hidden()
        assert not any(state.requires_grad for state in held(layer))


# ---- mended: replicas of DataParallel


def replicas(net: nn.Module, number: int) -> list[nn.Module]:
    """What ``torch.nn.parallel.replicate`` makes, on the CPU, which it refuses."""
    modules = list(net.modules())
    made = []
    for _ in range(number):
        copies = {module: module._replicate_for_data_parallel() for module in modules}
        for module, replica in copies.items():
            for name, child in module._modules.items():
                setattr(replica, name, copies[child])
            for name, parameter in module._parameters.items():
                setattr(replica, name, parameter.view_as(parameter))
            for name, buffer in module._buffers.items():
                setattr(replica, name, buffer)
        made.append(copies[net])
    return made


def run_in_replicas(net: nn.Module, x: Tensor) -> Tensor:
    """Spikes ``[T, B, N]`` of halves of a batch in two replicas, one step of each in turn."""
    pair = replicas(net, 2)
    return torch.stack([torch.cat([r(h) for r, h in zip(pair, step.chunk(2), strict=True)]) for step in x])


@NEURONS
def test_a_replica_has_a_state_of_its_own(name: str) -> None:
    def network(library: Any) -> nn.Sequential:
        torch.manual_seed(6)
        return nn.Sequential(nn.Linear(6, 5), make(library, name, init_hidden=True, learn_beta=True))

    x = torch.rand(6, 4, 6) * 3
    whole = network(snntorch)
    expected = torch.stack([whole(step) for step in x])
    net = network(snn)
    spk = run_in_replicas(net, x)
    assert_bits_equal(spk, expected)
    assert all(state.shape == (0,) for state in held(net[1]))  # the original's are left alone
    spk.sum().backward()
    expected.sum().backward()
    assert_close(net[1].beta.grad, whole[1].beta.grad, 1e-5)
    assert_close(net[0].weight.grad, whole[0].weight.grad, 1e-5)
    with pytest.raises((AssertionError, RuntimeError, AttributeError)):  # theirs all work on the original's state
        assert_bits_equal(run_in_replicas(network(snntorch), x), expected)
