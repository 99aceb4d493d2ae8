"""What is particular to Alpha: which decays are taken, what follows from them, and what of snnTorch is mended."""

import math

import pytest
import snntorch
import torch
from torch import Tensor

import snnfast
import snnfast.snntorch as snn


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
