"""convert puts a model's snntorch.Leaky on the kernels without anyone noticing but the clock, and revert undoes it."""

import copy
import gc
import io
import itertools
import pickle
import weakref
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal, assert_close
from snntorch import surrogate as theirs
from snntorch.functional.quant import state_quant
from torch import Tensor, nn
from torch.nn.utils import parametrize

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate

LEARN = list(itertools.product((False, True), repeat=3))


@pytest.fixture(autouse=True)
def own_list_of_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch keeps every neuron for good: none of another test's here."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


class Named(snntorch.Leaky):
    """A subclass without a computation of its own."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.label = name

    def describe(self) -> str:
        return f"{self.label}: {self.mem.shape}"

    def init_leaky(self) -> Tensor:
        self.label += "!"
        return super().init_leaky()


class Own(snntorch.Leaky):
    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        return super().forward(2 * input_, mem)


class Fires(snntorch.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return super().fire(mem - 0.1)


class FiresLike(Fires):
    """Inherits a computation that is not snnTorch's."""


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(6, 10),
        snntorch.Leaky(torch.rand(10), init_hidden=True, learn_beta=True, spike_grad=theirs.fast_sigmoid(slope=5)),
        nn.Sequential(nn.Linear(10, 8), snntorch.Leaky(0.8, init_hidden=True, learn_threshold=True)),
        nn.Linear(8, 4),
        snntorch.Leaky(0.7, init_hidden=True, output=True, reset_mechanism="zero", reset_delay=False),
    )


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    spk, mem = zip(*(net(step) for step in x), strict=True)
    return torch.stack(spk), torch.stack(mem)


def reset(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[Tensor]:
    """A few steps of training with a loss on spikes and membranes."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        reset(net)
        spk, mem = run(net, torch.rand(7, 3, 6, generator=generator) * 2)
        loss = (spk.mean(0) - 0.3).square().sum() + (mem - 0.2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def leaky_layers(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, snntorch.Leaky)]


# ---- the same numbers


@pytest.mark.needs_extension
def test_a_converted_model_gives_the_same_numbers_one_step_at_a_time_and_unrolled() -> None:
    expected, net = network(), network()
    assert snn.convert(net).swapped == ("1", "2.1", "4")
    assert all(type(lif) is snn.Leaky for lif in leaky_layers(net))
    x = torch.rand(9, 3, 6) * 2
    for a, b in zip(run(net, x), run(expected, x), strict=True):
        assert_bits_equal(a, b)
    reset(net)
    reset(expected)
    lif, snntorchs = net[1], expected[1]
    with snnfast.use_backend("fused"):
        spk, mem = lif.unroll(x.repeat(1, 1, 2)[..., :10])
    for t, step in enumerate(x.repeat(1, 1, 2)[..., :10]):
        assert_bits_equal(spk[t], snntorchs(step))
        assert_bits_equal(mem[t], snntorchs.mem)


def test_an_optimizer_made_before_trains_on_with_the_losses_of_snntorch() -> None:
    expected, net = network(), network()
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (expected, net)]
    parameters = dict(net.named_parameters())
    losses = [train(expected, optimizers[0], 2), train(net, optimizers[1], 2)]
    snn.convert(net)
    for (name, p), (name_before, before) in zip(net.named_parameters(), parameters.items(), strict=True):
        assert name == name_before
        assert p is before
    old = [p.detach().clone() for p in net.parameters()]
    losses = [[*losses[0], *train(expected, optimizers[0], 6)], [*losses[1], *train(net, optimizers[1], 6)]]
    torch.testing.assert_close(torch.stack(losses[1]), torch.stack(losses[0]), rtol=1e-4, atol=1e-6)
    assert all(not torch.equal(a, b) for a, b in zip(old, net.parameters(), strict=True))
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        assert_close(a, b, 1e-4)


def test_converted_trained_and_reverted_snntorch_goes_on_with_the_same_numbers() -> None:
    expected, net = network(), network()
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-2) for n in (expected, net)]
    train(expected, optimizers[0], 3)
    snn.convert(net)
    train(net, optimizers[1], 3)
    assert snn.revert(net).swapped == ("1", "2.1", "4")
    assert all(type(lif) is snntorch.Leaky for lif in leaky_layers(net))
    x = torch.rand(4, 3, 6)
    for a, b in zip(run(net, x), run(expected, x), strict=True):  # from the held membranes
        assert_close(a, b, 1e-4)
    losses = train(net, optimizers[1], 3, seed=1), train(expected, optimizers[0], 3, seed=1)
    torch.testing.assert_close(torch.stack(losses[0]), torch.stack(losses[1]), rtol=1e-4, atol=1e-6)


# ---- where layers are


def test_layers_are_found_in_every_container_and_a_shared_one_once() -> None:
    shared = snntorch.Leaky(0.9)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.list = nn.ModuleList([snntorch.Leaky(0.9), nn.ModuleList([snntorch.Leaky(0.8)])])
            self.dict = nn.ModuleDict({"a": snntorch.Leaky(0.9), "b": nn.Sequential(shared)})
            self.first = shared
            self.again = shared

    net = Net()
    report = snn.convert(net)
    assert report.swapped == ("list.0", "list.1.0", "dict.a", "dict.b.0")
    assert not report.left
    assert net.first is net.again is net.dict["b"][0] is shared
    assert type(shared) is snn.Leaky
    assert snn.revert(net).swapped == report.swapped


def test_a_layer_used_twice_in_a_step_runs_as_snntorchs() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(2)
        lif = snntorch.Leaky(0.9, init_hidden=True)
        nets.append(nn.Sequential(nn.Linear(6, 6), lif, nn.Linear(6, 6), lif))
    snn.convert(nets[1])
    for step in torch.rand(6, 3, 6) * 3:
        assert_bits_equal(nets[1](step), nets[0](step))


def test_the_model_may_itself_be_a_layer() -> None:
    lif = snntorch.Leaky(0.9)
    report = snn.convert(lif)
    assert report.swapped == ("",)
    assert str(report) == "swapped 1: (the model)"
    assert type(lif) is snn.Leaky
    assert snn.revert(lif).swapped == ("",)
    assert type(lif) is snntorch.Leaky


def test_a_second_call_changes_nothing() -> None:
    net = network()
    snn.convert(net)
    run(net, torch.rand(2, 3, 6))
    before = [dict(vars(lif)) for lif in leaky_layers(net)]
    assert snn.convert(net) == snn.Report((), {}, {})
    assert [dict(vars(lif)) for lif in leaky_layers(net)] == before
    snn.revert(net)
    assert snn.revert(net) == snn.Report((), {}, {})


@pytest.mark.parametrize("function", [snn.convert, snn.revert])
@pytest.mark.parametrize("net", [None, 3, [nn.Linear(2, 2)], snntorch.Leaky], ids=str)
def test_something_that_is_not_a_module_is_a_type_error(function: Any, net: Any) -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got"):
        function(net)


def test_a_model_without_neurons_and_layers_of_snnfast_are_left_in_peace() -> None:
    ours = snn.Leaky(0.9)
    plain = snnfast.Leaky(0.9)
    assert snn.convert(nn.Sequential(nn.Linear(2, 2), ours, plain)) == snn.Report((), {}, {})
    assert type(ours) is snn.Leaky
    assert type(plain) is snnfast.Leaky


def test_a_model_in_data_parallel_is_converted_inside_it() -> None:
    wrapped, expected = nn.DataParallel(network()), network()
    assert snn.convert(wrapped).swapped == ("module.1", "module.2.1", "module.4")
    x = torch.rand(4, 3, 6) * 2
    for a, b in zip(run(wrapped, x), run(expected, x), strict=True):  # without a GPU, DataParallel calls the module
        assert_bits_equal(a, b)


def test_a_compiled_model_is_converted_before_and_after_its_first_call() -> None:
    x = torch.rand(3, 3, 6) * 2
    for first in (False, True):
        torch._dynamo.reset()
        net, expected = network()[:2], network()[:2]
        compiled = torch.compile(net, backend="eager")
        if first:
            assert_bits_equal(compiled(x[0]), expected(x[0]))
        assert snn.convert(compiled).swapped == ("_orig_mod.1",)
        for step in x:
            assert_bits_equal(compiled(step), expected(step))
        assert_bits_equal(net[1].mem, expected[1].mem)
    torch._dynamo.reset()


# ---- what is left


def test_layers_that_compute_something_else_are_left_and_reported() -> None:
    with_method, other_state, shadowed = snntorch.Leaky(0.9), snntorch.Leaky(0.9), snntorch.Leaky(0.9)
    with_method.fire = lambda mem: mem
    other_state.state_function = lambda input_: input_
    shadowed.state_function = snntorch.Leaky(0.5)._base_sub
    parametrized = snntorch.Leaky(0.9, learn_beta=True)
    parametrize.register_parametrization(parametrized, "beta", nn.Sigmoid())
    mixed = snntorch.Leaky(0.9, reset_delay=False)
    mixed.reset_mechanism = "zero"
    net = nn.ModuleDict({
        "own": Own(0.9), "fires": Fires(0.9), "inherits": FiresLike(0.9), "method": with_method, "state": other_state,
        "shadowed": shadowed, "parametrized": parametrized, "mixed": mixed, "delta": snntorch.DeltaLeaky(beta=0.9),
        "synaptic": snntorch.Synaptic(0.9, 0.8), "alpha": snntorch.Alpha(0.9, 0.8), "lapicque": snntorch.Lapicque(0.9),
        "rleaky": snntorch.RLeaky(0.9, all_to_all=False), "rsynaptic": snntorch.RSynaptic(0.9, 0.8, all_to_all=False),
        "slstm": snntorch.SLSTM(2, 3), "conv": snntorch.SConv2dLSTM(1, 1, 3), "parallel": snntorch.LeakyParallel(2, 3),
        "state_leaky": snntorch.StateLeaky(0.9, 3), "fine": snntorch.Leaky(0.9),
    })  # fmt: skip
    kinds = {name: type(module) for name, module in net.items()}
    report = snn.convert(net)
    assert report.swapped == ("fine",)
    assert report.left == {
        "own": "Own has its own forward",
        "fires": "Fires has its own fire",
        "inherits": "FiresLike has its own fire",
        "method": "its fire was replaced",
        "state": "its state_function was replaced",
        "shadowed": "its state_function is that of another layer",
        "parametrized": "it is parametrized: convert it before register_parametrization",
        "mixed": "it mixes the reset mechanisms 'subtract' and 'zero'",
        "delta": "DeltaLeaky has its own forward",
        **{
            name: f"snnfast has no kernel for {kinds[name].__name__}"
            for name in kinds
            if not issubclass(kinds[name], snntorch.Leaky)
        },
    }
    assert {name: type(m) for name, m in net.items()} == {**kinds, "fine": snn.Leaky}
    for line in ("swapped 1: fine", "left own: Own has its own forward", "left slstm: snnfast has no kernel for SLSTM"):
        assert line in str(report).splitlines()


def test_a_report_names_what_there_was_to_know() -> None:
    assert str(snn.Report((), {}, {})) == "swapped 0: none"
    assert str(snn.Report(("a", ""), {"": "why"}, {"a": "what"})) == (
        "swapped 2: a, (the model)\nleft (the model): why\nnote on a: what"
    )


def test_a_reset_mechanism_that_had_no_effect_in_snntorch_gets_none_and_a_note() -> None:
    layers = [snntorch.Leaky(0.9), snntorch.Leaky(0.9)]
    for lif in layers:
        lif.reset_mechanism = "zero"  # with a delayed reset snnTorch goes on subtracting
    report = snn.convert(layers[1])
    assert report.swapped == ("",)
    assert "stays 'subtract'" in report.notes[""]
    assert layers[1].reset_mechanism == "subtract"
    assert layers[1].reset_mechanism_val == 0
    mems: list[Any] = [None, None]
    for step in torch.rand(6, 2, 3) * 2:
        for i, lif in enumerate(layers):
            _, mems[i] = lif(step, mems[i])
        assert_bits_equal(mems[1], mems[0])


# ---- what a layer keeps


def test_everything_in_a_layer_stays() -> None:
    lif = snntorch.Leaky(
        torch.rand(5), 0.9, theirs.sigmoid(slope=3), init_hidden=True, learn_beta=True, reset_mechanism="none",
        output=True, graded_spikes_factor=1.5, reset_delay=False,
    ).double().eval()  # fmt: skip
    lif.extra = {"mine": 1}
    lif.threshold.requires_grad_()
    lif(torch.rand(2, 5, dtype=torch.float64))
    before, beta, threshold, mem = dict(vars(lif)), lif.beta, lif.threshold, lif.mem
    for function, cls in ((snn.convert, snn.Leaky), (snn.revert, snntorch.Leaky)):
        function(lif)
        assert type(lif) is cls
        assert lif.beta is beta
        assert isinstance(lif.beta, nn.Parameter)
        assert lif.threshold is threshold
        assert lif.threshold.requires_grad
        assert lif.mem is mem
        assert lif.mem.requires_grad
        assert lif.mem.dtype == lif.graded_spikes_factor.dtype == torch.float64
        assert not lif.training
        assert lif.reset_mechanism == "none"
        for name in ("init_hidden", "output", "inhibition", "reset_delay", "surrogate_disable", "state_quant", "extra"):
            assert vars(lif)[name] is before[name], name
        assert list(lif.state_dict()) == ["beta", "threshold", "graded_spikes_factor", "reset_mechanism_val"]


@pytest.mark.parametrize("options", [{}, {"inhibition": True}, {"state_quant": state_quant(num_bits=4)}], ids=str)
@pytest.mark.filterwarnings("ignore:Inhibition", "ignore:snnfast. a layer runs step by step")
def test_flags_go_on_meaning_the_same(options: dict[str, Any]) -> None:
    lif, expected = snntorch.Leaky(0.9, **options), snntorch.Leaky(0.9, **options)
    snn.convert(lif)
    mems: list[Any] = [None, None]
    for step in torch.rand(6, 2, 5) * 2:
        (a, mems[0]), (b, mems[1]) = lif(step, mems[0]), expected(step, mems[1])
        assert_bits_equal(a, b)
        assert_bits_equal(mems[0], mems[1])


@pytest.mark.parametrize("options", [{"reset_delay": 0}, {"inhibition": 1, "output": 1}], ids=str)
@pytest.mark.filterwarnings("ignore:Inhibition")
def test_flags_that_are_numbers_are_taken_for_truth_values_as_in_snntorch(options: dict[str, Any]) -> None:
    lif, expected = (snntorch.Leaky(0.9, init_hidden=1, **options) for _ in range(2))
    snn.convert(lif)
    for step in torch.rand(6, 2, 5) * 2:
        found, wanted = lif(step), expected(step)
        assert type(found) is type(wanted)
        assert_bits_equal(found[0], wanted[0])
        assert_bits_equal(lif.mem, expected.mem)


def test_what_is_left_of_the_last_step_goes() -> None:
    lif = snntorch.Leaky(0.9)
    lif(torch.rand(2, 3))
    assert hasattr(lif, "reset")
    snn.convert(lif)
    assert not hasattr(lif, "reset")


def test_a_converted_layer_can_be_parametrized_and_the_parametrization_removed() -> None:
    lif, expected = snntorch.Leaky(0.4, learn_beta=True), snntorch.Leaky(0.4, learn_beta=True)
    snn.convert(lif)
    x = torch.rand(4, 2, 3) * 2
    for layer in (lif, expected):
        parametrize.register_parametrization(layer, "beta", nn.Sigmoid())
    for step in x:
        assert_bits_equal(lif(step)[0], expected(step)[0])
    for layer in (lif, expected):
        parametrize.remove_parametrizations(layer, "beta")
    assert type(lif) is snn.Leaky
    for step in x:
        assert_bits_equal(lif(step)[0], expected(step)[0])


def test_gradients_flow_through_a_held_membrane_across_the_conversion() -> None:
    grads = []
    for convert in (False, True):
        lif = snntorch.Leaky(0.9, init_hidden=True, learn_beta=True)
        x = torch.linspace(0, 1.2, 6).reshape(2, 3).requires_grad_()
        lif(x)
        if convert:
            snn.convert(lif)
        (lif(0.5 * x) + lif.mem.square()).sum().backward()
        grads.append((x.grad, lif.beta.grad))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-6)


def test_hooks_of_every_kind_still_run() -> None:
    calls: list[str] = []

    def count(name: str) -> Any:
        return lambda *args, **kwargs: calls.append(name)

    lif = snntorch.Leaky(0.9, learn_beta=True)
    lif.register_forward_pre_hook(count("pre"))
    handle = lif.register_forward_hook(count("forward"))
    lif.register_full_backward_hook(count("backward"))
    lif.register_full_backward_pre_hook(count("backward_pre"))
    lif.register_state_dict_post_hook(count("state_dict"))
    lif.register_state_dict_pre_hook(count("state_dict_pre"))
    lif.register_load_state_dict_post_hook(count("load"))
    lif.register_load_state_dict_pre_hook(count("load_pre"))
    every = ["backward", "backward_pre", "forward", "load", "load_pre", "pre", "state_dict", "state_dict_pre"]
    for function in (snn.convert, snn.revert):
        function(lif)
        calls.clear()
        lif.reset_mem()
        spk, _ = lif(torch.rand(2, 3, requires_grad=True))
        spk.sum().backward()
        lif.load_state_dict(lif.state_dict())
        assert sorted(calls) == every
    snn.convert(lif)
    handle.remove()
    calls.clear()
    lif(torch.rand(2, 3))
    assert "forward" not in calls
    lif.reset_mem()  # a graph with a backward hook holds the layer, which holds the graph


@pytest.mark.parametrize("learn", LEARN, ids=lambda f: "".join("ny"[i] for i in f))
def test_state_dicts_load_strictly_both_ways_before_and_after(learn: tuple[bool, bool, bool]) -> None:
    flags = dict(zip(("learn_beta", "learn_threshold", "learn_graded_spikes_factor"), learn, strict=True))

    def make(value: float) -> nn.Sequential:
        beta = torch.full((4,), value)
        return nn.Sequential(snntorch.Leaky(beta, value, graded_spikes_factor=value, reset_mechanism="zero", **flags))

    plain, converted, reverted = make(0.5), make(0.6), make(0.7)
    snn.convert(nn.Sequential(converted, reverted))
    snn.revert(reverted)
    for net in (plain, converted, reverted):
        net(torch.rand(2, 4))
    for source, target in itertools.permutations((plain, converted, reverted), 2):
        assert list(source.state_dict()) == list(target.state_dict())
        target.load_state_dict(copy.deepcopy(source.state_dict()), strict=True)
        for name, t in source.state_dict().items():
            assert_bits_equal(target.state_dict()[name], t, name)
        source[0].beta.data.add_(0.01)


def test_a_reverted_layer_is_snntorchs_in_every_part() -> None:
    spike_grad = theirs.triangular(threshold=0.5)
    lif, fresh = snntorch.Leaky(0.9, spike_grad=spike_grad, reset_mechanism="zero"), snntorch.Leaky(0.9)
    snn.convert(lif)
    assert lif.spike_grad == surrogate.triangular(threshold=0.5)
    snn.revert(lif)
    assert type(lif) is snntorch.Leaky
    assert lif.spike_grad is spike_grad
    assert "mem" in lif._buffers
    assert "mem" in lif._non_persistent_buffers_set
    assert "mem" not in lif.state_dict()
    assert lif.state_function == lif._base_zero
    assert vars(lif).keys() == vars(fresh).keys()
    assert not any(other is lif for other in (*snn.Leaky.instances, *snnfast.Leaky.instances))
    lif(torch.ones(2, 3))
    assert lif.mem.any()
    snntorch.Leaky.reset_hidden()
    assert not lif.mem.any()


def test_a_surrogate_set_after_the_conversion_survives_the_return() -> None:
    lif = snntorch.Leaky(0.9)
    snn.convert(lif)
    lif.spike_grad = theirs.heaviside()
    mine = lif.spike_grad
    snn.revert(lif)
    assert lif.spike_grad is mine


OURS: dict[str, Any] = {
    "atan": surrogate.atan(alpha=1.5),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=4.0),
    "sigmoid": surrogate.sigmoid(slope=3.0),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "heaviside": surrogate.heaviside(),
    "triangular": surrogate.triangular(threshold=0.5),
    "spike_rate_escape": surrogate.spike_rate_escape(beta=1.3, slope=0.7),
    "SFS": surrogate.SFS(slope=2.0, B=0.2),
    "SSO": surrogate.SSO(mean=0.1, variance=0.3),
    "custom": surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs())),
    "LSO": surrogate.LSO(slope=0.3),
}


@pytest.mark.parametrize("name", OURS)
def test_a_layer_made_as_ours_reverts_to_snntorchs_surrogate(name: str) -> None:
    lif = snn.Leaky(0.9, spike_grad=OURS[name])
    snn.revert(lif)
    assert type(lif) is snntorch.Leaky
    module = getattr(lif.spike_grad, "__module__", "")
    assert (module == "snntorch.surrogate") == (name != "LSO")  # snnTorch 1.0.0's own raises
    z = torch.linspace(-1, 2, 9, requires_grad=True)
    torch.manual_seed(0)
    lif.spike_grad(z).sum().backward()
    expected = z.detach().clone().requires_grad_()
    torch.manual_seed(0)
    OURS[name](expected).sum().backward()
    assert_close(z.grad, expected.grad, 1e-5)


def test_a_disabled_surrogate_and_an_unknown_callable_come_back_as_they_were() -> None:
    def unknown(z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    for options in ({"surrogate_disable": True}, {"spike_grad": unknown}):
        lif = snntorch.Leaky(0.9, **options)
        before = lif.spike_grad
        snn.convert(lif)
        snn.revert(lif)
        assert lif.spike_grad is before
        lif = snn.Leaky(0.9, **options)
        snn.revert(lif)
        assert lif.spike_grad is before
    lif = snn.Leaky(0.9, surrogate_disable=True)
    snn.revert(lif)
    assert lif.surrogate_disable
    assert not lif(torch.ones(2, 3, requires_grad=True))[0].requires_grad


def test_a_surrogate_that_is_a_module_stays_a_module_of_the_layer() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(2.0))

        def forward(self, z: Tensor) -> Tensor:
            return (z > 0).to(z.dtype) + self.slope * (z - z)

    lif = snntorch.Leaky(0.9, spike_grad=Slope())
    module = lif.spike_grad
    for function in (snn.convert, snn.revert):
        function(lif)
        assert lif.spike_grad is module
        assert dict(lif.named_modules())["spike_grad"] is module
        assert "spike_grad.slope" in lif.state_dict()


# ---- subclasses


@pytest.mark.needs_extension
def test_a_subclass_without_its_own_step_is_swapped_and_stays_an_instance_of_its_class() -> None:
    lif, expected = Named("a", beta=0.9, init_hidden=True), Named("a", beta=0.9, init_hidden=True)
    net = nn.Sequential(lif)
    assert snn.convert(net).swapped == ("0",)
    for cls in (Named, snn.Leaky, snnfast.Leaky, snntorch.Leaky):
        assert isinstance(lif, cls)
    assert type(lif).__name__ == "Named"
    for step in torch.rand(5, 2, 3) * 2:
        assert_bits_equal(lif(step), expected(step))
    assert lif.describe() == expected.describe() == "a: torch.Size([2, 3])"
    assert not lif.init_leaky().any()
    assert lif.label == "a!"
    with snnfast.use_backend("fused"):
        assert lif.unroll(torch.rand(4, 2, 3))[0].shape == (4, 2, 3)
    other = Named("b", beta=0.8)
    snn.convert(other)
    assert type(other) is type(lif)
    assert snn.convert(net) == snn.Report((), {}, {})
    assert snn.revert(net).swapped == ("0",)
    assert type(lif) is Named


def test_a_converted_subclass_can_be_copied_pickled_and_saved() -> None:
    lif = Named("a", beta=torch.rand(3), init_hidden=True, learn_beta=True, spike_grad=theirs.SFS(slope=2.0))
    snn.convert(lif)
    lif(torch.rand(2, 3))
    file = io.BytesIO()
    torch.save(lif, file)
    file.seek(0)
    copies = (copy.deepcopy(lif), pickle.loads(pickle.dumps(lif)), torch.load(file, weights_only=False))
    x = torch.rand(6, 2, 3) * 2
    expected = [lif(step).detach() for step in x]
    for other in copies:
        assert type(other) is type(lif)
        assert other.label == "a"
        assert other.beta is not lif.beta
        for step, spk in zip(x, expected, strict=True):
            assert_bits_equal(other(step), spk)
        assert snn.revert(other).swapped == ("",)
        assert type(other) is Named


def test_a_subclass_of_our_own_layer_is_not_reverted() -> None:
    class Mine(snn.Leaky):
        pass

    net = nn.Sequential(Mine(0.9))
    assert snn.convert(net) == snn.Report((), {}, {})
    report = snn.revert(net)
    assert report.swapped == ()
    assert report.left == {"0": "Mine was made as a subclass of snnfast.snntorch.Leaky"}
    assert type(net[0]) is Mine


# ---- copies and files


def test_a_converted_model_is_saved_and_loaded_whole_after_a_forward_with_gradients() -> None:
    net = network()
    snn.convert(net)
    x = torch.rand(6, 3, 6) * 2
    run(net, x)
    assert net[1].mem.requires_grad
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded, copied = torch.load(file, weights_only=False), copy.deepcopy(net)
    for other in (loaded, copied):
        for lif, same in zip(leaky_layers(net), leaky_layers(other), strict=True):
            assert type(same) is snn.Leaky
            assert_bits_equal(same.mem, lif.mem)
            assert not same.mem.requires_grad
            assert same.mem is not lif.mem
    expected = run(net, x)
    for other in (loaded, copied):
        for a, b in zip(run(other, x), expected, strict=True):
            assert_bits_equal(a, b)
        assert snn.revert(other).swapped == ("1", "2.1", "4")
        assert other[1].spike_grad.__qualname__ == "fast_sigmoid.<locals>.inner"


def test_a_converted_and_a_reverted_model_are_freed() -> None:
    for back in (False, True):
        net = network()
        snn.convert(net)
        if back:
            snn.revert(net)
        run(net, torch.rand(2, 3, 6))
        entries = len(snntorch.SpikingNeuron.instances)
        assert entries >= 3
        died = [weakref.ref(lif) for lif in leaky_layers(net)]
        del net
        gc.collect()
        assert all(ref() is None for ref in died)
        snn.Leaky.reset_hidden()


def test_converting_back_and_forth_leaves_one_entry_in_the_list_of_snntorch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snntorch.Leaky(0.9), snntorch.Leaky(0.8))
    snn.convert(net)
    entries = len(snntorch.SpikingNeuron.instances)
    for _ in range(3):
        snn.revert(net)
        snn.convert(net)
    assert len(snntorch.SpikingNeuron.instances) == entries


def test_a_layer_without_its_membrane_among_the_buffers_is_left_as_it_is() -> None:
    layer = snntorch.Leaky(0.9)
    mem = layer._buffers.pop("mem")
    layer.mem = mem
    report = snn.convert(nn.Sequential(layer, snntorch.Leaky(0.8)))
    assert report.swapped == ("1",)
    assert report.left == {"0": "its mem is no buffer"}
    layer(torch.rand(2, 3))
