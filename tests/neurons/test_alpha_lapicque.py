"""What is particular to Lapicque and Alpha: what is given, what follows from it, and what of snnTorch is mended."""

import copy
import math
from typing import Any

import pytest
import snntorch
import torch
from helpers import FLOATS, RESETS, assert_bits_equal, assert_close
from snntorch_checks import loop
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn

CASES: dict[str, dict[str, Any]] = {
    "beta": {"beta": 0.9}, "R,C": {"R": 5.1, "C": 1.44}, "ints": {"R": 5, "C": 2}, "beta,R": {"beta": 0.9, "R": 5.1},
    "beta,C": {"beta": 0.8, "C": 1.7}, "time_step": {"R": 1.3, "C": 7, "time_step": 0.1},
    "learned": {"beta": torch.tensor([0.7]), "learn_beta": True, "learn_threshold": True},
    "tensors": {"R": torch.tensor(5.1), "C": torch.tensor([1.44])},
    "float64": {"beta": torch.tensor(0.7, dtype=torch.float64), "R": 5.1},
}  # fmt: skip
START = torch.rand(4, 5)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_every_way_to_give_it_has_snntorchs_numbers_and_checkpoint(given: Any, dtype: torch.dtype, reset: str) -> None:
    x = torch.rand(20, 4, 5, dtype=dtype) * 8 - 2
    ours, theirs = (lib.Lapicque(**copy.deepcopy(given), reset_mechanism=reset) for lib in (snn, snntorch))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, t in theirs.state_dict().items():
        assert_bits_equal(ours.state_dict()[name], t, name)
    found = []
    for layer, call in ((theirs, loop), (ours, loop), (ours, snn.Lapicque.unroll)):
        leaves = [x.clone().requires_grad_(), START.to(dtype).requires_grad_()]
        spk, mem = (t.to(dtype) for t in call(layer, *leaves))  # snnTorch's spikes are float32
        found.append((spk, mem, *torch.autograd.grad((spk + mem.sin()).sum(), [*leaves, *layer.parameters()])))
        for i, (a, b) in enumerate(zip(found[-1], found[0], strict=True)):
            assert_close(a, b, 3e-5) if i > 1 else assert_bits_equal(a, b)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("given", [{}, {"R": 1.0}, {"C": 1.0}, {"beta": 0.9, "R": 1.0, "C": 2.0}], ids=str)
def test_beta_or_two_of_three_must_be_given(given: Any) -> None:
    for call in (snnfast.Lapicque, lambda **given: snnfast.functional.lapicque(START, **given)):
        with pytest.raises(ValueError, match=rf"^beta, R, C: .* got {', '.join(given) or 'none'}"):
            call(**given)
    for given in ({"R": 1.0, "C": 2.0}, {"beta": 0.9, "C": 2.0}):
        with pytest.raises(ValueError, match=r"^learn_beta: "):
            snnfast.Lapicque(**given, learn_beta=True)
    with pytest.raises(TypeError, match=r"^C: "):
        snnfast.functional.lapicque(START, R=1.0, C="2")  # type: ignore[arg-type]


def test_a_learned_beta_trains_on_and_c_follows_it() -> None:
    swapped = snntorch.Lapicque(0.7, learn_beta=True)
    snn.convert(swapped)
    x = torch.rand(9, 4, 5) * 3
    for layer in (snnfast.Lapicque(0.7, learn_beta=True), copy.deepcopy(swapped), swapped):
        for _ in range(2):
            layer.unroll(x)[1].sum().backward()
            layer.beta.data -= 1e-4 * layer.beta.grad
        now = snntorch.Lapicque(layer.beta.item())
        assert_bits_equal(layer.state_dict()["C"], now.C)
        assert_bits_equal(layer.unroll(x, START)[1], loop(now, x, START)[1])


@pytest.mark.parametrize("names", ["beta", "RC", ("beta", "R"), ("beta", "C")], ids=str)
def test_tensors_may_have_a_value_for_each_neuron_and_gradients_reach_them(names: Any, backend: str) -> None:
    names = ("time_step", *([names] if names == "beta" else names))
    values = [torch.linspace(0.5, 0.9, 5, dtype=torch.float64).requires_grad_() for _ in names]
    x = torch.rand(6, 4, 5, dtype=torch.float64)

    def mem(*tensors: Tensor) -> Tensor:
        return snnfast.functional.lapicque(x, threshold=1e6, **dict(zip(names, tensors, strict=True)))[1]  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(mem, values)
    layer = snnfast.Lapicque(**dict(zip(names, values, strict=True)), threshold=1e6)
    assert_bits_equal(layer.unroll(x)[1], mem(*values))


def test_a_layer_without_a_delay_resets_at_once_and_is_not_reverted() -> None:
    net = nn.Sequential(snn.Lapicque(0.7, reset_delay=False), snn.Lapicque(0.7))
    assert snn.revert(net).left == {"0": "snntorch.Lapicque has no reset_delay=False"}
    now, later = (layer(torch.full((1, 1), 9.0))[1] for layer in net)
    assert now == later - 1


# ---- Alpha


def test_an_input_rises_and_falls_as_the_alpha_function() -> None:
    """Of one input at step 0: tau * (alpha^t - beta^t)."""
    x = torch.zeros(30, 1, dtype=torch.float64)
    x[0] = 1
    _, _, _, mem = snnfast.functional.alpha(x, alpha=0.9, beta=0.7, threshold=1e6)
    tau = math.log(0.9) / (math.log(0.7) - math.log(0.9)) + 1
    expected = [[tau * (0.9**t - 0.7**t)] for t in range(30)]
    torch.testing.assert_close(mem, torch.tensor(expected, dtype=torch.float64))


def test_decays_without_a_time_constant_are_refused() -> None:
    for library in (snnfast, snn, snntorch):
        for alpha, beta in ((0.5, 0.5), (0.5, 0.6), (torch.tensor([0.9, 0.4]), 0.5), (1.0, 1.0)):
            with pytest.raises(ValueError, match="alpha"):
                library.Alpha(alpha, beta)
    with pytest.raises(ValueError, match=r"^alpha: expected more than beta"):
        snnfast.functional.alpha(torch.rand(9, 4), alpha=0.5, beta=0.5)
    with pytest.raises(TypeError, match=r"^beta: expected a number"):
        snnfast.functional.alpha(torch.rand(9, 4), alpha=0.5, beta="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["layer", "function"])
def test_learned_decays_get_the_gradient_through_the_time_constant(how: str) -> None:
    x = (torch.rand(9, 4) * 3 - 0.6).double()

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


def test_there_is_no_immediate_reset() -> None:
    layer = snnfast.Alpha(0.9, 0.6)
    layer.reset_delay = True
    with pytest.raises(ValueError, match=r"^reset_delay: Alpha has no immediate reset"):
        layer.reset_delay = False
    with pytest.raises(TypeError, match="reset_delay"):
        snnfast.Alpha(0.9, 0.6, reset_delay=False)  # type: ignore[call-arg]
