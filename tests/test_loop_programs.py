"""Loops over time as users write them: compiled, each does what it does as it stands, and this much of it is merged."""

import re
from collections import Counter
from typing import Any

import pytest
from loop_fuzz import Watched, check, surroundings
from loop_programs import PROGRAMS

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_compiled_loop_does_what_it_does_uncompiled_and_is_merged(program: Any) -> None:
    watched, statistics = Watched(), Counter[str]()
    with surroundings(program.dtype):
        found = check(program.run, watched, statistics, "bfloat16" if program.dtype == "float32" else None)
    assert found is None
    assert statistics["compared"] == statistics["spiking"] == 1
    repeated = [line for report in watched.reports for line in report.repeated]
    assert {m[1] for line in repeated if (m := re.match(r"\d+ x (\S+)", line))} == set(program.repeats)
    merged = any(re.search("one (unroll|recurrence)", line) for report in watched.reports for line in report.merged)
    left = any(re.match(r"\d+ steps? of ", line) for line in repeated)
    assert (merged, left) == (program.layers != "repeated", program.layers != "merged")
