"""Loops over time that users of snnTorch write, compiled: the numbers are snnTorch's, and layers run over time."""

from typing import Any

import pytest
import snntorch
import torch
from loop_checks import assert_agree, compiled, explained, happened, snntorchs
from loop_programs import PROGRAMS

import snnfast.snntorch as snn
from snnfast import Explanation

pytestmark = pytest.mark.filterwarnings("ignore")
# In the compiler these go the way of another program.
THOROUGH_ONLY = {
    "record-cat", "record-sums", "record-others", "record-lasts", "record-lists", "option-reset", "option-learned",
    "option-graded", "option-reset-at-once", "option-inhibition", "surrogate-atan", "surrogate-sigmoid",
    "surrogate-detached", "conv-1d", "conv-2d", "conv-3d", "evaluation", "batch-norm-cumulative", "connected-neurons",
    "surrogate-function", "no-grad-around", "inference-mode-around", "autocast-around", "checkpointed",
}  # fmt: skip
TORCH = torch.torch_version.TorchVersion(torch.__version__)


@pytest.fixture(autouse=True)
def own_list_of_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch keeps every neuron for good: none of another test's here."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


assert set(PROGRAMS) >= THOROUGH_ONLY


@pytest.mark.parametrize(
    "program",
    [pytest.param(p, id=name, marks=[pytest.mark.thorough] * (name in THOROUGH_ONLY)) for name, p in PROGRAMS.items()],
)
def test_a_compiled_loop_has_the_numbers_of_snntorch_and_is_merged(program: Any) -> None:
    if program.name == "surrogate-function" and TORCH < "2.12":
        pytest.skip("torch.compile of this torch takes no autograd.Function as an argument, whatever the backend")
    calls = compiled(program)
    assert_agree(program, calls, snntorchs(program))
    for number, call in enumerate(calls):
        if call.reports:
            found = happened(call.reports)
            assert found == (program.expects, program.repeats), f"call {number}: {Explanation(call.reports)}"


@pytest.mark.parametrize("name", ["tutorial5", "tutorial6", "hidden-forward-pass", "other-neurons", "batch-norm-train"])
@pytest.mark.thorough
def test_so_has_a_network_of_snntorch_that_was_converted(name: str) -> None:
    program = PROGRAMS[name]
    assert_agree(program, compiled(program, snntorch, snn.convert), snntorchs(program))


@pytest.mark.parametrize("name", ["trace-between-layers", "one-step", "no-step"])
def test_explain_tells_what_was_done(name: str) -> None:
    program = PROGRAMS[name]
    explanation = explained(program)
    assert happened(explanation.graphs) == (program.expects, program.repeats), str(explanation)
