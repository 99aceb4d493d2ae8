"""Rate coding draws snnTorch's spikes, and leaves PyTorch's generator as snnTorch does."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import snntorch.spikegen as theirs
import torch
from helpers import assert_bits_equal
from torch import Tensor

import snnfast
import snnfast.snntorch as snn
from snnfast.snntorch import spikegen as ours

VALUES = torch.rand(3, 5, 41) * 1.4 - 0.2


def drawn(call: Callable[[Any], Any], before: int = 0) -> tuple[Any, Tensor, Tensor]:
    """Its result, the state of the generator behind it, and the numbers that follow."""
    torch.manual_seed(7)
    torch.rand(before)
    torch.randn(1)  # keeps a second normal number for later
    found = call(None)
    return found, torch.get_rng_state(), torch.cat([torch.randn(3), torch.rand(1000)])


def check(function: str, *args: Any, before: int = 0, **kwargs: Any) -> None:
    found, expected = (drawn(lambda _, m=m: getattr(m, function)(*args, **kwargs), before) for m in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        assert_bits_equal(a, b)


@pytest.fixture
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of each call of the kernel."""
    kernel, calls = torch.ops.snnfast.draw_spikes, []
    monkeypatch.setattr(torch.ops.snnfast, "draw_spikes", lambda p, n, state: calls.append(n) or kernel(p, n, state))
    return calls


@pytest.mark.needs_extension
@pytest.mark.parametrize("before", [0, 1, 621, 622, 623, 624, 625, 1246, 1247])
def test_spikes_and_the_generator_are_snntorchs(before: int, isa: str, by_kernel: list[int]) -> None:
    check("rate", VALUES, 4, before=before)
    check("rate", VALUES[0, 0, :7], num_steps=1, before=before)
    check("rate_conv", VALUES, before=before)
    assert by_kernel == [4, 1, 1]


@pytest.mark.needs_extension
@pytest.mark.parametrize(
    "how",
    [{}, {"gain": 0.5}, {"gain": 2, "offset": 0.1}, {"first_spike_time": 2}, {"offset": -1.0, "first_spike_time": 3}],
    ids=str,
)
@pytest.mark.parametrize(
    "data", [VALUES, VALUES.transpose(0, 1), VALUES[:, ::2], VALUES[:0], torch.tensor(0.5)],
    ids=["", "transposed", "strided", "empty", "a number"],
)  # fmt: skip
def test_options_and_layouts(data: Tensor, how: dict[str, Any], by_kernel: list[int]) -> None:
    check("rate", data, 5, **how)
    assert by_kernel == [5]


OTHERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "float64": ((VALUES.double(), 3), {}),
    "gradients": ((VALUES.clone().requires_grad_(), 3), {}),
    "a tensor as the gain": ((VALUES, 3), {"gain": torch.tensor(0.5)}),
    "values for each step": ((VALUES,), {"time_var_input": True, "first_spike_time": 1}),
    "no number of steps": ((VALUES,), {}),
    "both": ((VALUES, 3), {"time_var_input": True}),
    "a first spike behind the end": ((VALUES, 3), {"first_spike_time": 3}),
    "a negative first spike": ((VALUES, 3), {"first_spike_time": -1}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_snntorchs(name: str) -> None:
    """But its spikes for each step, which are drawn by :func:`rate_conv`."""
    args, kwargs = OTHERS[name]
    found = []
    for module in (ours, theirs):
        try:
            found.append(drawn(lambda _, m=module: m.rate(*args, **kwargs)))
        except Exception as error:
            found.append((type(error), str(error)))
    if isinstance(found[1][0], type):
        assert found[0] == found[1]
    else:
        for a, b in zip(*found, strict=True):
            assert_bits_equal(a, b)


@pytest.mark.parametrize("function", ["rate", "rate_conv"])
def test_nan_is_pytorchs_error(function: str) -> None:
    data = torch.tensor([0.5, float("nan")])
    args = (data, 3) if function == "rate" else (data,)
    for module in (ours, theirs):
        with pytest.raises(RuntimeError, match="p_in >= 0 && p_in <= 1"):
            getattr(module, function)(*args)


def test_the_reference_modes_and_transforms_see_snntorchs(by_kernel: list[int]) -> None:
    with snnfast.use_backend("reference"):
        check("rate", VALUES, 2)
    with torch.device("cpu"):
        check("rate", VALUES, 2)
    compiled = torch.compile(lambda x: ours.rate(x, 2), backend="eager", fullgraph=True)
    assert_bits_equal(drawn(lambda _: compiled(VALUES))[0], drawn(lambda _: theirs.rate(VALUES, 2))[0])
    assert not by_kernel


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_loop_has_the_spikes_of_its_loop() -> None:
    lif = snn.Leaky(beta=0.9)

    def spikes(x: Tensor) -> Tensor:
        mem, spk_rec = lif.reset_mem(), []
        for x_t in snn.spikegen.rate(x, 6):
            spk, mem = lif(x_t, mem)
            spk_rec.append(spk)
        return torch.stack(spk_rec)

    expected = [drawn(lambda _: spikes(VALUES))[:2] for _ in range(3)]
    compiled = snnfast.compile(spikes)
    for spk_rec, state in expected:
        found = drawn(lambda _: compiled(VALUES))
        assert_bits_equal(found[0], spk_rec)
        assert_bits_equal(found[1], state)


@pytest.mark.needs_extension
@pytest.mark.parametrize("data", [VALUES[:0], VALUES])
def test_a_new_generator(data: Tensor) -> None:
    states = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        module.rate(data, 2)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.needs_extension
def test_bad_states_are_errors() -> None:
    state = torch.get_rng_state()
    for bad in (state[:-1], state.int(), torch.zeros_like(state), state.repeat(2)[::2]):
        with pytest.raises(RuntimeError, match="state: expected that of a generator on the CPU"):
            torch.ops.snnfast.draw_spikes(VALUES, 2, bad)
    with pytest.raises(RuntimeError, match="steps: expected a number from 0"):
        torch.ops.snnfast.draw_spikes(VALUES, -1, state)
    with pytest.raises(RuntimeError, match="probabilities: expected contiguous float32"):
        torch.ops.snnfast.draw_spikes(VALUES.double(), 1, state)


def test_everything_else_of_the_module_is_snntorchs() -> None:
    module = importlib.import_module("snnfast.snntorch.spikegen")
    assert module is snn.spikegen
    assert snn.spikegen is ours
    others = [name for name in dir(theirs) if not name.startswith("_") and name not in ("rate", "rate_conv")]
    assert "latency" in others
    assert all(getattr(ours, name) is getattr(theirs, name) for name in others)
    by_star: list[dict[str, Any]] = [{}, {}]
    for module, names in zip((ours, theirs), by_star, strict=True):
        exec(f"from {module.__name__} import *", names)
    assert by_star[0].keys() == by_star[1].keys()
    assert by_star[0]["rate"] is ours.rate
