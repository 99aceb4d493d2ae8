"""What ``torch.compile(..., backend="snnfast")`` promises around the merging.

What ``snnfast.compile`` makes of a network is in test_loop_entry.py; programs are in test_programs.py.
"""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from helpers import assert_all_bits_equal, assert_bits_equal
from internals import Recorded, emitter
from loop_nets import WAYS, Feedback, Net, assert_same, by_torch_compile, currents, graphs, refused
from torch import Tensor, nn
from torch.nn.utils import prune

import snnfast
from snnfast._unroll.graph import unroll_steps

pytestmark = pytest.mark.usefixtures("nothing_compiled")


# ---- the entry point


def test_the_backend_is_found_by_its_name_without_an_import() -> None:
    assert "snnfast" in torch._dynamo.list_backends()
    net = Net()
    assert_same(torch.compile(net, backend="snnfast"), copy.deepcopy(net), currents())


def test_compile_converts_snntorchs_layers() -> None:
    snntorch = pytest.importorskip("snntorch")
    net = Net(snntorch.Leaky)
    reference = copy.deepcopy(net)
    compiled = snnfast.compile(net)
    assert isinstance(net.lif1, snnfast.Leaky)
    assert_same(compiled, reference, currents())


def test_what_can_not_be_compiled_is_an_error() -> None:
    for function in (snnfast.compile, snnfast.explain):
        with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module or a function, got int"):
            function(3)


@pytest.mark.parametrize("backend", ["snnfast", "eager"])
def test_a_compiled_network_is_compiled_anew_and_stays_a_network(backend: str) -> None:
    """As when a cell of a notebook is run twice."""
    net = Net()
    compiled = snnfast.compile(torch.compile(net, backend=backend))
    assert all(p is q for p, q in zip(compiled.parameters(), net.parameters(), strict=True))
    assert_same(compiled, copy.deepcopy(net), currents())
    (graph,) = snnfast.explain(compiled, currents()).graphs
    assert "5 x linear" in graph.merged


def test_a_mode_is_an_error_that_names_it() -> None:
    message = "mode: 'reduce-overhead' is one of Inductor's"
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message):
        torch.compile(Net(), backend="snnfast", mode="reduce-overhead")(currents())


@pytest.mark.thorough
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_the_new_graph_can_be_given_to_another_backend(inner: str) -> None:
    net = Net()
    assert_same(torch.compile(net, backend="snnfast", options={"inner": inner}), copy.deepcopy(net), currents())


@pytest.mark.parametrize("inner", ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)])
def test_another_backend_takes_a_neuron_by_hand(inner: str) -> None:
    """Its steps are traced one by one: the kernels of programs have no form without numbers."""

    def loop(x: Tensor) -> Tensor:
        v, record = torch.zeros_like(x[0]), []
        for current in x:
            v = 0.9 * v + current
            v = v - (v > 1).float()
            record.append(v)
        return torch.stack(record)

    compiled = torch.compile(loop, backend="snnfast", options={"inner": inner})
    with pytest.warns(UserWarning, match="runs step by step where torch.compile traces it"):
        assert_same(compiled, loop, currents())  # the graph is handed on behind it
    for _ in range(2):
        assert_same(compiled, loop, currents())


def test_an_unknown_option_is_an_error() -> None:
    message = "options: expected 'inner' at most, got 'outer'"
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message):
        torch.compile(Net(), backend="snnfast", options={"outer": "inductor"})(currents())


# ---- explain


def test_explain_tells_what_is_merged_and_changes_nothing() -> None:
    snntorch = pytest.importorskip("snntorch")
    net = Net(snntorch.Leaky)
    before = copy.deepcopy(net.state_dict())
    explanation = snnfast.explain(net, currents())
    assert isinstance(explanation, snnfast.Explanation)
    assert isinstance(explanation.graphs[0], snnfast.GraphReport)
    (graph,) = explanation.graphs
    assert graph.merged[:2] == [f"5 steps of leaky: one unroll{more}" for more in (", with the linear behind it", "")]
    assert graph.merged.count("5 x linear") == 2
    assert not graph.repeated
    assert graph.refused is None
    assert "loop_nets.py" in graph.where
    assert "merged    5 x linear (2 times)" in str(explanation)
    assert "29 calls of the loop became 3" in str(explanation)
    assert type(net.lif1) is snntorch.Leaky
    assert net.lif1.mem.shape == (0,)
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name])


@pytest.mark.parametrize("prunes", [False, True], ids=["states", "states and a pruned weight"])
def test_explain_takes_a_network_that_has_trained(prunes: bool) -> None:
    """``copy.deepcopy`` refuses what autograd has recorded."""

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif, self.states = nn.Linear(12, 12), snnfast.Leaky(beta=0.9), [torch.zeros(3, 12)]
            if prunes:
                prune.l1_unstructured(self.fc, "weight", amount=0.3)

        def forward(self, x: Tensor) -> Tensor:
            rec = []
            for x_t in x:
                spk, self.states[0] = self.lif(self.fc(x_t), self.states[0])
                rec.append(spk)
            return torch.stack(rec)

    net, x = Trained(), torch.rand(5, 3, 12)
    net(x).sum().backward()
    (held,) = net.states
    assert "one unroll" in str(snnfast.explain(net, x))
    assert net.states[0] is held
    assert not held.is_leaf


def test_explain_tells_what_is_repeated_with_its_line() -> None:
    (graph,) = snnfast.explain(Feedback(), currents()).graphs
    assert "5 x linear" in graph.merged
    (layer,) = [line for line in graph.repeated if "leaky" in line]
    assert re.search(r"5 steps of leaky \(.*loop_nets.py:\d+\): its input at a step", layer)


REASONS: dict[str, tuple[Any, str]] = {
    "shapes": (lambda v, x: 0.9 * v + (v.unsqueeze(2) + x.unsqueeze(1)).sum(2), r"several shapes: .*\[3, 12, 12\]"),
    "dtypes": (lambda v, x: (v.double() * 0.9).float() + x, r"a step computes in float32, float64"),
    "sum": (lambda v, x: v + x, "each call takes its own result of the step before"),
}


@pytest.mark.parametrize("name", REASONS)
def test_explain_names_the_cause(name: str) -> None:
    step, reason = REASONS[name]
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Any:
        v, mem, record = torch.zeros(3, 12), torch.zeros(3, 12), []
        for current in x:
            v = step(v, current)
            _, mem = lif(current, mem)
            record.append(mem * v)
        return torch.stack(record)

    assert re.search(reason, str(snnfast.explain(loop, currents())))


LETS_REQUIRE: dict[str, Any] = {
    "attribute": lambda v: (setattr(v, "requires_grad", True), v)[1],
    "method": lambda v: v.requires_grad_(),
}


def beginning_with_a_leaf(spelled: str, v_leak: Tensor) -> Any:
    """A neuron whose first state is let require a gradient, as those of Norse's cells; it returns that, too."""

    def loop(x: Tensor, shows: bool) -> tuple[Tensor, ...]:
        first = v = LETS_REQUIRE[spelled](v_leak.detach().clone())
        record = []
        for current in x:
            v = 0.9 * v + current
            v = v - (v > 1).float()
            record.append(v)
        found = torch.stack(record), *([first] * shows)
        assert all(t.requires_grad for t in found)
        return found

    return loop


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("spelled", LETS_REQUIRE)
def test_a_first_state_that_requires_a_gradient_is_merged(spelled: str, by: Any) -> None:
    loop = beginning_with_a_leaf(spelled, torch.tensor(0.25))
    compiled, x = by(loop), currents()
    for shows in (False, True):
        (graph,) = snnfast.explain(loop, x, shows).graphs
        assert any("one recurrence" in line for line in graph.merged)
        for needs in (False, True):
            found = []
            for f in (compiled, compiled, loop):  # a second form is recorded at its second call
                given = x.clone().requires_grad_(needs)
                record, *first = f(given, shows)
                record.square().sum().backward()
                found.append([record.detach(), *([given.grad] if needs else []), *[t.grad for t in first]])
                assert all(t.is_leaf and t.requires_grad for t in first)
            for ours in found[:2]:
                torch.testing.assert_close(ours, found[-1])


@pytest.mark.parametrize("by", WAYS)
def test_two_leaves_of_one_tensor_have_gradients_of_their_own(by: Any) -> None:
    def loop(x: Tensor) -> tuple[Tensor, ...]:
        leaves = [x[0].detach().requires_grad_() for _ in range(2)]
        v, record = leaves[0] + 2 * leaves[1], []
        for current in x:
            v = 0.9 * v + current
            v = v - (v > 1).float()
            record.append(v)
        return torch.stack(record), *leaves

    compiled, x = by(loop), currents()
    for _ in range(2):
        (ours, *found), (theirs, *wanted) = compiled(x), loop(x)
        torch.testing.assert_close(ours, theirs)
        ours.sum().backward()
        theirs.sum().backward()
        torch.testing.assert_close([t.grad for t in found], [t.grad for t in wanted])


def test_leaves_of_each_step_that_are_returned_stay_leaves() -> None:
    def loop(x: Tensor) -> tuple[Tensor, ...]:
        v, record, leaves = torch.zeros_like(x[0]), [], []
        for current in x:
            leaves.append(current.detach().mul(2).requires_grad_())
            v = 0.9 * v + leaves[-1]
            v = v - (v > 1).float()
            record.append(v)
        return torch.stack(record), *leaves

    for by in WAYS:
        compiled, x = by(loop), currents()
        for _ in range(2):
            with warnings.catch_warnings(action="ignore"):
                (ours, *found), (theirs, *wanted) = compiled(x), loop(x)
            assert all(t.is_leaf and t.requires_grad for t in found)
            ours.sum().backward()
            theirs.sum().backward()
            torch.testing.assert_close([t.grad for t in found], [t.grad for t in wanted])


@pytest.mark.parametrize("detached", [False, True])
def test_another_backend_keeps_what_requires_a_gradient(detached: bool) -> None:
    loop = beginning_with_a_leaf("method", torch.tensor(0.25))

    def asked(x: Tensor) -> Tensor:
        (record,) = loop(x, False)
        return record.detach() if detached else record

    compiled, x = by_torch_compile(asked, options={"inner": "aot_eager"}), currents()
    for _ in range(2):
        with warnings.catch_warnings(action="ignore"):
            assert_same(compiled, asked, x)


def test_a_tensor_that_is_let_require_no_gradient_any_more() -> None:
    def loop(x: Tensor) -> Tensor:
        v, record = torch.zeros_like(x[0]).requires_grad_().requires_grad_(False), []
        for current in x:
            v = 0.9 * v + current
            v = v - (v > 1).float()
            record.append(v)
        return torch.stack(record)

    with warnings.catch_warnings(action="ignore"):
        assert_same(snnfast.compile(loop), loop, currents())


# ---- what it says where nothing, or not everything, is merged


@pytest.mark.parametrize(("name", "arguments"), [("unsqueeze_", (0,)), ("t_", ())], ids=["unsqueeze_", "t_"])
def test_a_change_of_a_shape_in_place_is_named(name: str, arguments: tuple[int, ...]) -> None:
    lif = snnfast.Leaky(beta=0.9)

    def loop(x: Tensor) -> Tensor:
        mem, made = torch.zeros_like(x[0]), []
        for current in x:
            spk, mem = lif(current, mem)
            made.append(getattr(spk * 2, name)(*arguments))
        return torch.stack(made)

    x = torch.rand(4, 3, 5) * 2
    assert f"{name} changes what is known of a tensor" in str(snnfast.explain(loop, x))
    with warnings.catch_warnings(action="ignore"):
        assert_bits_equal(torch.compile(loop, backend="snnfast")(x), loop(x))


def test_layers_that_were_not_converted_are_named() -> None:
    snntorch = pytest.importorskip("snntorch")
    assert "snnfast.compile(net)" in refused(torch.compile(Net(snntorch.Leaky), backend="snnfast"), currents())


def test_a_graph_without_neurons_is_left_alone() -> None:
    with warnings.catch_warnings(action="error"):
        x = currents()
        assert_bits_equal(torch.compile(lambda x: x.relu() * 2, backend="snnfast")(x), x.relu() * 2)


def test_a_fault_in_the_pass_falls_back_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise KeyError("planted")

    monkeypatch.setattr(emitter.Emitter, "single", broken)
    net, x = Net(), currents()
    expected = copy.deepcopy(net)(x)
    compiled = snnfast.compile(net)
    with pytest.warns(UserWarning, match=r"(?s)fault of snnfast.*KeyError: 'planted'.*please report it"):
        found = compiled(x)
    assert_all_bits_equal(found, expected)


# ---- what nobody reads is not made


def asked_for(readout: Any) -> tuple[int, bool]:
    """States that the unroll of a loop records, as bits; and whether it sums the spikes instead of writing them."""
    lif, fc = snnfast.Leaky(beta=0.9), nn.Linear(12, 4)

    def loop(x: Tensor) -> Any:
        mem, spks, mems, total = lif.reset_mem(), [], [], torch.zeros(3, 4)
        for step in range(5):
            spk, mem = lif(fc(x[step]), mem)
            spks.append(spk)
            mems.append(mem)
            total = total + spk
        return readout(spks, mems, total)

    x, recorded = currents(), Recorded(loop, "a loop")
    found, _ = recorded(x)
    torch.testing.assert_close(found, loop(x))
    (plan,) = recorded.plans
    assert not isinstance(plan, str)
    (asked,) = [n.args[-2:] for n in plan.graph.graph.nodes if n.target is unroll_steps]
    return asked  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("readout", "record", "reduce"),
    [
        (lambda spks, mems, total: torch.stack(spks), 0, False),
        (lambda spks, mems, total: torch.stack(mems), 1, False),
        (lambda spks, mems, total: mems[-1], 0, False),
        (lambda spks, mems, total: total, 0, True),
        (lambda spks, mems, total: sum(spks), 0, True),
        (lambda spks, mems, total: torch.stack(spks).sum(0), 0, True),
        (lambda spks, mems, total: (total, spks[-1]), 0, False),
        (lambda spks, mems, total: (total, torch.stack(mems)), 1, True),
    ],
)
def test_what_nobody_reads_is_not_made(readout: Any, record: int, reduce: bool) -> None:
    assert asked_for(readout) == (record, reduce)


# ---- compiling again


def test_how_often_a_loop_is_compiled() -> None:
    net = Net()
    other, compiled = copy.deepcopy(net), by_torch_compile(net)

    def count(T: int, B: int, grad: bool = True) -> int:
        before, x = graphs(), currents(T, B)
        with torch.set_grad_enabled(grad):
            found, expected = compiled(x), other(x)
        assert_bits_equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
        return graphs() - before

    assert count(3, 8) == 1
    assert count(3, 8) == 0
    assert count(3, 5) == 1  # a second batch size: from now on any
    assert count(3, 6) == 0
    assert count(3, 1) <= 1  # torch.compile may have a graph of its own for a batch of one
    assert count(3, 16, grad=False) == 1
    assert count(3, 7, grad=False) == 0
    assert count(4, 8) == 1  # each number of steps
    assert count(3, 4) == 0


def test_a_product_of_two_inputs_is_repeated_at_any_batch_size(recwarn: pytest.WarningsRecorder) -> None:
    net = nn.Bilinear(12, 12, 12)

    def loop(x: Tensor) -> Tensor:
        mem, mems = torch.zeros_like(x[0]), []
        for x_t in x.unbind():
            mem = 0.5 * mem + net(x_t, x_t)
            mems.append(mem)
        return torch.stack(mems)

    compiled = by_torch_compile(loop)
    for B in (3, 5, 6):
        x = currents(B=B)
        torch.testing.assert_close(compiled(x), loop(x))
    assert not any("fault" in str(w.message) for w in recwarn)


# ---- what else users do with a network


def test_a_held_state_can_be_detached_in_place() -> None:
    net = Net()
    snnfast.compile(net)(currents())
    assert net.lif1.mem.requires_grad
    snnfast.Leaky.detach_hidden()
    assert not net.lif1.mem.requires_grad


@pytest.mark.thorough
def test_the_reference_backend_is_not_merged() -> None:
    net, x = Net(), currents()
    other = copy.deepcopy(net)
    with snnfast.use_backend("reference"):
        assert_same(snnfast.compile(net), other, x)
    assert_same(snnfast.compile(net), other, x)
