"""What is tried with Leaky alone, since all layers share its code; test_layer*.py have what each of them must show."""

import copy
import math
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from torch import Tensor, nn

import snnfast


def both(*args: Any, **kwargs: Any) -> tuple[snnfast.Leaky, snntorch.Leaky]:
    """The same layer of either library; copies of tensors, so that neither learns the other's parameters."""
    return snnfast.Leaky(*copy.deepcopy(args), **copy.deepcopy(kwargs)), snntorch.Leaky(*args, **kwargs)


def current(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 0.4


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


class _SlowCurrent(snnfast.Synaptic):
    """``alpha`` is a property of the class, and nothing else."""

    @property
    def alpha(self) -> Tensor:
        return torch.sigmoid(nn.Module.__getattr__(self, "alpha"))


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


def test_a_parameter_of_a_subclass_of_another_neuron_comes_first_as_well() -> None:
    x = current(6, 2, 5)
    layer, expected = _SlowCurrent(0.8, 0.5), snnfast.Synaptic(torch.sigmoid(torch.tensor(0.8)), 0.5)
    for found, wanted in ((layer.unroll(x), expected.unroll(x)), (layer(x[0]), expected(x[0]))):
        for a, b in zip(found, wanted, strict=True):
            assert_bits_equal(a, b)


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
