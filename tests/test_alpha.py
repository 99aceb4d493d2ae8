"""What is particular to Alpha: which decays are taken, what follows from them, and what of snnTorch is mended."""

import copy
import io
import itertools
import math
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from snntorch import utils
from snntorch_checks import own_list_of_neurons  # noqa: F401
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn

STATES = ("syn_exc", "syn_inh", "mem")


def current(*shape: int) -> Tensor:
    return torch.rand(shape or (19, 3, 10)) * 3 - 0.6


def loop(layer: Any, x: Tensor) -> tuple[Tensor, ...]:
    states, record = layer.reset_mem(), []
    states = [torch.zeros_like(x[0]) for _ in states]
    for step in x:
        spk, *states = layer(step, *states)
        record.append((spk, *states))
    return tuple(torch.stack(r) for r in zip(*record, strict=True))


def test_an_input_rises_and_falls_as_the_alpha_function() -> None:
    """Of one input at step 0: tau * (alpha^t - beta^t)."""
    x = torch.zeros(30, 1, dtype=torch.float64)
    x[0] = 1
    _, _, _, mem = snnfast.functional.alpha(x, alpha=0.9, beta=0.7, threshold=1e6)
    tau = math.log(0.9) / (math.log(0.7) - math.log(0.9)) + 1
    expected = [[tau * (0.9**t - 0.7**t)] for t in range(30)]
    torch.testing.assert_close(mem, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_decays_of_each_neuron_have_snntorchs_numbers(reset: str) -> None:
    given = {"alpha": torch.linspace(0.7, 1.1, 10), "beta": torch.linspace(-0.1, 0.6, 10), "threshold": torch.rand(10)}
    ours, theirs = (lib.Alpha(**copy.deepcopy(given), reset_mechanism=reset) for lib in (snnfast, snntorch))
    x = current()
    expected = loop(theirs, x)
    for found in (ours.unroll(x), loop(ours, x)):
        for a, b in zip(found, expected, strict=True):
            assert_bits_equal(a, b)
    assert expected[0].any()


def test_decays_without_a_time_constant_are_refused() -> None:
    for library in (snnfast, snn, snntorch):
        for alpha, beta in ((0.5, 0.5), (0.5, 0.6), (torch.tensor([0.9, 0.4]), 0.5), (1.0, 1.0)):
            with pytest.raises(ValueError, match="alpha"):
                library.Alpha(alpha, beta)
    with pytest.raises(ValueError, match=r"^alpha: expected more than beta"):
        snnfast.functional.alpha(current(), alpha=0.5, beta=0.5)
    with pytest.raises(TypeError, match=r"^beta: expected a number"):
        snnfast.functional.alpha(current(), alpha=0.5, beta="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["layer", "function"])
def test_learned_decays_get_the_gradient_through_the_time_constant(how: str) -> None:
    x = current(9, 4).double()

    def mem_of(alpha: Tensor, beta: Tensor) -> Tensor:
        if how == "function":
            return snnfast.functional.alpha(x, alpha=alpha, beta=beta, threshold=1e6)[-1]
        return torch.func.functional_call(layer, {"alpha": alpha, "beta": beta}, (x,))  # type: ignore[no-any-return]

    class Unrolled(snnfast.Alpha):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.unroll(x)[-1]

    layer = Unrolled(0.8, 0.5, threshold=1e6, learn_alpha=True, learn_beta=True).double()
    assert [name for name, _ in layer.named_parameters()] == ["beta", "alpha"]
    decays = [torch.rand(4, dtype=torch.float64) * 0.2 + low for low in (0.7, 0.3)]
    assert torch.autograd.gradcheck(mem_of, [d.requires_grad_() for d in decays])


def test_alpha_is_clamped_when_the_layer_is_made_as_in_snntorch() -> None:
    ours, theirs = (library.Alpha(1.5, 0.5) for library in (snnfast, snntorch))
    assert ours.alpha == theirs.alpha == 1


def test_state_dicts_load_both_ways() -> None:
    layers = [lib.Alpha(0.9, 0.6, 0.8, learn_beta=True) for lib in (snnfast, snn, snntorch)]
    keys = ["beta", "threshold", "graded_spikes_factor", "reset_mechanism_val", "alpha"]
    assert all(list(layer.state_dict()) == keys for layer in layers)
    for a, b in itertools.permutations(layers, 2):
        a.load_state_dict(b.state_dict())


def test_convert_and_revert_leave_the_numbers() -> None:
    net = nn.Sequential(snntorch.Alpha(0.9, 0.6, threshold=0.5, init_hidden=True))
    x = current()
    expected = torch.stack([net(step) for step in x])
    assert expected.any()
    for change, library in ((snn.convert, snn), (snn.revert, snntorch)):
        utils.reset(net)
        assert change(net).swapped == ("0",)
        assert type(net[0]) is library.Alpha
        assert_bits_equal(torch.stack([net(step) for step in x]), expected)
    snn.convert(net)
    assert all(getattr(net[0], state).any() for state in STATES)
    utils.reset(net)
    assert not any(getattr(net[0], state).any() for state in STATES)


def test_there_is_no_immediate_reset() -> None:
    layer = snnfast.Alpha(0.9, 0.6)
    layer.reset_delay = True
    with pytest.raises(ValueError, match=r"^reset_delay: Alpha has no immediate reset"):
        layer.reset_delay = False
    with pytest.raises(TypeError, match="reset_delay"):
        snnfast.Alpha(0.9, 0.6, reset_delay=False)  # type: ignore[call-arg]


def test_three_states_go_through_multistep_copies_and_pickles() -> None:
    net = snnfast.MultiStep(nn.Linear(6, 10), snn.Alpha(0.9, 0.6, threshold=0.2))
    x = torch.rand(20, 4, 6) * 4
    spk, *record = net(x)
    assert spk.any()
    stored = io.BytesIO()
    torch.save(net, stored)
    stored.seek(0)
    for other in (copy.deepcopy(net), torch.load(stored, weights_only=False)):
        states: Any = None
        parts = []
        for part in x.split(7):
            *found, states = other(part, states=states, return_states=True)
            parts.append(found)
        assert len(states[0]) == 3
        for a, b in zip((spk, *record), zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(b), a)
