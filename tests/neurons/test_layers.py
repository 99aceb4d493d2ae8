"""What every layer promises: it is snnTorch's to its user, and unroll is that many calls of it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from callables import PerNeuron
from helpers import RESETS, assert_all_bits_equal, assert_bits_equal, assert_close
from snntorch.functional.quant import state_quant
from snntorch_checks import EVERY, NEURONS, STATES, TAKE_DELAY, as_tuple, both, current, held, make, over_time
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn

RESET_CASES = [(reset, delay) for reset in RESETS for delay in (True, False)]


def id_of(value: Any) -> str:
    return value if isinstance(value, str) else "delay" if value else "nodelay"


# ---- the numbers of snnTorch


@EVERY
@pytest.mark.parametrize("output", [False, True], ids=["spikes", "output"])
@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
def test_held_states(name: str, init_hidden: bool, output: bool, backend: str) -> None:
    init = f"init_{name.lower()}"
    ours, theirs = both(name, init_hidden=init_hidden, output=output)
    for layer in (ours, theirs):
        empty = (*held(layer), *as_tuple(getattr(layer, init)()), *as_tuple(layer.reset_mem()))
        assert all(state.shape == (0,) for state in empty)
    for x in (*current(5, 3, 10), *current(3, 2, 7), *current(2, 4)):  # another shape starts from zeros
        found, expected = ours(x), theirs(x)
        assert type(found) is type(expected)
        assert_all_bits_equal((*as_tuple(found), *held(ours)), (*as_tuple(expected), *held(theirs)))
    assert_all_bits_equal(as_tuple(ours.reset_mem()), as_tuple(theirs.reset_mem()))
    assert all(torch.equal(state, torch.zeros(4)) for state in held(ours))
    ours(torch.ones(4))
    assert not any(state.any() for state in (*as_tuple(getattr(ours, init)()), *held(ours)))


@EVERY
def test_a_state_of_another_shape_counts_as_zeros(name: str, backend: str) -> None:
    ours, theirs = both(name)
    x = current(3, 10)
    for state in (torch.ones(10), torch.ones(1), torch.ones(4, 10)):
        for i in range(len(STATES[name])):
            given = [state if i == j else torch.ones(3, 10) for j in range(len(STATES[name]))]
            assert_all_bits_equal(ours(x, *given), theirs(x, *given))


@EVERY
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_parts_of_a_step(name: str) -> None:
    """``fire``, ``fire_inhibition`` and ``mem_reset``."""
    quant = state_quant(num_bits=3)
    for library in (snn, snnfast):
        for flags in ({}, {"surrogate_disable": True}, {"state_quant": quant}, {"inhibition": True}):
            results = []
            for made in (library, snntorch):
                layer = make(made, name, threshold=torch.linspace(0.2, 1.2, 10), **flags)
                layer.graded_spikes_factor = torch.tensor(1.5)
                mem = (torch.linspace(-1, 2, 30).view(3, 10)).requires_grad_()
                parts = (layer.fire(mem), layer.fire_inhibition(3, mem), layer.mem_reset(mem))
                found = [p.requires_grad and torch.autograd.grad(p.sum(), mem, retain_graph=True)[0] for p in parts]
                results.append((parts, found))
            assert_all_bits_equal(results[0][0], results[1][0])
            for a, b in zip(results[0][1], results[1][1], strict=True):
                assert a is b is False or torch.allclose(a, b)


CHANGES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "clamp": lambda spk, state: state.clamp_(min=-0.2),
    "refractory": lambda spk, state: state.masked_fill_(spk.bool(), 0.0),
    "scale": lambda spk, state: state.mul_(0.5),
    "data": lambda spk, state: state.data.clamp_(0, 0.5),
    "spikes": lambda spk, state: spk.mul_(2.0),
}


@NEURONS
@pytest.mark.parametrize("passed", [True, False], ids=["passed", "held"])
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES, ids=id_of)
def test_results_changed_in_place(name: str, reset: str, delay: bool, passed: bool) -> None:
    x = current(6, 3, 10)
    for change in CHANGES.values():
        options = {"threshold": 0.7, "init_hidden": not passed, "output": True}
        results = []
        for layer in both(name, **options, reset_mechanism=reset, reset_delay=delay):
            leaf, loss, states = x.clone().requires_grad_(), torch.zeros(()), []
            for step in leaf:
                spk, *states = layer(step, *states) if passed else layer(step)
                for state in states:
                    change(spk, state)
                loss = loss + spk.sum() + sum(state.square().sum() for state in states)
            results.append(torch.autograd.grad(loss, leaf)[0])
        assert_close(results[0], results[1], 1e-5)


# ---- all steps


@EVERY
def test_unroll_continues_from_held_states(name: str, backend: str) -> None:
    x = current(12, 3, 10)
    whole, pieces = make(snnfast, name, init_hidden=True), make(snnfast, name, init_hidden=True, output=True)
    spk, *records = whole.unroll(x)
    first, step, none = pieces.unroll(x[:5]), pieces(x[5]), pieces.unroll(x[6:6])
    last = pieces.unroll(x[6:], record_mem=False)
    assert_bits_equal(torch.cat([first[0], step[0][None], none[0], last[0]]), spk)
    for i, record in enumerate(records, 1):
        found = torch.cat([first[i], step[i][None], none[i], last[i][None]])
        assert_bits_equal(found, torch.cat([record[:6], record[-1:]]))
    assert_all_bits_equal(held(pieces), held(whole))
    pieces.unroll(torch.ones(4, 2, 5))  # another shape
    whole.unroll(torch.ones(4, 2, 5))
    assert_all_bits_equal(held(pieces), held(whole))
    layer = make(snnfast, name)  # without init_hidden it starts from zeros, and keeps nothing
    layer(torch.ones(3, 10))
    before = held(layer)
    assert_all_bits_equal(layer.unroll(x), (spk, *records))
    assert all(a is b for a, b in zip(held(layer), before, strict=True))


@EVERY
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
def test_a_count_and_the_steps_after_it(name: str, record_mem: bool, backend: str) -> None:
    x = current(9, 3, 10)
    counting, other = (make(snnfast, name, init_hidden=True, output=True) for _ in range(2))
    for layer in (counting, other):
        layer.graded_spikes_factor = torch.tensor(1.5)
    count, *states = counting.unroll(x, record_mem=record_mem, reduce="sum")
    spk, *expected = other.unroll(x, record_mem=record_mem)
    assert_close(count, spk.sum(0), 1e-6)
    assert_all_bits_equal((*states, *held(counting), *counting(x[0])), (*expected, *held(other), *other(x[0])))


@EVERY
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("how", ["held", "passed"])
def test_states_of_inference_mode_can_be_trained_on(name: str, how: str, learn: bool, backend: str) -> None:
    x = current(3, 3, 10)
    for unroll in (False, True):
        layer = make(snnfast, name, init_hidden=how == "held", output=True, learn_beta=learn)
        with torch.inference_mode():
            found = layer(x[0])
        given = [] if how == "held" else found[len(found) - len(STATES[name]) :]
        leaf = x[1].clone().requires_grad_()
        spk, *_ = layer.unroll(leaf[None], *given) if unroll else layer(leaf, *given)
        spk.sum().backward()
        assert leaf.grad is not None


# ---- attributes, copies, dtypes, devices, instances


@EVERY
def test_a_reset_mechanism_takes_effect(name: str) -> None:
    """Whether it is set or loaded, also where what is loaded takes the place of the old tensors."""
    x = torch.full((9, 3, 10), 0.4)
    expected = make(snnfast, name, reset_mechanism="none").unroll(x)
    was_set, loaded, assigned = (make(snnfast, name, reset_mechanism="zero") for _ in range(3))
    was_set.unroll(x)
    was_set.reset_mechanism = "none"
    state = make(snntorch, name, reset_mechanism="none").state_dict()
    loaded.load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    for layer in (was_set, loaded, assigned):
        assert layer.reset_mechanism == "none"
        assert layer.state_dict()["reset_mechanism_val"].item() == 2
        assert_all_bits_equal(layer.unroll(x), expected)
    with pytest.raises(ValueError, match="reset_mechanism"):
        was_set.reset_mechanism = "halve"
    assert was_set.reset_mechanism == "none"


@pytest.mark.parametrize("name", TAKE_DELAY)
def test_a_reset_delay_takes_effect(name: str) -> None:
    x = torch.full((9, 3, 10), 0.4)
    layer, expected = make(snnfast, name), make(snnfast, name, reset_delay=False).unroll(x)
    assert not torch.equal(layer.unroll(x)[-1], expected[-1])
    layer.reset_delay = False
    assert_all_bits_equal(layer.unroll(x), expected)


@NEURONS
def test_repr(name: str) -> None:
    layer = make(snnfast, name, threshold=torch.rand(10), reset_mechanism="zero")
    layer.reset_delay = False
    own = "R=1, C=" if name == "Lapicque" else "beta=0.9"
    for part in (own, "threshold=(10,)", "reset_mechanism='zero'", "reset_delay=False", "init_hidden=False"):
        assert part in repr(layer)
    with torch.device("meta"):
        assert make(snnfast, name).beta.is_meta


@EVERY
def test_dtype_moves(name: str, backend: str) -> None:
    layer = make(snnfast, name, beta=torch.full((10,), 0.5), threshold=0.8, init_hidden=True, output=True)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        layer = layer.to(dtype)
        assert {t.dtype for t in (layer.beta, layer.threshold, layer.graded_spikes_factor, *held(layer))} == {dtype}
        assert layer.reset_mechanism_val.dtype == torch.int64
        layer.reset_mem()
        acc = dtype if dtype.itemsize > 2 else torch.float32
        for spk, *states in (layer.unroll(current(5, 3, 10).to(dtype)), layer(current(3, 10).to(dtype))):
            assert spk.dtype == dtype
            assert all(state.dtype == (acc if state.dim() == 2 else dtype) for state in states)
            assert all(state.dtype == acc for state in held(layer)[len(held(layer)) - len(states) :])
            assert set(spk.unique().tolist()) <= {0, 1}
    assert all(state.is_meta for state in held(layer.to("meta")))
    assert all(state.shape == (3, 10) for state in held(layer.to_empty(device="cpu")))


# ---- what is tried with Leaky alone, since all layers share its code


class HoldsElsewhere(snnfast.Leaky):
    """``mem`` and ``beta`` are properties of the class."""

    @property
    def mem(self) -> Tensor:
        return self.__dict__["elsewhere"]

    @mem.setter
    def mem(self, mem: Tensor) -> None:
        self.__dict__["elsewhere"] = mem

    @property
    def beta(self) -> Tensor:
        return torch.sigmoid(nn.Module.__getattr__(self, "beta"))


def test_attributes_of_a_subclass_come_first() -> None:
    x, expected = current(6, 2, 5), torch.sigmoid(torch.tensor(0.8))
    for unrolled in (False, True):
        pair = copy.deepcopy(HoldsElsewhere(0.8, init_hidden=True)), snnfast.Leaky(expected, init_hidden=True)
        for half in (x[:3], x[3:]):
            for lif in pair:
                lif.unroll(half) if unrolled else over_time(lif, half)
            assert_bits_equal(pair[0].mem, pair[1].mem)


def test_a_number_may_take_the_place_of_a_parameter() -> None:
    ours, theirs = both("Leaky")
    for layer in (ours, theirs):
        del layer.threshold
        layer.threshold = 0.25
    x = current(3, 10)
    assert_all_bits_equal(ours(x), theirs(x))


def test_a_surrogate_with_parameters_is_a_submodule_of_copies() -> None:
    layer = snnfast.Leaky(0.9, spike_grad=PerNeuron())
    other = copy.deepcopy(layer)
    assert "spike_grad" not in vars(other)
    assert other.spike_grad is other._modules["spike_grad"] is not layer.spike_grad
