"""How the calls of what is compiled are made: replayed, recorded, or as they are."""

import copy
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiler.internals import ByRecording
from helpers import pairs
from loop_nets import Net, OneStep, WithSLSTM, currents
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast._core.pytorch import current_recorder

pytestmark = [pytest.mark.needs_extension, pytest.mark.usefixtures("nothing_compiled")]
CHOICE = "snnfast.compiler.choice"


def call(net: Callable[..., Any], *inputs: Tensor) -> list[str]:
    """Call it, and check that it returns what it returned without a compiler. Returns the warnings."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        found = net(*inputs)
    plain = net._call_impl if isinstance(net, nn.Module) else net.__wrapped__  # type: ignore[attr-defined]
    torch.testing.assert_close(found, plain(*inputs))
    return [str(w.message) for w in caught if str(w.message).startswith("snnfast: ")]


def prints_each(x: Tensor, look: Callable[[Tensor], object] = Tensor.item) -> Tensor:
    """A loop that needs values, of which no graph can run ahead: it draws random numbers, too."""
    mem, rec = torch.zeros_like(x[0]), []
    for step in x:
        _, mem = LIF(step, mem)
        look(mem.sum() * torch.rand(()))
        rec.append(mem)
    return torch.stack(rec)


LIF = snnfast.Leaky(beta=0.9)


def by_hand(x: Tensor) -> Tensor:
    mem, rec = torch.zeros_like(x[0]), []
    for step in x:
        mem = torch.tanh(0.9 * mem + step)
        rec.append(mem)
    return torch.stack(rec)


def test_a_loop_is_recorded_for_any_number_of_steps() -> None:
    net = snnfast.compile(Net())
    for T in (9, 12, 2):
        assert call(net, currents(T)) == []
    assert "its graph is for any number of steps" in str(snnfast.explain(net, currents(11)))


def test_a_loop_of_which_nothing_can_run_ahead_runs_as_it_is_after_three_calls() -> None:
    compiled = snnfast.compile(prints_each)
    said = [call(compiled, currents()) for _ in range(5)]
    assert list(map(len, said)) == [0, 0, 1, 0, 0]
    assert "prints_each runs as it is, without a recorder: item needs a value" in said[2][0]
    assert "item needs a value" in snnfast.explain(prints_each, currents()).notes


def test_nothing_is_recorded_where_pytorch_is_told_to_compile_nothing() -> None:
    compiled = ByRecording(Net())
    with torch.compiler.set_stance("force_eager"):
        compiled(currents())
    assert compiled.plans == []


def test_a_free_threaded_python_records_nothing_and_says_what_turns_the_lock_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = ByRecording(Net())
    net = snnfast.compile(Net())
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    compiled(currents())
    assert compiled.plans == []
    assert call(net, currents()) == [
        "snnfast: Net runs as it is on a free-threaded Python; PYTHON_GIL=1 turns the lock on that a recorder needs"
    ]
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True)
    compiled(currents())
    assert len(compiled.plans) == 1


def test_where_nothing_is_recorded_explain_says_so() -> None:
    with snnfast.use_backend("reference"):
        (note,) = snnfast.explain(Net(), currents()).notes
    assert "no call is recorded here: the reference is chosen" in note


def test_a_network_of_which_nothing_is_merged_runs_as_it_is_and_one_warning_says_why() -> None:
    for net, reason in (
        (OneStep(), "1 step of leaky .*: it runs for a single step. The loop may be outside of what is compiled"),
        (nn.Linear(12, 5), "there is no step of a neuron in it"),
        (WithSLSTM(), "lstm: snnfast has no kernel for SLSTM"),
    ):
        snnfast.compile(net)
        said = [message for _ in range(5) for message in call(net, currents())]
        assert len(said) == 1
        assert re.search(f"{type(net).__name__} runs as it is, without a recorder: {reason}", said[0])


OUTSIDE = "the loop over time is not in what you compiled.*Compile the function with the loop"


def layers_that_hold(n: int) -> nn.Sequential:
    return nn.Sequential(*(m for _ in range(n) for m in (nn.Linear(6, 6), snnfast.Leaky(0.9, init_hidden=True))))


class Passed(nn.Module):
    """One step, whose states are passed by the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.lif1, self.lif2 = snnfast.Leaky(0.9), snnfast.Synaptic(0.9, 0.8)

    def forward(self, x: Tensor, *states: Tensor) -> Any:
        spk, mem = self.lif1(x, *states[:1])
        return self.lif2(spk, *states[1:])[0], mem, *states[1:]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_a_network_whose_loop_is_outside_says_so_once(layers: int, grad: bool) -> None:
    net = snnfast.compile(layers_that_hold(layers))
    with torch.set_grad_enabled(grad), warnings.catch_warnings(record=True, action="always") as caught:
        for _ in range(2):
            snnfast.reset(net)
            for step in currents(6, 3)[..., :6]:
                net(step)
    (said,) = [str(w.message) for w in caught if str(w.message).startswith("snnfast: ")]
    assert re.search(f"Sequential runs as it is, without a recorder: {OUTSIDE}", said)
    assert re.search(OUTSIDE, str(snnfast.explain(net, torch.rand(3, 6))))


def test_what_has_the_loop_or_no_state_of_before_does_not_say_that_it_is_outside() -> None:
    passed, x = Passed(), torch.rand(3, 6)
    assert re.search(OUTSIDE, str(snnfast.explain(passed, x, *torch.rand(3, 3, 6))))
    net = layers_that_hold(2)  # no state yet: it may be a network of one step
    assert "2 steps of leaky: it runs for a single step. The loop may be outside" in str(snnfast.explain(net, x))
    net(x)

    def sorts(x: Tensor, mem: Tensor) -> Tensor:
        for step in x:
            mem = LIF(step, mem)[1].sort().values
        return mem

    found = str(snnfast.explain(sorts, torch.rand(5, 3, 6), torch.zeros(3, 6)))
    assert "5 steps of leaky" in found
    assert "its states or parameters are changed between two steps" in found


def test_layers_of_snntorch_in_a_function_are_named() -> None:
    snntorch = pytest.importorskip("snntorch")
    lif = snntorch.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        for step in x:
            spk, mem = lif(step, mem)
        return spk

    compiled = snnfast.compile(loop)
    (message,) = [message for _ in range(3) for message in call(compiled, currents())]
    assert "its layers are snnTorch's own" in message


@pytest.mark.parametrize(
    ("seconds", "ways"),
    [
        (1.0, "r" * 6 + "p" * 12),  # the first call makes a graph and is not timed
        (2.9, "r" * 6 + "p" * 5 + "r" * 7),
    ],
)
@torch.no_grad()
def test_calls_without_gradients_run_as_they_are_where_that_takes_less_time(
    seconds: float, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded call of ten steps takes 3 seconds here."""
    clock, taken = [0.0], []
    monkeypatch.setattr(f"{CHOICE}.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def loop(x: Tensor) -> Tensor:
        taken.append("p" if current_recorder() is None else "r")
        clock[0] += len(x) / 10 * (seconds if taken[-1] == "p" else 3.0)
        return by_hand(x)

    compiled = snnfast.compile(loop)
    x = currents(10)
    for _ in range(18):
        torch.testing.assert_close(compiled(x), by_hand(x))
    assert "".join(taken) == ways


@pytest.mark.parametrize("on", ["other shapes", "another device"])
@torch.no_grad()
def test_calls_are_timed_against_calls_like_them(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes a second for its steps, whatever its batch, and as it is two; a GPU's has returned at once."""
    clock, taken = [0.0], []
    monkeypatch.setattr(f"{CHOICE}.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def loop(x: Tensor, other: Tensor) -> Tensor:
        taken.append("p" if current_recorder() is None else "r")
        clock[0] += 1.0 if taken[-1] == "r" else 2.0 if other.is_cpu else 0.0
        return by_hand(x)

    compiled = snnfast.compile(loop)
    other = torch.empty(0, device="meta" if on == "another device" else "cpu")
    for B in (1,) * 6 + (8,) * 16:
        compiled(currents(10, B), other)
    # Three calls of the second batch make a graph, and are not timed.
    assert "".join(taken) == ("r" * 22 if on == "another device" else "r" * 6 + "r" * 3 + "r" * 5 + "p" * 5 + "r" * 3)


def test_new_sizes_that_have_no_graph_run_as_they_are_and_are_recorded_when_they_come_again() -> None:
    """Three new sizes are tried, and three more once a size that came again has a graph."""
    taken: list[str] = []

    def loop(x: Tensor) -> Tensor:
        taken.append("as it is" if current_recorder() is None else "recorded")
        return divided(x)

    compiled = snnfast.compile(loop)
    ways, said = {}, []
    for T in (9, 9, 10, 11, 12, 13, 14, 15, 14, 14, 14, 14, 17, 18, 19, 20, 21):
        taken.clear()
        said += call(compiled, currents(T))
        ways[T] = taken[0]
    assert {T for T, way in ways.items() if way == "as it is"} == {15, 20, 21}
    (message,) = said
    assert "loop runs as it is where its sizes are new, until they come again: another call like it" in message


def test_in_a_checkpoint_a_loop_runs_as_it_is_and_one_warning_says_so() -> None:
    net, x = Net(), currents().requires_grad_()
    plain = copy.deepcopy(net)
    snnfast.compile(net)
    net(x)
    with pytest.warns(UserWarning, match="Net runs as it is in a checkpoint") as caught:
        found = [checkpoint(net, x, use_reentrant=False) for _ in range(2)]
    assert len(caught) == 1
    asked = [torch.autograd.grad(out[1].sum(), x)[0] for out in (found[0], plain(x))]
    torch.testing.assert_close(*asked)


def test_training_and_evaluation_decide_each_for_itself() -> None:
    recorded = []

    def loop(x: Tensor) -> Tensor:
        recorded.append((torch.is_grad_enabled(), current_recorder() is not None))
        return prints_each(x, Tensor.item if torch.is_grad_enabled() else Tensor.abs)

    compiled = snnfast.compile(loop, replay=False)
    for _ in range(4):
        with torch.no_grad():
            compiled(currents())
        compiled(currents())
    assert recorded == [(False, True), (True, True)] * 3 + [(False, True), (True, False)]


@pytest.mark.parametrize(
    ("sizes", "graphs"),
    [
        (((9, 8), (9, 8), (9, 5), (10, 5), (11, 7), (9, 30), (14, 15)), 2),
        (((4, 8), (4, 8), (4, 5), (4, 5), (4, 7), (4, 30)), 2),
        (((4, 8), (4, 5), (4, 5), (4, 7), (3, 8), (3, 8), (3, 5), (3, 5), (3, 7), (4, 10)), 2),
    ],
    ids=["any steps", "few steps", "few steps, others"],
)
def test_one_more_graph_serves_all_sizes_of_a_batch(sizes: tuple[tuple[int, int], ...], graphs: int) -> None:
    compiled = ByRecording(net := Net())
    for T, B in sizes:
        x = torch.rand(T, B, 12)
        torch.testing.assert_close(compiled(x), net(x))
    assert len({id(plan.graph) for plan in compiled.plans}) == graphs


def test_a_loop_for_one_number_of_steps_may_be_for_any_size_of_a_batch() -> None:
    """The loop makes other calls at every third step."""

    def loop(x: Tensor) -> Tensor:
        mem = torch.zeros_like(x[0])
        for step in x:
            _, mem = LIF(step, mem)
            mem = mem * x.size(0) ** 0.5
        return mem

    compiled = ByRecording(loop)
    for T, B in ((9, 8), (9, 5), (9, 5), (9, 7), (10, 8), (10, 8), (10, 8), (10, 5), (9, 6)):
        x = torch.rand(T, B, 12)
        torch.testing.assert_close(compiled(x), loop(x))
    assert len(compiled.plans) > 2


@pytest.mark.parametrize(
    ("size", "shape"),
    pairs([5, 9, 12, 32, 64], [(0, 0, 12), (0, 3, 12), (0, 12, 12), (12, 0, 12), (9, 0, 12), (4, 0, 12)]),
)
def test_a_number_of_steps_may_be_any_other_size(size: int, shape: tuple[int, ...]) -> None:
    """In the network are sizes of 12, 9 and 4."""
    net = Net().double()
    compiled = ByRecording(net)
    for _ in range(3):
        x = 2 * torch.rand([n or size for n in shape], dtype=torch.float64)
        torch.testing.assert_close(compiled(x), net(x))


def test_tensors_that_share_memory_and_are_changed_are_those_of_the_loop() -> None:
    def loop(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        mem, rec = torch.zeros_like(a), []
        for step in x:
            a.add_(step)
            _, mem = LIF(b * 1.0, mem)
            rec.append(mem)
        return torch.stack(rec)

    compiled, x = ByRecording(loop), torch.rand(9, 3, 12)
    for _ in range(3):
        a, wanted = torch.zeros(3, 12), torch.zeros(3, 12)
        torch.testing.assert_close(compiled(x, a, a[:]), loop(x, wanted, wanted[:]))
        torch.testing.assert_close(a, wanted)


def test_a_batch_of_one_sample_may_come_first() -> None:
    compiled = ByRecording(net := Net())
    for T, B in ((13, 1), (13, 1), (10, 8), (11, 8), (17, 8), (14, 8), (15, 7), (15, 7), (13, 6)):
        x = torch.rand(T, B, 12)
        torch.testing.assert_close(compiled(x), net(x))
    assert len({id(plan.graph) for plan in compiled.plans}) == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_dropout_in_a_checkpoint_has_one_mask(reentrant: bool) -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Any:
            mem = out = torch.zeros(x.shape[1], 9)
            for step in x:
                _, mem = self.lif1(nn.functional.dropout(self.fc1(step)), mem)
                out = out + mem
            return out

    net, x = Dropping(), currents(T=9).requires_grad_()
    plain = copy.deepcopy(net)
    snnfast.compile(net)
    for seed in range(4):
        found = []
        for model in (net, plain):
            torch.manual_seed(seed)
            with warnings.catch_warnings(action="ignore"):
                loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
            model.zero_grad()
            loss.backward()
            found.append([p.grad for p in (model.fc1.weight, model.fc1.bias)])
        torch.testing.assert_close(*found)


class WithStatesOfItsOwn(Net):
    """No call reads a state that another one has left in a layer."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, rec = torch.zeros(x.shape[1], 9), torch.zeros(x.shape[1], 4), []
        for x_t in x:
            spk, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(spk)
        return torch.stack(rec), mem2


def test_several_threads_record_one_network() -> None:
    net = WithStatesOfItsOwn()
    plain = copy.deepcopy(net)
    snnfast.compile(net)
    inputs = [torch.rand(9 + i % 3, 4 + i % 2, 12) for i in range(24)]
    with ThreadPoolExecutor(4) as threads:
        for x, found in zip(inputs, threads.map(net, inputs), strict=True):
            torch.testing.assert_close(found, plain(x))


@pytest.mark.parametrize("how", [partial, None])
def test_what_has_no_name_can_be_compiled(how: Any) -> None:
    function = partial(by_hand) if how else by_hand
    x = currents()
    torch.testing.assert_close(snnfast.compile(function)(x), by_hand(x))


def divided(x: Tensor) -> Tensor:
    """A loop with a graph for each number of steps."""
    mem, rec = torch.zeros_like(x[0]), []
    for step in x:
        _, mem = LIF(step / x.size(0) ** 2, mem)
        rec.append(mem)
    return torch.stack(rec)


def _graphs_are_dear(monkeypatch: pytest.MonkeyPatch, limit: str = "_FIRST") -> None:
    for name in ("_FREE", "_SHARE", limit):
        monkeypatch.setattr(f"{CHOICE}.{name}", 0)


@pytest.mark.parametrize("limit", ["_FIRST", "_AT_FIRST"])
def test_graphs_that_cost_more_than_calls_can_pay_for_are_not_made(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    _graphs_are_dear(monkeypatch, limit)
    compiled, told = ByRecording(divided), []
    compiled.__wrapped__ = divided  # type: ignore[attr-defined]
    for _ in range(2):
        for T in range(5, 12):
            told.append(call(compiled, currents(T)))
            assert len([plan for plan in compiled.plans if not isinstance(plan, str)]) == 1
    assert told[:4] == [[], [], [], []]  # the first has a graph; after three without one, others run as they are
    assert re.search("a function runs as it is where its sizes are new, until graphs of them pay", told[4][0])


def test_graphs_are_made_again_once_calls_can_pay_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    _graphs_are_dear(monkeypatch)
    compiled = ByRecording(divided)
    for T in range(5, 12):
        compiled(currents(T))
    monkeypatch.setattr(f"{CHOICE}._FREE", 1000.0)
    for _ in range(3):
        compiled(currents(9))
    assert len([plan for plan in compiled.plans if not isinstance(plan, str)]) == 2


def test_a_graph_for_any_number_of_steps_serves_new_ones_whatever_it_has_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    _graphs_are_dear(monkeypatch)
    compiled = ByRecording(by_hand)
    compiled.__wrapped__ = by_hand  # type: ignore[attr-defined]
    for T in range(9, 34, 3):
        assert call(compiled, currents(T)) == []
    assert [plan for plan in compiled.plans if isinstance(plan, str)] == []


def in_float64(x: Tensor) -> Tensor:
    mem, rec = torch.zeros_like(x[0]), []
    for step in x:
        torch.set_default_dtype(torch.float64)
        mem = torch.tanh(0.9 * mem + step) * torch.ones(1)
        torch.set_default_dtype(torch.float32)
        rec.append(mem)
    return torch.stack(rec)


def test_a_loop_that_changes_the_default_dtype_runs_as_it_is() -> None:
    compiled = snnfast.compile(in_float64)
    messages = [message for _ in range(5) for message in call(compiled, currents())]
    assert len(messages) == 1
