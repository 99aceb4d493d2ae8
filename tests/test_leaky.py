"""snnfast.Leaky is snntorch.Leaky to its user, and unroll is that many calls of it."""

import copy
import gc
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from helpers import RESETS, SURROGATES, assert_bits_equal, assert_close
from snntorch.functional.quant import state_quant
from torch import Tensor, nn

import snnfast

RESET_CASES = [pytest.param(r, d, id=f"{r}-{'delay' if d else 'nodelay'}") for r in RESETS for d in (True, False)]
FLAGS = list(itertools.product((False, True), repeat=3))


def both(*args: Any, **kwargs: Any) -> tuple[snnfast.Leaky, snntorch.Leaky]:
    """The same layer of either library; copies of tensors, so that neither learns the other's parameters."""
    return snnfast.Leaky(*copy.deepcopy(args), **copy.deepcopy(kwargs)), snntorch.Leaky(*args, **kwargs)


def current(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 0.4


@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_steps_with_the_membrane_passed_equal_snntorch(reset: str, delay: bool, backend: str) -> None:
    beta, threshold, graded = torch.rand(10), torch.rand(10) + 0.4, torch.rand(3, 1) + 0.5
    ours, theirs = both(beta, threshold, reset_mechanism=reset, graded_spikes_factor=graded, reset_delay=delay)
    mem = mem_expected = torch.rand(3, 10) * 2
    for x in current(12, 3, 10):
        spk, mem = ours(x, mem)
        spk_expected, mem_expected = theirs(x, mem_expected)
        assert_bits_equal(spk, spk_expected)
        assert_bits_equal(mem, mem_expected)


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
def test_steps_with_the_membrane_held_equal_snntorch(init_hidden: bool, output: bool, backend: str) -> None:
    ours, theirs = both(0.9, init_hidden=init_hidden, output=output)
    for x in (*current(5, 3, 10), *current(3, 2, 7), *current(2, 4)):  # another shape starts from zeros
        found, expected = ours(x), theirs(x)
        assert type(found) is type(expected)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
            assert_bits_equal(a, b)
        assert_bits_equal(ours.mem, theirs.mem)
    assert_bits_equal(ours.reset_mem(), theirs.reset_mem())
    assert_bits_equal(ours.mem, torch.zeros(4))
    ours(torch.ones(4))
    assert not ours.init_leaky().any()
    assert not ours.mem.any()


def test_a_fresh_layer_holds_an_empty_membrane() -> None:
    ours, theirs = both(0.9)
    for layer in (ours, theirs):
        assert layer.mem.shape == layer.init_leaky().shape == layer.reset_mem().shape == (0,)


def test_a_membrane_of_another_shape_is_replaced_by_zeros_as_in_snntorch(backend: str) -> None:
    ours, theirs = both(0.9)
    x = current(3, 10)
    for mem in (torch.ones(10), torch.ones(1), torch.ones(4, 10)):
        for a, b in zip(ours(x, mem), theirs(x, mem), strict=True):
            assert_bits_equal(a, b)


@pytest.mark.parametrize("learn", FLAGS, ids=lambda f: "".join("ny"[i] for i in f))
def test_state_dicts_are_interchangeable_with_snntorch(learn: tuple[bool, bool, bool]) -> None:
    flags = dict(zip(("learn_beta", "learn_threshold", "learn_graded_spikes_factor"), learn, strict=True))
    for beta, threshold, graded in ((0.9, 1.0, 1.0), (torch.rand(10), torch.rand(10), torch.rand(3, 1))):
        ours, theirs = both(beta, threshold, graded_spikes_factor=graded, reset_mechanism="zero", **flags)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert_bits_equal(a, b, name)
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
        other, _ = both(*(v if v is None else v * 0.5 for v in (beta, threshold)), graded_spikes_factor=graded, **flags)
        for source, target in ((theirs, other), (ours, theirs)):
            target.load_state_dict(source.state_dict())
            for name, t in source.state_dict().items():
                assert_bits_equal(target.state_dict()[name], t, name)


@pytest.mark.parametrize("learn", FLAGS, ids=lambda f: "".join("ny"[i] for i in f))
def test_learned_parameters_get_the_gradients_of_snntorch(learn: tuple[bool, bool, bool], backend: str) -> None:
    flags = dict(zip(("learn_beta", "learn_threshold", "learn_graded_spikes_factor"), learn, strict=True))
    ours, theirs = both(torch.rand(10), 0.8, graded_spikes_factor=1.5, **flags)
    x = current(8, 3, 10).requires_grad_()
    x_expected = x.detach().clone().requires_grad_()
    spk, mem = ours.unroll(x)
    (spk.sum() + mem.square().sum()).backward()
    state, loss = None, torch.zeros(())
    for step in x_expected:
        s, state = theirs(step, state)
        loss = loss + s.sum() + state.square().sum()
    loss.backward()
    assert_close(x.grad, x_expected.grad, 1e-5, "current")
    for (name, p), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, expected.grad, 1e-5, name)


@pytest.mark.parametrize("init_hidden", [False, True], ids=["passed", "held"])
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_unroll_equals_that_many_calls(reset: str, delay: bool, init_hidden: bool, backend: str) -> None:
    layer = snnfast.Leaky(
        torch.rand(10), 0.9, SURROGATES["fast_sigmoid"], init_hidden=init_hidden, output=True, learn_beta=True,
        learn_threshold=True, reset_mechanism=reset, reset_delay=delay,
    )  # fmt: skip
    start = torch.rand(3, 10) * 2
    for num_steps, record_mem in ((None, True), (None, False), (7, True), (7, False)):
        x = current(3, 10) if num_steps else current(7, 3, 10)
        results = []
        for unroll in (True, False):
            layer.zero_grad()
            layer.mem = start.clone()
            x_leaf = x.clone().requires_grad_()
            mem = None if init_hidden else start
            if unroll:
                spk_rec, mem_rec = layer.unroll(x_leaf, mem, num_steps=num_steps, record_mem=record_mem)
            else:
                spks, mems = [], []
                for step in (x_leaf,) * num_steps if num_steps else x_leaf:
                    spk, mem = layer(step) if init_hidden else layer(step, mem)
                    spks.append(spk)
                    mems.append(mem)
                spk_rec, mem_rec = torch.stack(spks), torch.stack(mems) if record_mem else mems[-1]
            (spk_rec.sum() + mem_rec.square().sum()).backward()
            grads = (x_leaf.grad, *(p.grad for p in layer.parameters()))
            results.append((spk_rec, mem_rec, layer.mem if init_hidden else mem_rec, *grads))
        for name, a, b in zip(("spk", "mem", "held"), *results, strict=False):
            assert_bits_equal(a, b, name)
        for a, b in zip(results[0][3:], results[1][3:], strict=True):
            assert_close(a, b, 1e-5, "gradient")


def test_unroll_continues_from_the_held_membrane(backend: str) -> None:
    x = current(12, 3, 10)
    whole, pieces = snnfast.Leaky(0.9, init_hidden=True), snnfast.Leaky(0.9, init_hidden=True, output=True)
    spk, mem = whole.unroll(x)
    spk1, mem1 = pieces.unroll(x[:5])
    spk2, mem2 = pieces(x[5])
    spk3, mem3 = pieces.unroll(x[6:6])
    spk4, mem4 = pieces.unroll(x[6:], record_mem=False)
    assert_bits_equal(torch.cat([spk1, spk2[None], spk3, spk4]), spk)
    assert_bits_equal(torch.cat([mem1, mem2[None], mem3, mem4[None]]), torch.cat([mem[:6], mem[-1:]]))
    assert_bits_equal(pieces.mem, whole.mem)
    pieces.unroll(torch.ones(4, 2, 5))
    assert_bits_equal(pieces.mem, whole.unroll(torch.ones(4, 2, 5))[1][-1])


def test_unroll_of_a_layer_that_holds_nothing_starts_from_zeros_and_keeps_nothing(backend: str) -> None:
    layer = snnfast.Leaky(0.9)
    layer(torch.ones(3, 10))
    held = layer.mem.clone()
    x = current(6, 3, 10)
    expected = snnfast.functional.lif(x, torch.zeros(3, 10), beta=layer.beta)
    for a, b in zip(layer.unroll(x), expected, strict=True):
        assert_bits_equal(a, b)
    assert_bits_equal(layer.mem, held)


@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
def test_the_held_membrane_can_be_detached_in_place(record_mem: bool, backend: str) -> None:
    layer = snnfast.Leaky(0.9, init_hidden=True, learn_beta=True)
    for _ in range(3):  # truncated backpropagation through time
        spk, _ = layer.unroll(current(4, 2, 5), record_mem=record_mem)
        spk.sum().backward()
        assert layer.mem.requires_grad
        layer.mem.detach_()
        assert not layer.mem.requires_grad


def test_positional_arguments_have_the_order_and_defaults_of_snntorch() -> None:
    import inspect

    ours, theirs = (inspect.signature(c.__init__).parameters for c in (snnfast.Leaky, snntorch.Leaky))
    assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in theirs.items()]


def test_copies_are_independent_and_equal(backend: str) -> None:
    layer = snnfast.Leaky(torch.rand(10), spike_grad=SURROGATES["SFS"], learn_beta=True, reset_mechanism="zero")
    x = current(6, 3, 10)
    expected = layer.unroll(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for a, b in zip(other.unroll(x), expected, strict=True):
            assert_bits_equal(a, b)
        with torch.no_grad():
            other.beta.zero_()
    assert layer.beta.any()
    assert not isinstance(layer.mem, nn.Parameter)
    assert "mem" not in layer.state_dict()


def test_dtype_moves(backend: str) -> None:
    layer = snnfast.Leaky(torch.rand(10), 0.8, init_hidden=True, output=True)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float32):
        layer = layer.to(dtype)
        assert {t.dtype for t in (layer.beta, layer.threshold, layer.graded_spikes_factor, layer.mem)} == {dtype}
        assert layer.reset_mechanism_val.dtype == torch.int64
        layer.reset_mem()
        state = dtype if dtype.itemsize > 2 else torch.float32
        for spk, mem in (layer.unroll(current(5, 3, 10).to(dtype)), layer(current(3, 10).to(dtype))):
            assert spk.dtype == dtype
            assert mem.dtype == (state if mem.dim() == 2 else dtype)
            assert layer.mem.dtype == state
            assert set(spk.unique().tolist()) == {0, 1}


def test_device_moves(device: torch.device) -> None:
    layer = snnfast.Leaky(torch.rand(10), learn_threshold=True, init_hidden=True).to(device)
    x = current(5, 3, 10)
    spk, mem = layer.unroll(x.to(device))
    expected, _ = snnfast.Leaky(layer.beta.cpu()).unroll(x)
    assert_bits_equal(spk, expected)
    assert {t.device.type for t in (spk, mem, layer.mem, layer.beta, layer.threshold)} == {device.type}


def test_repr_shows_what_was_asked_for() -> None:
    text = repr(snnfast.Leaky(0.9, torch.rand(10), reset_mechanism="zero", reset_delay=False))
    for part in ("beta=0.9", "threshold=(10,)", "reset_mechanism='zero'", "reset_delay=False", "init_hidden=False"):
        assert part in text


def test_setting_the_reset_mechanism_takes_effect_and_reaches_the_state_dict():
    lif = snnfast.Leaky(beta=1.0)
    lif.reset_mechanism = "none"
    _, mem_rec = lif.unroll(torch.full((3, 1), 0.6))
    torch.testing.assert_close(mem_rec.flatten(), torch.tensor([0.6, 1.2, 1.8]))
    assert lif.state_dict()["reset_mechanism_val"].item() == 2
    with pytest.raises(ValueError, match="reset_mechanism"):
        lif.reset_mechanism = "halve"
    assert lif.reset_mechanism == "none"


def test_a_loaded_reset_mechanism_takes_effect():
    lif = snnfast.Leaky(beta=1.0, reset_mechanism="zero")
    lif.load_state_dict(snntorch.Leaky(beta=1.0, reset_mechanism="none").state_dict())
    assert lif.reset_mechanism == "none"
    _, mem_rec = lif.unroll(torch.full((3, 1), 0.6))
    torch.testing.assert_close(mem_rec.flatten(), torch.tensor([0.6, 1.2, 1.8]))


def test_a_layer_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        lif = snnfast.Leaky(beta=0.9)
    assert lif.beta.is_meta


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("inhibition", [False, True], ids=["all", "inhibition"])
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature", "ignore:snnfast. a layer runs step by step")
def test_a_quantized_membrane_is_that_of_snntorch(inhibition: bool, reset: str, delay: bool) -> None:
    quant = state_quant(num_bits=4, uniform=True, threshold=1.0)
    flags = {
        "state_quant": quant, "inhibition": inhibition, "reset_mechanism": reset, "reset_delay": delay,
        "learn_beta": True, "graded_spikes_factor": 1.5,
    }  # fmt: skip
    ours, theirs = both(0.9, 0.8, **flags)
    x = current(8, 3, 10)
    results = []
    for layer, unroll in ((theirs, False), (ours, False), (ours, True)):
        leaf = x.clone().requires_grad_()
        if unroll:
            spk_rec, mem_rec = layer.unroll(leaf)
        else:
            mem, steps = None, []
            for step in leaf:
                spk, mem = layer(step, mem)
                steps.append((spk, mem))
            spk_rec, mem_rec = (torch.stack(t) for t in zip(*steps, strict=True))
        loss = (spk_rec * torch.linspace(-1, 1, 10)).sum() + mem_rec.square().sum()
        results.append((spk_rec, mem_rec, *torch.autograd.grad(loss, [leaf, layer.beta])))
    for spk, mem, grad, grad_beta in results[1:]:
        assert_bits_equal(spk, results[0][0], "spk")
        assert_bits_equal(mem, results[0][1], "mem")
        assert_close(grad, results[0][2], 1e-5, "current")
        assert_close(grad_beta, results[0][3], 1e-5, "beta")
    assert not delay or len(results[0][1].unique()) <= 16


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_the_parts_of_a_step_are_those_of_snntorch() -> None:
    for flags in ({}, {"surrogate_disable": True}, {"state_quant": state_quant(num_bits=3)}, {"inhibition": True}):
        ours, theirs = both(0.9, torch.rand(10) + 0.2, graded_spikes_factor=1.5, **flags)
        results = []
        for layer in (ours, theirs):
            mem = (torch.linspace(-1, 2, 30).view(3, 10)).requires_grad_()
            parts = (layer.fire(mem), layer.fire_inhibition(3, mem), layer.mem_reset(mem))
            found = [p.requires_grad and torch.autograd.grad(p.sum(), mem, retain_graph=True)[0] for p in parts]
            results.append((parts, found))
        for a, b in zip(results[0][0], results[1][0], strict=True):
            assert_bits_equal(a, b)
        for a, b in zip(results[0][1], results[1][1], strict=True):
            assert a is b is False or torch.allclose(a, b)


@pytest.mark.parametrize("how", ["step", "unroll"])
@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "graded"])
def test_a_disabled_surrogate_lets_only_the_membrane_and_the_factor_learn(learn: bool, delay: bool, how: str) -> None:
    ours, theirs = both(0.9, surrogate_disable=True, learn_graded_spikes_factor=learn, reset_delay=delay)
    results = []
    for layer in (ours, theirs):
        leaf = (torch.linspace(-1, 3, 30).view(3, 10)).requires_grad_()
        if layer is ours and how == "unroll":
            spk, mem = (t[0] for t in layer.unroll(leaf[None]))
        else:
            spk, mem = layer(leaf)
        assert spk.requires_grad == learn
        (grad,) = torch.autograd.grad(mem.sum(), leaf, retain_graph=True)
        results.append((grad, torch.autograd.grad(spk.sum(), layer.graded_spikes_factor)[0] if learn else grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_hidden_states_of_all_layers_are_reset_and_detached_and_none_is_kept_alive() -> None:
    snnfast.Leaky.reset_hidden()  # other tests left layers, some of them in cycles through the graph of a membrane
    gc.collect()
    before = len(snnfast.Leaky.instances)
    layers = [snnfast.Leaky(0.9, init_hidden=True, learn_beta=True) for _ in range(3)]
    assert list(snnfast.Leaky.instances)[before:] == snnfast.Leaky.instances[before:] == layers
    for layer in layers:
        layer(torch.ones(2, 4))
        assert layer.mem.grad_fn is not None
    snnfast.Leaky.detach_hidden()
    assert all(layer.mem.grad_fn is None and layer.mem.any() for layer in layers)
    snnfast.Leaky.reset_hidden()
    assert not any(layer.mem.any() for layer in layers)
    del layers, layer
    assert len(snnfast.Leaky.instances) == before


CHANGES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "clamp": lambda spk, mem: mem.clamp_(min=-0.2),
    "refractory": lambda spk, mem: mem.masked_fill_(spk.bool(), 0.0),
    "scale": lambda spk, mem: mem.mul_(0.5),
    "data": lambda spk, mem: mem.data.clamp_(0, 0.5),
    "spikes": lambda spk, mem: spk.mul_(2.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("held", [False, True], ids=["passed", "held"])
@pytest.mark.parametrize(("reset", "delay"), RESET_CASES)
def test_what_a_step_returned_may_be_changed_in_place(reset: str, delay: bool, held: bool, change: str) -> None:
    ours, theirs = both(0.9, 0.7, init_hidden=held, output=True, reset_mechanism=reset, reset_delay=delay)
    x = current(6, 3, 10)
    results = []
    for layer in (ours, theirs):
        leaf, loss, mem = x.clone().requires_grad_(), torch.zeros(()), None
        for step in leaf:
            spk, mem = layer(step) if held else layer(step, mem)
            CHANGES[change](spk, mem)
            loss = loss + spk.sum() + mem.square().sum()
        results.append(torch.autograd.grad(loss, leaf)[0])
    assert_close(results[0], results[1], 1e-5)


class _HoldsElsewhere(snnfast.Leaky):
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


class _Watched(snnfast.Leaky):
    """Sees what is set and what is looked for."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mem":
            self.__dict__["seen"] = self.__dict__.get("seen", 0) + 1
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) * 0.5 if name == "beta" else super().__getattr__(name)


@pytest.mark.parametrize("unrolled", [False, True], ids=["step", "unroll"])
def test_attributes_of_a_subclass_come_first(unrolled: bool) -> None:
    x = current(6, 2, 5)
    for made, beta in ((_HoldsElsewhere, torch.sigmoid(torch.tensor(0.8))), (_Watched, torch.tensor(0.4))):
        layer, expected = copy.deepcopy(made(0.8, init_hidden=True)), snnfast.Leaky(beta, init_hidden=True)
        for half in (x[:3], x[3:]):
            for lif in (layer, expected):
                if unrolled:
                    lif.unroll(half)
                else:
                    for step in half:
                        lif(step)
            assert_bits_equal(layer.mem, expected.mem)
        if made is _Watched:
            assert layer.seen > 2


class _NoBits:
    """A quantizer that is false, as a container without elements is."""

    def __len__(self) -> int:
        return 0

    def __call__(self, mem: Tensor) -> Tensor:
        return (mem * 4).round() / 4


@pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")
def test_a_quantizer_counts_whatever_its_truth_value() -> None:
    x = current(6, 2, 5)
    layer = snnfast.Leaky(0.8, state_quant=_NoBits())
    expected = snnfast.functional.lif(x, beta=0.8, state_quant=lambda mem: (mem * 4).round() / 4)
    spk, mem = layer.unroll(x)
    assert_bits_equal(spk, expected[0])
    assert_bits_equal(mem, expected[1])
    step = None
    for t, current_t in enumerate(x):
        _, step = layer(current_t, step)
        assert_bits_equal(step, mem[t])


def test_the_function_takes_tensors_of_inference_mode_where_others_learn(backend: str) -> None:
    with torch.inference_mode():
        mem, beta = torch.rand(3, 4), torch.rand(4)
    x = torch.rand(5, 3, 4, requires_grad=True)
    snnfast.functional.lif(x, mem, beta=beta)[1].sum().backward()
    expected = x.grad.clone()
    x.grad = None
    snnfast.functional.lif(x, mem.clone(), beta=beta.clone())[1].sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("how", ["held", "passed"])
def test_a_membrane_of_inference_mode_can_be_trained_on(how: str, backend: str) -> None:
    x = current(3, 3, 10)
    for unroll in (False, True):
        layer = snnfast.Leaky(0.9, init_hidden=how == "held", output=True)
        with torch.inference_mode():
            _, mem = layer(x[0])
        args = () if how == "held" else (mem,)
        leaf = x[1].clone().requires_grad_()
        spk, _ = layer.unroll(leaf[None], *args) if unroll else layer(leaf, *args)
        spk.sum().backward()
        assert leaf.grad is not None


def test_a_number_may_take_the_place_of_a_parameter_as_in_snntorch() -> None:
    ours, theirs = both(0.9)
    for layer in (ours, theirs):
        del layer.threshold
        layer.threshold = 0.25
    x = current(3, 10)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert_bits_equal(a, b)


def test_a_surrogate_with_parameters_stays_a_submodule_of_copies() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(2.0))

        def forward(self, z: Tensor) -> Tensor:
            return snnfast.surrogate.atan()(z * self.slope)

    layer = snnfast.Leaky(0.9, spike_grad=Slope())
    other = copy.deepcopy(layer)
    assert "spike_grad" not in vars(other)
    assert other.spike_grad is other._modules["spike_grad"] is not layer.spike_grad


def test_a_beta_outside_of_the_unit_interval_has_no_gradient_not_even_nan(device: torch.device) -> None:
    beta = torch.tensor([1.5, -0.5, math.nan, 0.5], requires_grad=True)
    mem = torch.full((1, 4), math.inf, device=device)
    _, mem = snnfast.functional.lif(torch.ones(1, 1, 4, device=device), mem, beta=beta.to(device))
    mem.sum().backward()
    assert_bits_equal(beta.grad[:3], torch.zeros(3))
    assert not beta.grad[3].isfinite()
