"""What every layer promises: it is snnTorch's to its user, and unroll is that many calls of it."""

from collections.abc import Callable

import pytest
import torch
from helpers import RESETS, SURROGATES, assert_bits_equal, assert_close
from snntorch.functional.quant import state_quant
from snntorch_checks import LEARNED, NEURONS, STATES, as_tuple, both, current, held, make, vectors
from torch import Tensor

import snnfast

RESET_CASES = [pytest.param(r, d, id=f"{r}-{'delay' if d else 'nodelay'}") for r in RESETS for d in (True, False)]


def start(name: str) -> list[Tensor]:
    return [torch.rand(3, 10) * 2 for _ in STATES[name]]


# ---- one step


@NEURONS
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_steps_with_states_passed_equal_snntorch(name: str, reset: str, delay: bool, backend: str) -> None:
    ours, theirs = both(name, reset_mechanism=reset, reset_delay=delay, **vectors(name))
    states = expected = start(name)
    for x in current(12, 3, 10):
        (spk, *states), (spk_expected, *expected) = ours(x, *states), theirs(x, *expected)
        assert_bits_equal(spk, spk_expected)
        for a, b in zip(states, expected, strict=True):
            assert_bits_equal(a, b)


@NEURONS
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
def test_steps_with_states_held_equal_snntorch(name: str, init_hidden: bool, output: bool, backend: str) -> None:
    ours, theirs = both(name, init_hidden=init_hidden, output=output)
    for x in (*current(5, 3, 10), *current(3, 2, 7), *current(2, 4)):  # another shape starts from zeros
        found, expected = ours(x), theirs(x)
        assert type(found) is type(expected)
        for a, b in zip((*as_tuple(found), *held(ours)), (*as_tuple(expected), *held(theirs)), strict=True):
            assert_bits_equal(a, b)
    for a, b in zip(as_tuple(ours.reset_mem()), as_tuple(theirs.reset_mem()), strict=True):
        assert_bits_equal(a, b)
    assert all(torch.equal(state, torch.zeros(4)) for state in held(ours))
    ours(torch.ones(4))
    for state in (*as_tuple(getattr(ours, f"init_{name.lower()}")()), *held(ours)):
        assert_bits_equal(state, torch.zeros(4))


@NEURONS
def test_a_fresh_layer_holds_empty_states(name: str) -> None:
    for layer in both(name):
        made = getattr(layer, f"init_{name.lower()}")
        assert all(s.shape == (0,) for s in (*held(layer), *as_tuple(made()), *as_tuple(layer.reset_mem())))


@NEURONS
def test_a_state_of_another_shape_is_replaced_by_zeros_as_in_snntorch(name: str, backend: str) -> None:
    ours, theirs = both(name)
    x = current(3, 10)
    for state in (torch.ones(10), torch.ones(1), torch.ones(4, 10)):
        for i in range(len(STATES[name])):
            given = [state if i == j else torch.ones(3, 10) for j in range(len(STATES[name]))]
            for a, b in zip(ours(x, *given), theirs(x, *given), strict=True):
                assert_bits_equal(a, b)


@NEURONS
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_the_parts_of_a_step_are_those_of_snntorch(name: str) -> None:
    for flags in ({}, {"surrogate_disable": True}, {"state_quant": state_quant(num_bits=3)}, {"inhibition": True}):
        layers, results = both(name, threshold=torch.rand(10) + 0.2, **flags), []
        for layer in layers:
            layer.graded_spikes_factor = torch.tensor(1.5)
            mem = (torch.linspace(-1, 2, 30).view(3, 10)).requires_grad_()
            parts = (layer.fire(mem), layer.fire_inhibition(3, mem), layer.mem_reset(mem))
            found = [p.requires_grad and torch.autograd.grad(p.sum(), mem, retain_graph=True)[0] for p in parts]
            results.append((parts, found))
        for a, b in zip(results[0][0], results[1][0], strict=True):
            assert_bits_equal(a, b)
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
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_what_a_step_returned_may_be_changed_in_place(name: str, reset: str, delay: bool, passed: bool) -> None:
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


@NEURONS
@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_unroll_equals_that_many_calls(name: str, reset: str, delay: bool, init_hidden: bool, backend: str) -> None:
    layer = make(
        snnfast, name, beta=torch.rand(10), threshold=0.9, spike_grad=SURROGATES["fast_sigmoid"],
        init_hidden=init_hidden, output=True, learn_beta=True, learn_threshold=True, reset_mechanism=reset,
        reset_delay=delay,
    )  # fmt: skip
    begin = start(name)
    for num_steps, record_mem in ((None, True), (None, False), (7, True), (7, False)):
        x = current(3, 10) if num_steps else current(7, 3, 10)
        results = []
        for unroll in (True, False):
            layer.zero_grad()
            for state, value in zip(STATES[name], begin, strict=True):
                setattr(layer, state, value.clone())
            leaf = x.clone().requires_grad_()
            states = [] if init_hidden else begin
            if unroll:
                found = layer.unroll(leaf, *states, num_steps=num_steps, record_mem=record_mem)
            else:
                record = []
                for step in (leaf,) * num_steps if num_steps else leaf:
                    spk, *after = layer(step, *states)
                    states = [] if init_hidden else after
                    record.append((spk, *after))
                spks, *records = (torch.stack(r) for r in zip(*record, strict=True))
                found = (spks, *(r if record_mem else r[-1] for r in records))
            (found[0].sum() + sum(t.square().sum() for t in found[1:])).backward()
            grads = (leaf.grad, *(p.grad for p in layer.parameters()))
            results.append(([*found, *(held(layer) if init_hidden else ())], grads))
        for a, b in zip(*(forward for forward, _ in results), strict=True):
            assert_bits_equal(a, b)
        for a, b in zip(*(grads for _, grads in results), strict=True):
            assert_close(a, b, 5e-4, "gradient")  # sums over neurons that cancel


@NEURONS
def test_unroll_continues_from_the_held_states(name: str, backend: str) -> None:
    x = current(12, 3, 10)
    whole, pieces = make(snnfast, name, init_hidden=True), make(snnfast, name, init_hidden=True, output=True)
    spk, *records = whole.unroll(x)
    first, step, none = pieces.unroll(x[:5]), pieces(x[5]), pieces.unroll(x[6:6])
    last = pieces.unroll(x[6:], record_mem=False)
    assert_bits_equal(torch.cat([first[0], step[0][None], none[0], last[0]]), spk)
    for i, record in enumerate(records, 1):
        found = torch.cat([first[i], step[i][None], none[i], last[i][None]])
        assert_bits_equal(found, torch.cat([record[:6], record[-1:]]))
    for a, b in zip(held(pieces), held(whole), strict=True):
        assert_bits_equal(a, b)
    pieces.unroll(torch.ones(4, 2, 5))  # another shape
    for a, b in zip(held(pieces), whole.unroll(torch.ones(4, 2, 5))[1:], strict=True):
        assert_bits_equal(a, b[-1])


@NEURONS
def test_unroll_of_a_layer_that_holds_nothing_starts_from_zeros_and_keeps_nothing(name: str, backend: str) -> None:
    layer = make(snnfast, name)
    layer(torch.ones(3, 10))
    before = held(layer)
    x = current(6, 3, 10)
    zeros = [torch.zeros(3, 10) for _ in before]
    for a, b in zip(layer.unroll(x), make(snnfast, name).unroll(x, *zeros), strict=True):
        assert_bits_equal(a, b)
    assert all(a is b for a, b in zip(held(layer), before, strict=True))


@NEURONS
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
def test_held_states_can_be_detached_in_place(name: str, record_mem: bool, backend: str) -> None:
    layer = make(snnfast, name, init_hidden=True, learn_beta=True)
    for _ in range(3):  # truncated backpropagation through time
        spk, *_ = layer.unroll(current(4, 2, 5), record_mem=record_mem)
        spk.sum().backward()
        assert layer.mem.requires_grad
        for state in held(layer):
            state.detach_()
        assert not layer.mem.requires_grad


@NEURONS
@pytest.mark.parametrize("how", ["held", "passed"])
def test_states_of_inference_mode_can_be_trained_on(name: str, how: str, backend: str) -> None:
    x = current(3, 3, 10)
    for unroll in (False, True):
        layer = make(snnfast, name, init_hidden=how == "held", output=True)
        with torch.inference_mode():
            _, *states = layer(x[0])
        given = [] if how == "held" else states
        leaf = x[1].clone().requires_grad_()
        spk, *_ = layer.unroll(leaf[None], *given) if unroll else layer(leaf, *given)
        spk.sum().backward()
        assert leaf.grad is not None


@NEURONS
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
@pytest.mark.parametrize("inhibition", [False, True], ids=["all", "inhibition"])
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature", "ignore:snnfast. a layer runs step by step")
def test_quantized_states_are_those_of_snntorch(name: str, inhibition: bool, reset: str, delay: bool) -> None:
    quant = state_quant(num_bits=4, uniform=True, threshold=1.0)
    options = {"state_quant": quant, "inhibition": inhibition, "reset_mechanism": reset, "reset_delay": delay}
    graded = {"graded_spikes_factor": 1.5} if "graded_spikes_factor" in LEARNED[name] else {}
    ours, theirs = both(name, threshold=0.8, learn_beta=True, **graded, **options)
    x = current(6, 3, 10)
    results = []
    for layer, unroll in ((theirs, False), (ours, False), (ours, True)):
        leaf = x.clone().requires_grad_()
        if unroll:
            found = layer.unroll(leaf)
        else:
            record, states = [], []
            for step in leaf:
                spk, *states = layer(step, *states)
                record.append((spk, *states))
            found = tuple(torch.stack(t) for t in zip(*record, strict=True))
        loss = (found[0] * torch.linspace(-1, 1, 10)).sum() + sum(t.square().sum() for t in found[1:])
        results.append((found, torch.autograd.grad(loss, [leaf, layer.beta])))
    for found, grads in results[1:]:
        for a, b in zip(found, results[0][0], strict=True):
            assert_bits_equal(a, b)
        for a, b in zip(grads, results[0][1], strict=True):
            assert_close(a, b, 1e-5)
    assert not delay or len(results[0][0][-1].unique()) <= 16
