"""A few hundred of the random calls that ``tests/fuzz.py`` draws by the hundred thousand."""

import pytest
import torch
from fuzz import Call, wrong

from snnfast import use_backend

pytestmark = [
    pytest.mark.needs_extension,
    pytest.mark.filterwarnings("ignore:snnfast. a layer runs step by step"),
]


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_random_calls_equal_the_reference(first: int) -> None:
    torch.set_num_threads(1)
    differ: list[str] = []
    with use_backend("auto"):
        assert wrong(range(first, first + 100), differ.append) == 0, "\n".join(differ)


def test_calls_are_drawn_by_their_number_alone_and_reach_the_edges() -> None:
    calls = [Call(number) for number in range(300)]
    assert str(calls[7]) == str(Call(7))
    betas = {float(t) for c in calls for t in [c.tensors["beta"]] if not isinstance(t, torch.Tensor) or t.dim() == 0}
    assert {0.0, 1.0} <= betas
    assert {c.dtype for c in calls} == {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    for option, kinds in (
        ("inhibition", 2),
        ("state_quant", 2),
        ("reduce", 2),
        ("membrane_dtype", 2),
        ("num_steps", 5),
    ):
        assert len({str(c.options[option]) for c in calls}) >= kinds


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import fuzz

    exact = fuzz.lif
    monkeypatch.setattr(fuzz, "lif", lambda *args, **options: tuple(t * (1 + 1e-3) for t in exact(*args, **options)))
    with use_backend("auto"):
        assert wrong(range(20), lambda _: None) > 10
