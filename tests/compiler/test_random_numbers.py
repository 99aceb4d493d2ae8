"""Random numbers in a compiled loop: those of each step and call are its own, and spikes are drawn as PyTorch does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import assert_bits_equal
from internals import bernoulli
from torch import Tensor, nn

import snnfast

pytestmark = pytest.mark.usefixtures("nothing_compiled")

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "binomial": lambda x: torch.binomial(x * 20, x),
    "gamma": lambda x: torch._standard_gamma(x + 1),
    "dirichlet": lambda x: torch._sample_dirichlet(x + 1),
    "poisson": lambda x: torch.poisson(x * 9),
    "bernoulli": torch.bernoulli,
    "normal": lambda x: torch.normal(x, 1.0),
    "multinomial": lambda x: torch.multinomial(x, 2).double().sum(1, keepdim=True).expand_as(x) * torch.rand(()),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "dropout": lambda x: F.dropout(x, 0.5),
    "module": nn.Dropout(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "rand": lambda x: x * torch.rand(x.shape),
    "rand_like": torch.rand_like,
    "randn_like": lambda x: x + torch.randn_like(x),
}


@pytest.mark.parametrize("varies", [False, True], ids=["constant", "varying"])
def test_every_step_and_call_draws_its_own_numbers(varies: bool) -> None:
    lif = snnfast.Leaky(beta=0.5)

    def f(x: Tensor, given: Tensor) -> Any:
        mem, drawn = torch.zeros(32, 3, dtype=torch.float64), []
        for step in x:
            spk, mem = lif(step, mem)
            of = given + 0 * spk if varies else given
            drawn.append([draw(of) for draw in DRAWS.values()])
        return drawn, mem

    compiled = torch.compile(f, backend="snnfast")
    with torch.no_grad():
        x, given = torch.rand(4, 32, 3).double(), torch.full((32, 3), 0.5).double()
        calls = [compiled(x, given)[0] for _ in range(2)]
    for i, name in enumerate(DRAWS):
        drawn = [step[i] for call in calls for step in call]
        assert len({tuple(t.flatten().tolist()) for t in drawn}) == len(drawn), name


RATES = {
    "rows": torch.rand(7, 33), "columns": torch.rand(9, 7).t(), "repeated": torch.rand(9, 1).expand(9, 5),
    "strided": torch.rand(4, 6)[:, ::2], "float64": torch.rand(3, 4).double(), "float16": torch.rand(3, 4).half(),
    "none": torch.rand(0, 3), "certain": torch.tensor([0.0, 1.0]), "differentiated": torch.rand(3, requires_grad=True),
}  # fmt: skip


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_spikes_are_drawn_as_pytorch_draws_them(rates: Tensor) -> None:
    seeded = [(torch.manual_seed(0), draw(rates), torch.rand(3))[1:] for draw in (torch.bernoulli, bernoulli)]
    for wanted, found in zip(*seeded, strict=True):
        assert_bits_equal(found, wanted)
        assert (found.stride(), found.requires_grad) == (wanted.stride(), wanted.requires_grad)


def test_spikes_are_drawn_under_vmap() -> None:
    drawn = [torch.vmap(draw, randomness="different")(torch.full((9, 4), 0.5)) for draw in (torch.bernoulli, bernoulli)]
    assert {t.shape for t in drawn} == {torch.Size([9, 4])}


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_what_is_no_rate_is_pytorchs_error(rate: float) -> None:
    with pytest.raises(RuntimeError, match="Expected p_in >= 0 && p_in <= 1 to be true"):
        bernoulli(torch.tensor([0.5, rate]))
