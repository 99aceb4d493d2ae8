"""What ``torch.compile(..., backend="snnfast")`` promises around the merging.

What ``snnfast.compile`` makes of a network is in test_loop_entry.py; programs are in test_loop_programs.py.
"""

import copy
import re
from typing import Any

import pytest
import torch
from helpers import assert_bits_equal
from loop_nets import Feedback, Net, currents
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast._graph_ops import unroll_steps
from snnfast._loop.backend import merge

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def assert_same(compiled: Any, net: Any, x: Tensor) -> None:
    for a, b in zip(compiled(x), net(x), strict=True):
        assert_bits_equal(a, b)


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


def test_compile_takes_a_function() -> None:
    net = Net()
    compiled = snnfast.compile(lambda x: net(x)[1].sum())
    assert compiled(currents()).shape == ()


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
    compiled = snnfast.compile(Net(), mode="reduce-overhead")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="mode: 'reduce-overhead' is one of Inductor's"):
        compiled(currents())


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_the_new_graph_can_be_given_to_another_backend(inner: str) -> None:
    net = Net()
    assert_same(torch.compile(net, backend="snnfast", options={"inner": inner}), copy.deepcopy(net), currents())


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="options: expected 'inner' at most, got 'outer'"):
        torch.compile(Net(), backend="snnfast", options={"outer": "inductor"})(currents())


# ---- explain


def test_explain_tells_what_is_merged() -> None:
    net = Net()
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
    assert "merged    5 x linear" in str(explanation)
    assert net.lif1.mem.shape == (0,)
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name])


def test_explain_tells_what_is_repeated_with_its_line() -> None:
    (graph,) = snnfast.explain(Feedback(), currents()).graphs
    assert "5 x linear" in graph.merged
    (layer,) = [line for line in graph.repeated if "leaky" in line]
    assert re.search(r"5 steps of leaky \(.*loop_nets.py:\d+: spk, mem = self.lif\(.*\): its input at a step", layer)


def test_explain_does_not_convert_the_network_itself() -> None:
    snntorch = pytest.importorskip("snntorch")
    net = Net(snntorch.Leaky)
    assert "steps of leaky" in str(snnfast.explain(net, currents()))
    assert type(net.lif1) is snntorch.Leaky


# ---- what nobody reads is not made


def asked_for(readout: Any) -> tuple[int, bool]:
    """States that the unroll of a loop records, as bits; and whether it sums the spikes instead of writing them."""
    lif, fc, seen = snnfast.Leaky(beta=0.9), nn.Linear(12, 4), []

    def loop(x: Tensor) -> Any:
        mem, spks, mems, total = lif.reset_mem(), [], [], torch.zeros(3, 4)
        for step in range(5):
            spk, mem = lif(fc(x[step]), mem)
            spks.append(spk)
            mems.append(mem)
            total = total + spk
        return readout(spks, mems, total)

    def backend(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        merged, _ = merge(gm)
        seen.extend(n.args[-2:] for n in merged.graph.nodes if n.target is unroll_steps)
        return merged.forward

    x = currents()
    found, expected = torch.compile(loop, backend=backend)(x), loop(x)
    torch.testing.assert_close(found, expected)
    (asked,) = seen
    return asked


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


def count(function: Any, *args: Any) -> int:
    before = counters["stats"]["unique_graphs"]
    function(*args)
    return int(counters["stats"]["unique_graphs"] - before)


def test_how_often_a_loop_is_compiled() -> None:
    compiled = snnfast.compile(Net())

    def evaluate(x: Tensor) -> None:
        with torch.no_grad():
            compiled(x)

    assert count(compiled, currents(B=8)) == 1
    assert count(compiled, currents(B=8)) == 0
    assert count(compiled, currents(B=5)) == 1  # a second batch size: from now on any
    assert count(compiled, currents(B=6)) == 0
    assert count(evaluate, currents(B=16)) == 1
    assert count(evaluate, currents(B=7)) == 0
    assert count(compiled, currents(B=8)) == 0
    assert count(compiled, currents(T=6, B=8)) == 1  # each number of steps
    assert count(compiled, currents(T=7, B=8)) == 1
    assert count(compiled, currents(B=4)) == 0


def test_any_batch_size_is_right() -> None:
    net = Net()
    other, compiled = copy.deepcopy(net), snnfast.compile(net)
    for B in (8, 3, 5, 1, 2):
        (spk, mem), (expected_spk, expected_mem) = compiled(x := currents(B=B)), other(x)
        assert_bits_equal(spk, expected_spk)
        torch.testing.assert_close(mem, expected_mem)


# ---- what else users do with a network


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
def test_autocast(inside: bool) -> None:
    net, x = Net(), currents()
    other = copy.deepcopy(net)

    def cast(net: Any, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    compiled = snnfast.compile(lambda x: cast(net, x)) if inside else lambda x: cast(inner, x)
    inner = snnfast.compile(net)
    found, expected = compiled(x), cast(other, x)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert_bits_equal(a, b)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32]


def test_no_grad_inside() -> None:
    net = Net()

    def evaluate(x: Tensor) -> Any:
        with torch.no_grad():
            return net(x)

    assert not any(t.requires_grad for t in snnfast.compile(evaluate)(currents()))


def test_activation_checkpointing_around_it() -> None:
    net, x = Net(), currents()
    other, compiled = copy.deepcopy(net), snnfast.compile(net)
    checkpoint(compiled, x, use_reentrant=False)[1].sum().backward()
    other(x)[1].sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_held_state_can_be_detached_in_place() -> None:
    net = Net()
    snnfast.compile(net)(currents())
    assert net.lif1.mem.requires_grad
    snnfast.Leaky.detach_hidden()
    assert not net.lif1.mem.requires_grad


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
def test_a_hook_of_later_is_seen_where_hooks_are_guarded() -> None:
    net, x = Net(), currents()
    other = copy.deepcopy(net)
    snnfast.compile(net)
    assert_same(net, other, x)

    def halve(module: nn.Module, given: Any, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return found[0] * 0.5, found[1]

    hooks = [n.lif1.register_forward_hook(halve) for n in (net, other)]
    assert_same(net, other, x)
    for hook in hooks:
        hook.remove()
    assert_same(net, other, x)


def test_hidden_spikes_that_are_returned_have_no_gradient_and_those_of_multistep_have() -> None:
    net, x = Net(), currents()

    @snnfast.compile
    def loop(x: Tensor) -> tuple[list[Tensor], Tensor]:
        mem1, mem2, hidden = net.lif1.reset_mem(), net.lif2.reset_mem(), []
        for step in range(x.size(0)):
            spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
            _, mem2 = net.lif2(net.fc2(spk1), mem2)
            hidden.append(spk1)
        return hidden, mem2

    hidden, mem = loop(x)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(mem.sum(), hidden[0])
    over_time = snnfast.MultiStep(net.fc1, net.lif1, net.fc2, net.lif2)
    _, mem, spikes = over_time(x, return_spikes=True, record_mem=False)
    (gradient,) = torch.autograd.grad(mem.sum(), spikes[0])
    assert gradient.any()


def test_the_reference_backend_is_not_merged() -> None:
    net, x = Net(), currents()
    other = copy.deepcopy(net)
    with snnfast.use_backend("reference"):
        assert_same(snnfast.compile(net), other, x)
    assert_same(snnfast.compile(net), other, x)


def test_dropout_draws_a_mask_for_each_step_of_a_constant_input() -> None:
    lif = snnfast.Leaky(beta=0.0, reset_mechanism="none", threshold=0.5)

    def loop(x: Tensor) -> Tensor:
        mem, rec = lif.reset_mem(), []
        for _ in range(20):
            spk, mem = lif(nn.functional.dropout(x, 0.5), mem)
            rec.append(spk)
        return torch.stack(rec)

    spk = snnfast.compile(loop)(torch.ones(4, 50))
    assert "20 x dropout" in str(snnfast.explain(loop, torch.ones(4, 50)))
    assert len(torch.unique(spk.flatten(1), dim=0)) == 20
    assert 0.4 < spk.mean().item() < 0.6


# ---- parts


def test_parts_that_are_first_read_without_gradients_keep_theirs() -> None:
    lif, fc = snnfast.Leaky(beta=0.9), nn.Linear(12, 12)

    def loop(x: Tensor) -> Tensor:
        mem, rec, total = lif.reset_mem(), [], torch.zeros(3, 12)
        for step in x:
            _, mem = lif(fc(step), mem)
            rec.append(mem)
        for mem in rec:
            with torch.no_grad():
                half = mem * 0.5
            total = total * 0.9 + mem * half
        return total

    x = currents().requires_grad_()
    gradients = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (loop, snnfast.compile(loop))]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-3)


def test_what_is_copied_before_it_is_changed_keeps_its_numbers() -> None:
    lif, fc = snnfast.Leaky(beta=0.9), nn.Linear(12, 12)

    def loop(x: Tensor) -> tuple[Tensor, Tensor]:
        mem, rec, total = lif.reset_mem(), torch.zeros(5, 3, 12), torch.zeros(3, 12)
        for step in range(5):
            spk, mem = lif(fc(x[step]), mem)
            rec[step] = spk
            spk.mul_(0.5)
            total = total + spk
        return rec, total

    assert_same(snnfast.compile(loop), loop, currents())
