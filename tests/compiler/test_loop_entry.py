"""``snnfast.compile(net)`` changes a network in place, which then lives in a program as before."""

import copy
import gc
import itertools
import pickle
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from callables import function
from helpers import assert_all_bits_equal, assert_bits_equal, pairs
from loop_nets import WAYS, Net, OneStep, WithSLSTM, assert_same, currents
from running import assert_alike
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
from benchmarks.collection.comparison import TOLERANCES
from snnfast._core.pytorch import current_recorder
from snnfast.spikingjelly import functional, neuron

pytestmark = pytest.mark.usefixtures("nothing_compiled")
THOROUGH = pytest.mark.thorough
NEAR = TOLERANCES["float32"]


def is_recorded(net: nn.Module) -> bool:
    """Whether a call of a network is."""
    seen = []
    handle = net.register_forward_pre_hook(lambda *_: seen.append(current_recorder() is not None))
    net(currents(T=3))
    handle.remove()
    return seen == [True]


# ---- the network stays what it is


def test_it_returns_the_network_itself_with_the_same_type_and_keys_and_there_is_a_way_back() -> None:
    net, x = Net(), currents()
    keys, other = list(net.state_dict()), copy.deepcopy(net)
    compiled = snnfast.compile(net)
    assert compiled is net
    assert type(compiled) is Net
    assert list(compiled.state_dict()) == keys
    assert is_recorded(net)
    snnfast.uncompile(net)
    assert not is_recorded(net)
    assert_same(net, other, x)


def test_a_checkpoint_is_that_of_the_network_in_both_directions(tmp_path: Path) -> None:
    plain, compiled, x = Net(), snnfast.compile(Net()), currents()
    compiled(x)
    torch.save(compiled.state_dict(), tmp_path / "compiled.pt")
    plain.load_state_dict(torch.load(tmp_path / "compiled.pt"))
    assert_same(compiled, plain, x)
    other = Net()
    compiled.load_state_dict(other.state_dict())
    assert_same(compiled, other, x)


@pytest.mark.parametrize(
    "how", ["deepcopy", *(pytest.param(how, marks=pytest.mark.thorough) for how in ("pickle", "save"))]
)
def test_a_copy_is_the_network_uncompiled_and_can_be_compiled(how: str, tmp_path: Path) -> None:
    net, x = snnfast.compile(Net()), currents()
    net(x)
    if how == "deepcopy":
        copied = copy.deepcopy(net)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(net))
    else:
        torch.save(net, tmp_path / "net.pt")
        copied = torch.load(tmp_path / "net.pt", weights_only=False)
    assert not is_recorded(copied)
    with torch.no_grad():
        for p in net.parameters():  # those of the copy are its own
            p.mul_(0.5)
    assert not torch.equal(copied(x)[1], net(x)[1])
    net.load_state_dict(copied.state_dict())
    assert_same(net, copied, x)
    assert is_recorded(snnfast.compile(copied))
    assert_same(copied, net, x)


def test_reset_of_snntorch_reaches_its_layers() -> None:
    snntorch = pytest.importorskip("snntorch")
    from snntorch import utils

    class Held(nn.Module):
        """A step: the loop is outside, as in snnTorch's tutorials 6 and 7."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(12, 5), snntorch.Leaky(beta=0.9, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.fc(x))

    plain = Held()
    net = snnfast.compile(copy.deepcopy(plain))
    for batch in torch.rand(2, 5, 3, 12) * 3:
        found = []
        for model in (plain, net):
            utils.reset(model)
            found.append(torch.stack([model(step) for step in batch]))
        assert_bits_equal(*found)
        found[1].sum().backward()


def test_hooks_that_were_registered_before_the_first_call_are_called() -> None:
    net, x = Net(), currents()
    expected = copy.deepcopy(net)(x)
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    net.register_forward_hook(lambda module, inputs, outputs: (outputs[0] + 1, outputs[1]))
    net.fc1.register_forward_hook(lambda module, inputs, output: output / 2)
    snnfast.compile(net)
    with torch.no_grad():
        net.fc1.bias.zero_()
    expected = net.forward(x * 2)
    spk, mem = net(x)
    assert_bits_equal(spk, expected[0] + 1)
    assert_bits_equal(mem, expected[1])


def test_it_is_called_with_names_and_as_a_part_of_a_network() -> None:
    net, x = Net(), currents()
    other = copy.deepcopy(net)
    snnfast.compile(net)
    assert_same(lambda x: net(x=x), other, x)
    assert_same(nn.Sequential(net), other, x)


@pytest.mark.thorough
@pytest.mark.parametrize("by", WAYS)
def test_a_compiled_network_in_a_compiled_network_or_function_is_a_part_of_its_graph(by: Any) -> None:
    inner, x = by(Net()), currents()
    other = copy.deepcopy(inner)
    for outer in (by(nn.Sequential(inner)), by(lambda x: inner(x))):
        assert_same(outer, other, x)
    (graph,) = snnfast.explain(lambda x: inner(x), x).graphs
    assert len([line for line in graph.merged if line.startswith("5 steps of leaky: one unroll")]) == 2
    inner.register_forward_hook(lambda module, inputs, outputs: (outputs[0] + 1, outputs[1]))
    assert_bits_equal(snnfast.compile(lambda x: inner(x))(x)[0], other(x)[0] + 1)
    assert_same(inner, lambda x: (other(x)[0] + 1, other(x)[1]), x)


# ---- compiled again


@pytest.mark.parametrize("how", ["function", "decorator", "method"])
def test_a_compiled_function_is_a_function(how: str) -> None:
    net, x = Net(), currents()
    other = copy.deepcopy(net)
    if how == "function":
        loop = snnfast.compile(lambda x: net(x))
    elif how == "decorator":

        @snnfast.compile
        def loop(x: Tensor) -> Any:
            """A loop."""
            return net(x)

        assert (loop.__name__, loop.__doc__) == ("loop", "A loop.")
    else:

        class Other(Net):
            @snnfast.compile
            def forward(self, x: Tensor) -> Any:
                return super().forward(x)

        loop = Other()
        loop.load_state_dict(net.state_dict())
    for _ in range(4):
        assert_same(loop, other, x)


def test_a_compiled_training_step_with_backward_and_optimizer_inside_is_the_loops() -> None:
    def trained(how: Any) -> list[Tensor]:
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 0.01)

        def step(x: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = (net(x)[1] ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        function = how(step)
        return [*(function(currents()) for _ in range(3)), *(p.detach() for p in net.parameters())]

    for found, wanted in zip(trained(snnfast.compile), trained(lambda step: step), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("by", WAYS)
def test_a_network_of_snntorch_learns_to_learn_by_second_derivatives_as_its_loop_does(by: Any) -> None:
    """MAML: the inner step is a part of autograd's graph."""
    snntorch = pytest.importorskip("snntorch")
    layer = partial(snntorch.Leaky, learn_beta=True, spike_grad=snntorch.surrogate.atan(alpha=2.0))
    torch.manual_seed(0)
    plain = Net(layer)
    net = by(copy.deepcopy(plain))
    tasks = torch.rand(3, 2, 5, 3, 12) * 2

    def trained(model: nn.Module) -> list[Tensor]:
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
        for few, many in tasks:
            weights = dict(model.named_parameters())
            for _ in range(2):
                loss = torch.func.functional_call(model, weights, few)[1].square().mean()
                made = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
                pairs = zip(weights.items(), made, strict=True)
                weights = {name: w if g is None else w - 0.5 * g for (name, w), g in pairs}
            optimizer.zero_grad()
            loss = torch.func.functional_call(model, weights, many)[1].square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(p.detach() for p in model.parameters())]

    torch.testing.assert_close(trained(net), trained(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("name", ["atan", "straight_through_estimator"])
def test_a_penalty_of_gradients_trains_as_in_the_loop(name: str, by: Any) -> None:
    """Also where the spikes go on to a linear layer as bits."""
    net, x = Net(spike_grad=getattr(snnfast.surrogate, name)()).double(), torch.rand(9, 40, 12).double() * 2
    compiled, gradients = by(copy.deepcopy(net)), []
    for model in (compiled, net):
        leaf = x.clone().requires_grad_()
        loss = model(leaf)[0].square().mean()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (loss + first.square().sum()).backward()
        gradients.append([leaf.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*gradients)


def test_a_result_inside_of_a_recorded_call_is_a_tensor_of_a_class_of_its_own() -> None:
    net, seen = Net(), []

    def loop(x: Tensor) -> Tensor:
        spk, _ = net(x)
        seen.append((isinstance(spk, Tensor), type(spk) is Tensor))
        return spk

    for _ in range(2):
        assert type(snnfast.compile(loop)(currents())) is Tensor
    assert set(seen) == {(True, False)}


# ---- a cache for each network


class Sized(nn.Module):
    """A network of any size; with a call of ``reset`` that splits its graph, or without."""

    def __init__(self, size: int, split: bool) -> None:
        super().__init__()
        self.fc, self.lif, self.split = nn.Linear(12, size), snnfast.Leaky(beta=0.9), split

    def forward(self, x: Tensor) -> Tensor:
        if self.split:
            torch._dynamo.graph_break()
        mem, spks = self.lif.reset_mem(), []
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
            spks.append(spk)
        return torch.stack(spks)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_a_network_that_dies_frees_its_parameters_and_what_was_compiled(split: bool) -> None:
    net = snnfast.compile(Sized(9, split))
    net(currents()).sum().backward()
    net(currents())
    died = [weakref.ref(o) for o in (net, net.fc.weight, net._compiled_call_impl)]
    del net
    gc.collect()
    assert [ref() for ref in died] == [None] * 3


# ---- a network that gains nothing runs as it is


class Quantised(Net):
    """An ``autograd.Function`` is called for each step of a neuron."""

    function: Any = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        for step in x:
            spk, mem1 = self.lif1(self.function.apply(self.fc1(step)), mem1)
            spk, mem2 = self.lif2(self.function.apply(self.fc2(spk)), mem2)
        return spk, mem2


class InStepModeM(nn.Module):
    """Its nodes run all steps, one layer after the other."""

    def __init__(self, blocks: int = 0) -> None:
        super().__init__()
        self.fc, self.lif, self.head = nn.Linear(12, 5), neuron.LIFNode(step_mode="m"), nn.Sequential(nn.Linear(5, 5))
        self.head.append(neuron.IFNode(step_mode="m"))
        self.blocks = nn.ModuleList([neuron.IFNode(step_mode="m") for _ in range(blocks)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        functional.reset_net(self)
        x = self.lif(self.fc(x))
        return x, self.head(x)


class InBlocks(InStepModeM):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spk, x = super().forward(x)
        for block in self.blocks:
            x = block(x)
        return spk, x


class AndALoop(InStepModeM):
    """A loop by hand beside them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spk, x = super().forward(x)
        return spk, self.traces(x)

    def traces(self, x: Tensor) -> Tensor:
        trace = torch.zeros_like(x[0])
        for step in x:
            trace = torch.tanh(0.9 * trace + step)
        return trace


AT_ONCE = "layers of neurons already run all steps in one call each: nothing to compile"
GAINS_NOTHING = {
    "step mode m": (InStepModeM, f"InStepModeM runs as it is, without a recorder: its 2 {AT_ONCE}"),
    "step mode m, in blocks": (lambda: InBlocks(2), f"InBlocks runs as it is, without a recorder: its 4 {AT_ONCE}"),
    "in sequence": (
        lambda: snnfast.MultiStep(nn.Linear(12, 5), snnfast.Leaky(0.9)),
        "MultiStep runs as it is, without a recorder: its layer of neurons already runs all steps in one call: no",
    ),
    "no kernel": (WithSLSTM, "WithSLSTM runs as it is, without a recorder: lstm: snnfast has no kernel for SLSTM"),
    "one step": (OneStep, "OneStep runs as it is, without a recorder: 1 step of leaky .*The loop may be outside"),
    "no neuron": (lambda: nn.Linear(12, 5), "Linear runs as it is, without a recorder: there is no step of a"),
}


@pytest.mark.parametrize(("make", "reason"), GAINS_NOTHING.values(), ids=GAINS_NOTHING)
def test_a_network_that_gains_nothing_runs_as_it_is_and_one_warning_says_why(make: Any, reason: str) -> None:
    net, x = make(), currents()
    other = copy.deepcopy(net)
    snnfast.compile(net)
    with pytest.warns(UserWarning, match=reason) as caught:
        [net(x) for _ in range(6)]
    assert len([w for w in caught if str(w.message).startswith("snnfast: ")]) == 1
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert not is_recorded(net)
        assert_all_bits_equal(net(x), other(x))
        again = snnfast.compile(make())
        for _ in range(4):
            again(x)  # the same reason of the same class


def test_nodes_that_run_all_steps_at_once_hide_no_loop_beside_them() -> None:
    net, x = AndALoop(), currents()
    plain = copy.deepcopy(net)
    with warnings.catch_warnings(action="ignore"):
        snnfast.compile(net)
        assert is_recorded(net)
        assert_all_bits_equal(net(x), plain(x))
    switched = InStepModeM()
    functional.set_step_mode(snnfast.compile(switched), "s")
    with pytest.warns(UserWarning, match="runs as it is, without a recorder: 1 step of ifnode"):
        [switched(x[0]) for _ in range(3)]


FUNCTIONS = {
    "elementwise": (lambda x: (x > 0.5).to(x.dtype), lambda g, x: g / (1 + (10 * x).abs()) ** 2),
    "clamped": (lambda x: x.clamp(-1, 1), lambda g, x: torch.where(x.abs() < 1, g, torch.zeros_like(g))),
    "over a step": (lambda x: x / x.abs().max(), lambda g, x: g / x.abs().max()),
    "over a row": (lambda x: x * 1, lambda g, x: g * x.softmax(-1)),
    "of the batch": (lambda x: x - x.mean(0), lambda g, x: g - g.mean(0)),
    "a mean": (lambda x: x * 2, lambda g, x: g * 2 / x.size(0)),
    "in order": (lambda x: x.cumsum(0), lambda g, x: g.flip(0).cumsum(0).flip(0)),
    "a mask": (lambda x: x * 1, lambda g, x: g.masked_fill(x < 0.1, 0)),
}


@pytest.mark.parametrize(("name", "by"), pairs(FUNCTIONS, WAYS))
def test_an_autograd_function_at_each_step_is_one_call_if_it_is_elementwise_else_a_class(name: str, by: Any) -> None:
    net, x = Quantised().double(), currents(T=9).double()  # some of the gradients are zero but for rounding
    net.function = function(*FUNCTIONS[name])
    same = copy.deepcopy(net)
    if by is snnfast.compile:
        (graph,) = snnfast.explain(net, x).graphs
        repeated = any("autograd_function" in line for line in graph.repeated)
        assert repeated != (name in ("elementwise", "clamped", "a mean", "a mask"))
    compiled = by(net)
    assert_alike(compiled, same, x, TOLERANCES["float64"])
    of_each_call = type(torch.ops.higher_order.autograd_function_apply)
    with mock.patch.object(of_each_call, "__call__", side_effect=AssertionError):
        assert_alike(compiled, same, x, TOLERANCES["float64"])


class Scaled(torch.autograd.Function):
    scale = 100.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad / (Scaled.scale * x.abs() + 1) ** 2


def test_a_number_of_a_surrogates_class_splits_no_loop_and_is_read_at_every_call() -> None:
    def loop(x: Tensor) -> Tensor:
        mem, made = torch.zeros_like(x[0]), []
        for current in x:
            spk = Scaled.apply(mem - 1)
            mem = 0.9 * mem + current - spk.detach()
            made.append(spk)
        return torch.stack(made)

    x = currents().requires_grad_()
    assert snnfast.explain(loop, x).graphs[0].merged
    compiled = snnfast.compile(loop)
    for Scaled.scale in (100.0, 10.0):
        found, wanted = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, loop))
        torch.testing.assert_close(found, wanted)


def test_a_first_call_that_fails_or_runs_under_the_reference_decides_nothing() -> None:
    net, x = snnfast.compile(Net()), currents()
    with pytest.raises(RuntimeError):
        net(torch.rand(5, 3, 7))
    with snnfast.use_backend("reference"):
        net(x)
    with torch.compiler.set_stance("force_eager"):
        net(x)
    assert is_recorded(net)


# ---- checkpoints, hooks and anomaly detection


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        mem, count = torch.zeros(x.shape[1], 5), 0
        for step in x:
            mem = 0.9 * mem + self.fc(step)
            spk = torch.sigmoid(4 * (mem - 1))
            mem, count = mem - spk, count + spk
        return count


class InOrder(ByHand):
    """Nothing of it is merged."""

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], 5)
        for step in x:
            mem = (0.9 * mem + self.fc(step)).cumsum(1)
        return mem


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=THOROUGH)])
@pytest.mark.parametrize("make", [ByHand, InOrder])
def test_the_first_calls_may_be_inside_of_a_checkpoint(make: Any, reentrant: bool) -> None:
    net = make()
    plain = copy.deepcopy(net)
    snnfast.compile(net)
    again = partial(checkpoint, net, use_reentrant=reentrant)
    again.named_parameters = net.named_parameters
    for T in (5, 5, 6):
        assert_alike(again, plain, currents(T).requires_grad_(), NEAR)


def hooks(pack: Any, unpack: Any) -> Any:
    return partial(torch.autograd.graph.saved_tensors_hooks, pack, unpack)


AROUND = {
    "anomaly": torch.autograd.detect_anomaly,
    "numpy": hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy),
    "dtype": hooks(lambda t: (t.double(), t.dtype), lambda saved: saved[0].to(saved[1])),
    "cpu": torch.autograd.graph.save_on_cpu,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "places",
    [(("backward",), ("forward", "backward")), pytest.param((("forward",),), marks=THOROUGH)],
    ids=["backward-both", "forward"],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ByHand, "anomaly"),
        (Net, "numpy"),
        *(pytest.param(*case, marks=THOROUGH) for case in itertools.product((Net, ByHand, InOrder, Quantised), AROUND)),
    ],
)
def test_anomaly_detection_and_hooks_of_saved_tensors_change_no_number(make: Any, name: str, places: Any) -> None:
    net = make()
    net.function = function(*FUNCTIONS["elementwise"])
    plain = copy.deepcopy(net)
    for place in places:
        snnfast.compile(net)
        for _ in range(2):  # the second one runs what was chosen
            around = dict.fromkeys(place, AROUND[name])
            assert_alike(net, plain, currents().requires_grad_(), NEAR, **around)


# ---- indexes that a tensor holds

LIF = snnfast.Leaky(beta=0.9)


def picked(x: Tensor, order: Tensor) -> Tensor:
    mem, rec = torch.zeros(3, 12), []
    for t in range(5):
        _, mem = LIF(x[order[t]], mem)
        rec.append(mem)
    return torch.stack(rec)


def iterated(x: Tensor, order: Tensor) -> Tensor:
    mem, rec = torch.zeros(3, 12), []
    for t in order:
        _, mem = LIF(x[t], mem)
        rec.append(mem)
    return torch.stack(rec)


def of_the_largest(x: Tensor, order: Tensor) -> Tensor:
    mem, rec = torch.zeros(3, 12), []
    for step in x:
        _, mem = LIF(step, mem)
        rec.append(mem[:, mem[0].argmax()])
    return torch.stack(rec)


def written(x: Tensor, order: Tensor) -> Tensor:
    mem, rec = torch.zeros(3, 12), torch.zeros(5, 3, 12)
    for t in range(5):
        _, mem = LIF(x[t], mem)
        rec[order[t]] = mem
    return rec


def added(x: Tensor, order: Tensor) -> Tensor:
    mem, rec = torch.zeros(3, 12), torch.zeros(5, 3, 12)
    for t in range(5):
        _, mem = LIF(x[t], mem)
        rec[order[t]] += mem
    return rec


def from_a_list(x: Tensor, order: Tensor) -> Tensor:
    mem, rec, factors = torch.zeros(3, 12), [], [1.0, 2.0, 3.0]
    for step in x:
        _, mem = LIF(step, mem)
        rec.append(mem * factors[order[0] % 3])
    return torch.stack(rec)


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize(
    "loop",
    [picked, written, *(pytest.param(f, marks=THOROUGH) for f in (iterated, of_the_largest, added, from_a_list))],
)
def test_an_index_that_a_tensor_holds_is_no_error(loop: Any, by: Any) -> None:
    x, order, compiled = currents(), torch.tensor([2, 0, 3, 1, 4]), by(loop)
    with warnings.catch_warnings(record=True, action="always") as caught:
        for _ in range(2):
            assert_bits_equal(compiled(x, order), loop(x, order))
        assert_bits_equal(compiled(x, order.flip(0)), loop(x, order.flip(0)))
        snnfast.explain(loop, x, order)
    assert not any("fault of snnfast" in str(w.message) for w in caught)
