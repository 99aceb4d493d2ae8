"""Loops over time that users of snnTorch write, compiled: the numbers are snnTorch's, and layers run over time."""

import itertools
from typing import Any

import pytest
import snntorch
import torch
from loop_checks import BACKEND, assert_agree, compiled, explained, happened, snntorchs
from loop_programs import PROGRAMS, Net
from torch import Tensor, nn

import snnfast.snntorch as snn
from snnfast import Explanation

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def own_list_of_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch keeps every neuron for good: none of another test's here."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_compiled_loop_has_the_numbers_of_snntorch_and_is_merged(program: Any) -> None:
    if program.name == "surrogate-function" and torch.torch_version.TorchVersion(torch.__version__) < "2.12":
        pytest.skip("torch.compile of this torch takes no autograd.Function as an argument, whatever the backend")
    calls = compiled(program)
    assert_agree(program, calls, snntorchs(program))
    for number, call in enumerate(calls):
        if call.reports and torch.torch_version.TorchVersion(torch.__version__) >= program.since:
            found = happened(call.reports)
            assert found == (program.expects, program.repeats), f"call {number}: {Explanation(call.reports)}"


@pytest.mark.parametrize("name", ["tutorial5", "tutorial6", "hidden-forward-pass", "synaptic", "batch-norm-train"])
def test_so_has_a_network_of_snntorch_that_was_converted(name: str) -> None:
    program = PROGRAMS[name]
    assert_agree(program, compiled(program, snntorch, snn.convert), snntorchs(program))


@pytest.mark.parametrize("name", ["tutorial5", "trace-between-layers", "recurrent-by-hand", "one-step", "no-step"])
def test_explain_tells_what_was_done(name: str) -> None:
    program = PROGRAMS[name]
    explanation = explained(program)
    assert happened(explanation.graphs) == (program.expects, program.repeats), str(explanation)


# ---- random numbers in the loop: those of each step are its own


class Masked(Net):
    """Returns what the second layer sees, of spikes that are all 1."""

    def __init__(self, library: Any, drop: nn.Module) -> None:
        super().__init__(library, threshold=-1e9)
        self.drop = drop

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.states()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            dropped = self.drop(spk1)
            _, mem2 = self.lif2(self.fc2(dropped), mem2)
            rec.append(dropped)
        return torch.stack(rec), mem2


class Coin(nn.Module):
    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(x)


RANDOM = {
    "dropout": nn.Dropout(0.5),
    "alpha-dropout": nn.AlphaDropout(0.5),
    "bernoulli": Coin(lambda x: torch.bernoulli(0.5 * x)),
    "rand-like": Coin(lambda x: (torch.rand_like(x) < 0.5 * x).float()),
    "noise": Coin(lambda x: x + torch.randn_like(x)),
    "rand": Coin(lambda x: x * torch.rand(x.shape)),
}


@pytest.mark.parametrize("drop", RANDOM.values(), ids=RANDOM)
def test_every_step_and_call_draws_its_own_numbers(drop: nn.Module) -> None:
    torch._dynamo.reset()
    net = torch.compile(Masked(snn, drop), backend=BACKEND)
    x = torch.ones(4, 3, 12)
    drawn = [m for _ in range(2) for m in net(x)[0]]
    for a, b in itertools.combinations(drawn, 2):
        assert not torch.equal(a, b)
    torch._dynamo.reset()
