"""Loops over time that users of snnTorch write, compiled: the numbers are snnTorch's, and layers run over time."""

from typing import Any

import pytest
import snntorch
from loop_checks import assert_agree, compiled, explained, happened, snntorchs
from loop_programs import PROGRAMS
from snntorch_checks import own_list_of_neurons  # noqa: F401

import snnfast.snntorch as snn
from snnfast import Explanation

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_compiled_loop_has_the_numbers_of_snntorch_and_is_merged(program: Any) -> None:
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
