"""Some of the random calls that ``tests/unroll/fuzz.py`` draws by the hundred thousand."""

from dataclasses import replace

import pytest
import torch
from fuzz import Call, outcome
from fuzzing import wrong
from helpers import KINDS

from snnfast import use_backend

pytestmark = [pytest.mark.needs_extension, pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step")]
EACH = 150
FIRST = [0, *(pytest.param(first, marks=pytest.mark.thorough) for first in range(EACH, 8 * EACH, EACH))]


@pytest.mark.parametrize("first", FIRST)
def test_random_calls_equal_the_reference(first: int) -> None:
    torch.set_num_threads(1)
    with use_backend("auto"):
        assert wrong(outcome, range(first, first + EACH)) == []


def test_calls_are_drawn_by_their_number_alone_and_reach_the_edges() -> None:
    calls = [Call(number) for number in range(300)]
    assert str(calls[7]) == str(Call(7))
    decays = [c.tensors[name] for c in calls for name in c.case.kind.decays]
    assert {0.0, 1.0} <= {float(t) for t in decays if not isinstance(t, torch.Tensor) or t.dim() == 0}
    assert {c.case.dtype for c in calls} == {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    for option in ("inhibition", "state_quant", "lengths"):
        assert len({str(c.more.get(option)) for c in calls}) >= 2
    assert {c.case.neuron for c in calls} == set(KINDS)
    assert any(getattr(c.tensors["threshold"], "ndim", 0) > len(c.case.shape) for c in calls)


@pytest.mark.parametrize("neuron", KINDS)
def test_a_wrong_kernel_is_found(neuron: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = KINDS[neuron].function
    wrong_kind = replace(
        KINDS[neuron], function=lambda *args, **options: tuple(t * (1 + 1e-3) for t in exact(*args, **options))
    )
    monkeypatch.setitem(KINDS, neuron, wrong_kind)
    with use_backend("auto"):
        of_it = [number for number in range(40) if Call(number).case.neuron == neuron]
        assert len(wrong(outcome, of_it)) > len(of_it) // 3
