"""What a layer keeps when it is converted and when it is reverted: all but its class; and what it is saved as."""

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import snntorch
import torch
from helpers import SURROGATES, assert_bits_equal, assert_close
from snntorch import surrogate as theirs
from snntorch.functional.quant import state_quant
from snntorch_checks import DECAYS, LEARNED, NEURONS, STATES, held, make, neurons, over_time, own_list_of_neurons  # noqa: F401
from torch import Tensor, nn
from torch.nn.utils import parametrize

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate


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


class NamedSynaptic(snntorch.Synaptic):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(alpha=0.8, **options)
        self.label = name


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(6, 10),
        snntorch.Leaky(torch.rand(10), init_hidden=True, learn_beta=True, spike_grad=theirs.fast_sigmoid(slope=5)),
        nn.Linear(10, 4),
        snntorch.Synaptic(0.8, 0.7, init_hidden=True, output=True, reset_mechanism="zero", reset_delay=False),
    )


# ---- what a layer keeps


@pytest.mark.parametrize("name", ["Leaky", "Synaptic"])
def test_everything_in_a_layer_stays(name: str) -> None:
    lif = make(
        snntorch, name, beta=torch.rand(5), threshold=0.9, spike_grad=theirs.sigmoid(slope=3), init_hidden=True,
        learn_beta=True, reset_mechanism="none", output=True, reset_delay=False,
    ).double().eval()  # fmt: skip
    keys = list(lif.state_dict())
    lif.extra = {"mine": 1}
    lif.threshold.requires_grad_()
    lif(torch.rand(2, 5, dtype=torch.float64))
    before, beta, threshold, states = dict(vars(lif)), lif.beta, lif.threshold, held(lif)
    for function, library in ((snn.convert, snn), (snn.revert, snntorch)):
        function(lif)
        assert type(lif) is getattr(library, name)
        assert lif.beta is beta
        assert isinstance(lif.beta, nn.Parameter)
        assert lif.threshold is threshold
        assert lif.threshold.requires_grad
        assert all(a is b for a, b in zip(held(lif), states, strict=True))
        assert lif.mem.requires_grad
        assert lif.mem.dtype == lif.graded_spikes_factor.dtype == torch.float64
        assert not lif.training
        assert lif.reset_mechanism == "none"
        for flag in ("init_hidden", "output", "inhibition", "reset_delay", "surrogate_disable", "state_quant", "extra"):
            assert vars(lif)[flag] is before[flag], flag
        assert sorted(lif.state_dict()) == sorted(keys)


@NEURONS
@pytest.mark.parametrize(
    "options", [{}, {"inhibition": True}, {"state_quant": state_quant(num_bits=4)}], ids=lambda o: "-".join(o)
)
@pytest.mark.filterwarnings("ignore:Inhibition", "ignore:snnfast. a layer runs step by step")
def test_flags_go_on_meaning_the_same(options: dict[str, Any], name: str) -> None:
    lif, expected = (make(snntorch, name, **options) for _ in range(2))
    snn.convert(lif)
    found, wanted = (), ()
    for step in torch.rand(6, 2, 5) * 2:
        (a, *found), (b, *wanted) = lif(step, *found), expected(step, *wanted)
        for actual, value in zip((a, *found), (b, *wanted), strict=True):
            assert_bits_equal(actual, value)


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


@NEURONS
def test_gradients_flow_through_held_states_across_the_conversion(name: str) -> None:
    grads = []
    for convert in (False, True):
        lif = make(snntorch, name, init_hidden=True, learn_beta=True)
        x = torch.linspace(0, 1.2, 6).reshape(2, 3).requires_grad_()
        lif(x)
        if convert:
            snn.convert(lif)
        (lif(0.5 * x) + lif.mem.square()).sum().backward()
        grads.append((x.grad, lif.beta.grad))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-6)


@NEURONS
def test_hooks_of_every_kind_still_run(name: str) -> None:
    calls: list[str] = []

    def count(hook: str) -> Any:
        return lambda *args, **kwargs: calls.append(hook)

    lif = make(snntorch, name, learn_beta=True)
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
        spk, *_ = lif(torch.rand(2, 3, requires_grad=True))
        spk.sum().backward()
        lif.load_state_dict(lif.state_dict())
        assert sorted(calls) == every
    snn.convert(lif)
    handle.remove()
    calls.clear()
    lif(torch.rand(2, 3))
    assert "forward" not in calls
    lif.reset_mem()  # a graph with a backward hook holds the layer, which holds the graph


@pytest.mark.parametrize("name", ["Leaky", "Synaptic"])
@pytest.mark.parametrize("learned", range(8), ids="{:03b}".format)
def test_state_dicts_load_strictly_both_ways_before_and_after(learned: int, name: str) -> None:
    flags = {f"learn_{parameter}": bool(learned >> i & 1) for i, parameter in enumerate(LEARNED[name])}

    def network(value: float) -> nn.Sequential:
        values = {**dict.fromkeys(LEARNED[name], value), "beta": torch.full((4,), value)}
        return nn.Sequential(make(snntorch, name, reset_mechanism="zero", **values, **flags))

    plain, converted, reverted = network(0.5), network(0.6), network(0.7)
    snn.convert(nn.Sequential(converted, reverted))
    snn.revert(reverted)
    for net in (plain, converted, reverted):
        net(torch.rand(2, 4))
    for source, target in itertools.permutations((plain, converted, reverted), 2):
        assert list(source.state_dict()) == list(target.state_dict())
        target.load_state_dict(copy.deepcopy(source.state_dict()), strict=True)
        for key, t in source.state_dict().items():
            assert_bits_equal(target.state_dict()[key], t, key)
        source[0].beta.data.add_(0.01)


@NEURONS
def test_a_reverted_layer_is_snntorchs_in_every_part(name: str) -> None:
    spike_grad = theirs.triangular(threshold=0.5)
    lif, fresh = make(snntorch, name, spike_grad=spike_grad, reset_mechanism="zero"), make(snntorch, name)
    snn.convert(lif)
    assert lif.spike_grad == surrogate.triangular(threshold=0.5)
    snn.revert(lif)
    assert type(lif) is getattr(snntorch, name)
    assert lif.spike_grad is spike_grad
    for state in STATES[name]:
        assert state in lif._buffers
        assert state in lif._non_persistent_buffers_set
        assert state not in lif.state_dict()
    assert lif.state_function == lif._base_zero
    assert vars(lif).keys() == vars(fresh).keys()
    listed = (*getattr(snn, name).instances, *getattr(snnfast, name).instances)
    assert not any(other is lif for other in listed)
    lif(torch.ones(2, 3))
    assert all(state.any() for state in held(lif))
    getattr(snntorch, name).reset_hidden()
    assert not any(state.any() for state in held(lif))


def test_a_surrogate_set_after_the_conversion_survives_the_return() -> None:
    lif = snntorch.Leaky(0.9)
    snn.convert(lif)
    lif.spike_grad = theirs.heaviside()
    mine = lif.spike_grad
    snn.revert(lif)
    assert lif.spike_grad is mine


OURS: dict[str, Any] = {
    **SURROGATES,
    "SSO": surrogate.SSO(mean=0.1, variance=0.3),
    "custom": surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs())),
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


@pytest.mark.parametrize("cls", [Named, NamedSynaptic])
def test_a_converted_subclass_can_be_copied_pickled_and_saved(cls: Any) -> None:
    lif = cls("a", beta=torch.rand(3), init_hidden=True, learn_beta=True, spike_grad=theirs.SFS(slope=2.0))
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
        assert type(other) is cls


@NEURONS
def test_a_subclass_of_our_own_layer_is_not_reverted(name: str) -> None:
    mine = type("Mine", (getattr(snn, name),), {})
    net = nn.Sequential(mine(**DECAYS[name]))
    assert snn.convert(net) == snn.Report((), {}, {})
    report = snn.revert(net)
    assert report.swapped == ()
    assert report.left == {"0": f"Mine was made as a subclass of snnfast.snntorch.{name}"}
    assert type(net[0]) is mine


# ---- copies and files


def test_a_converted_model_is_saved_and_loaded_whole_after_a_forward_with_gradients() -> None:
    net = network()
    snn.convert(net)
    x = torch.rand(6, 3, 6) * 2
    over_time(net, x)
    assert net[1].mem.requires_grad
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded, copied = torch.load(file, weights_only=False), copy.deepcopy(net)
    for other in (loaded, copied):
        for lif, same in zip(neurons(net), neurons(other), strict=True):
            assert type(same) is type(lif)
            for state, original in zip(held(same), held(lif), strict=True):
                assert_bits_equal(state, original)
                assert not state.requires_grad
                assert state is not original
    expected = over_time(net, x)
    for other in (loaded, copied):
        for a, b in zip(over_time(other, x), expected, strict=True):
            assert_bits_equal(a, b)
        assert snn.revert(other).swapped == ("1", "3")
        assert other[1].spike_grad.__qualname__ == "fast_sigmoid.<locals>.inner"


@NEURONS
def test_nothing_of_ours_is_left_in_a_reverted_layer(name: str) -> None:
    layer = make(snntorch, name)
    before = set(vars(layer))
    snn.convert(layer)
    layer(torch.rand(3, 10))
    snn.revert(layer)
    assert set(vars(layer)) == before
