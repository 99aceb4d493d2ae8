"""More of the random loops of ``test_loop_fuzz.py``, so that another worker may run them."""

import pytest
from test_loop_fuzz import CHUNK, PROGRAMS, compare_chunk

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("first", range(PROGRAMS // 2, PROGRAMS, CHUNK))
def test_random_loops_do_what_they_do_uncompiled(first: int) -> None:
    compare_chunk(first)
