"""convert puts a model's snnTorch layers on the kernels without anyone noticing but the clock; revert undoes it."""

import copy
import gc
import pickle
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from callables import PerNeuron
from fresh import fresh
from helpers import SURROGATES, assert_all_bits_equal, assert_all_close, assert_bits_equal, assert_close
from snntorch import surrogate as theirs
from snntorch_checks import DECAYS, EVERY, NEURONS, NOT_LAPICQUE, STATES, copies_of, held, make, neurons, over_time
from torch import Tensor, nn
from torch.nn.utils import parametrize

import snnfast
import snnfast.snntorch as snn
from snnfast import surrogate


def doubled(self: Any, input_: Tensor, *states: Tensor) -> Any:
    return snntorch.Leaky.forward(self, 2 * input_, *states)


def fires_late(self: Any, mem: Tensor) -> Tensor:
    return snntorch.SpikingNeuron.fire(self, mem - 0.1)  # type: ignore[no-any-return]


def network(name: str = "Leaky") -> nn.Sequential:
    torch.manual_seed(5)
    beta, spike_grad = 0.5 * torch.rand(10), theirs.fast_sigmoid(slope=5)
    return nn.Sequential(
        nn.Linear(6, 10),
        make(snntorch, name, beta=beta, init_hidden=True, learn_beta=True, spike_grad=spike_grad),
        nn.Sequential(nn.Linear(10, 8), make(snntorch, name, beta=0.8, init_hidden=True, learn_threshold=True)),
        nn.Linear(8, 4),
        make(snntorch, name, beta=0.7, init_hidden=1, output=1, reset_mechanism="zero", reset_delay=0),
    )


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[Tensor]:
    """A few steps of training with a loss on spikes and membranes."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        snnfast.reset(net)
        spk, *_, mem = over_time(net, torch.rand(7, 3, 6, generator=generator) * 2)
        loss = (spk.mean(0) - 0.3).square().sum() + (mem - 0.2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


# ---- the same numbers


@EVERY
def test_numbers(name: str) -> None:
    expected, net = network(name), network(name)
    assert snn.convert(net).swapped == ("1", "2.1", "4")
    assert all(type(layer) is getattr(snn, name) for layer in neurons(net))
    x = torch.rand(9, 3, 6) * 2
    assert_all_bits_equal(over_time(net, x), over_time(expected, x))


@NOT_LAPICQUE
def test_training_goes_on(name: str) -> None:
    """With the optimizer made before, from the held states, after the conversion and after the return."""
    expected, net = network(name), network(name)
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (expected, net)]
    parameters = dict(net.named_parameters())
    for change in (None, snn.convert, snn.revert):
        if change is not None:
            assert change(net).swapped == ("1", "2.1", "4")
        library = snn if change is snn.convert else snntorch
        assert all(type(layer) is getattr(library, name) for layer in neurons(net))
        assert [(key, id(p)) for key, p in net.named_parameters()] == [(key, id(p)) for key, p in parameters.items()]
        x = torch.rand(4, 3, 6)
        assert_all_close(over_time(net, x), over_time(expected, x), relative=1e-4)
        old = [p.detach().clone() for p in net.parameters()]
        losses = train(expected, optimizers[0], 3), train(net, optimizers[1], 3)
        torch.testing.assert_close(torch.stack(losses[1]), torch.stack(losses[0]), rtol=1e-4, atol=1e-6)
        for before, a, b in zip(old, net.parameters(), expected.parameters(), strict=True):
            assert not torch.equal(a, before)
            assert_close(a, b, 1e-4)


# ---- where layers are


def test_containers_and_shared_layers() -> None:
    shared = snntorch.Leaky(0.9)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.list = nn.ModuleList([snntorch.Leaky(0.9), nn.ModuleList([snntorch.Synaptic(0.8, 0.7)])])
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


@EVERY
def test_a_layer_alone(name: str) -> None:
    lif = make(snntorch, name)
    report = snn.convert(lif)
    assert report.swapped == ("",)
    assert str(report) == "swapped 1: (the model)"
    assert str(snn.Report(("a",), {"": "why"}, {"a": "what"})) == "swapped 1: a\nleft (the model): why\nnote on a: what"
    assert type(lif) is getattr(snn, name)
    assert snn.revert(lif).swapped == ("",)
    assert type(lif) is getattr(snntorch, name)


@pytest.mark.parametrize("function", [snn.convert, snn.revert])
@pytest.mark.parametrize("net", [None, 3, [nn.Linear(2, 2)], snntorch.Leaky], ids=str)
def test_no_module(function: Any, net: Any) -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got"):
        function(net)


@EVERY
def test_our_layers_are_left_in_peace(name: str) -> None:
    ours, plain = make(snn, name), make(snnfast, name)
    assert snn.convert(nn.Sequential(nn.Linear(2, 2), ours, plain)) == snn.Report((), {}, {})
    assert type(ours) is getattr(snn, name)
    assert type(plain) is getattr(snnfast, name)
    theirs = make(snntorch, name)
    snn.convert(theirs)
    theirs(torch.rand(3, 6))
    before = dict(vars(theirs))
    assert snn.convert(theirs) == snn.Report((), {}, {})  # a second call changes nothing
    assert dict(vars(theirs)) == before
    snn.revert(theirs)
    assert snn.revert(theirs) == snn.Report((), {}, {})


def test_a_model_in_another_one() -> None:
    """In ``DataParallel``, and compiled, before and after its first call."""
    x = torch.rand(3, 3, 6) * 2
    for wrap, prefix, first in (
        (nn.DataParallel, "module", False),  # without a GPU, it calls the module
        (lambda net: torch.compile(net, backend="eager"), "_orig_mod", False),
        (lambda net: torch.compile(net, backend="eager"), "_orig_mod", True),
    ):
        torch._dynamo.reset()
        net, expected = network()[:2], network()[:2]
        wrapped = wrap(net)
        if first:
            assert_bits_equal(wrapped(x[0]), expected(x[0]))
        assert snn.convert(wrapped).swapped == (f"{prefix}.1",)
        for step in x:
            assert_bits_equal(wrapped(step), expected(step))
        assert_bits_equal(net[1].mem, expected[1].mem)
    torch._dynamo.reset()


# ---- what is left


NO_KERNEL: dict[str, Any] = {
    "slstm": lambda: snntorch.SLSTM(2, 3),
    "conv": lambda: snntorch.SConv2dLSTM(1, 1, 3),
    "parallel": lambda: snntorch.LeakyParallel(2, 3),
    "state_leaky": lambda: snntorch.StateLeaky(0.9, 3),
}


@NOT_LAPICQUE
def test_layers_that_are_left(name: str) -> None:
    theirs = getattr(snntorch, name)
    own, fires = type("Own", (theirs,), {"forward": doubled}), type("Fires", (theirs,), {"fire": fires_late})
    inherits = type("FiresLike", (fires,), {})  # a computation that is not snnTorch's
    resets = type("Resets", (theirs,), {"reset_dict": {**theirs.reset_dict, "subtract_beta": 3}})
    with_method, other_state, shadowed, no_buffer, parametrized, later, without = (
        make(snntorch, name, learn_beta=True) for _ in range(7)
    )
    later.reset_mechanism_val, later._reset_mechanism = torch.tensor(3), "subtract_beta"
    del without.state_function
    with_method.fire = lambda mem: mem
    other_state.state_function = lambda input_: input_
    shadowed.state_function = make(snntorch, name)._base_sub
    parametrize.register_parametrization(parametrized, "beta", nn.Sigmoid())
    mixed = make(snntorch, name, reset_delay=False)
    mixed.reset_mechanism = "zero"
    state = STATES[name][0]
    setattr(no_buffer, state, no_buffer._buffers.pop(state))
    net = nn.ModuleDict({
        **{key: cls(**DECAYS[name]) for key, cls in {
            "own": own, "fires": fires, "inherits": inherits, "resets": resets,
        }.items()},
        "later": later, "without": without,
        "method": with_method, "state": other_state, "shadowed": shadowed, "parametrized": parametrized,
        "mixed": mixed, "no_buffer": no_buffer, "delta": snntorch.DeltaLeaky(beta=0.9),
        **{key: made() for key, made in NO_KERNEL.items()},
        "fine": make(snntorch, name),
    })  # fmt: skip
    kinds = {key: type(module) for key, module in net.items()}
    report = snn.convert(net)
    assert report.swapped == ("fine",)
    assert report.left == {
        "own": "Own has its own forward",
        "fires": "Fires has its own fire",
        "inherits": "FiresLike has its own fire",
        "resets": "Resets has its own reset_dict",
        "later": "snnfast has no kernel for its reset mechanism 'subtract_beta'",
        "without": "it has no state_function, by which snntorch 1.0 resets",
        "method": "its fire was replaced",
        "state": "its state_function was replaced",
        "shadowed": "its state_function is that of another layer",
        "parametrized": "it is parametrized: convert it before register_parametrization",
        "mixed": "it mixes the reset mechanisms 'subtract' and 'zero'",
        "no_buffer": f"its {state} is no buffer",
        "delta": "DeltaLeaky has its own forward",
        **{key: f"snnfast has no kernel for {kinds[key].__name__}" for key in NO_KERNEL},
    }
    assert {key: type(m) for key, m in net.items()} == {**kinds, "fine": getattr(snn, name)}
    for line in ("swapped 1: fine", "left own: Own has its own forward", "left slstm: snnfast has no kernel for SLSTM"):
        assert line in str(report).splitlines()
    no_buffer(torch.rand(2, 3))


@NEURONS
def test_a_reset_mechanism_without_effect(name: str) -> None:
    layers = [make(snntorch, name, init_hidden=True, output=True) for _ in range(2)]
    for layer in layers:
        layer.reset_mechanism = "zero"  # with a delayed reset snnTorch goes on subtracting
    report = snn.convert(layers[1])
    assert report.swapped == ("",)
    assert "stays 'subtract'" in report.notes[""]
    assert layers[1].reset_mechanism == "subtract"
    assert layers[1].reset_mechanism_val == 0
    x = torch.rand(6, 2, 3) * 2
    assert_all_bits_equal(*(over_time(layer, x) for layer in layers))


# ---- lists and lives


@NEURONS
def test_models_are_freed(name: str) -> None:
    for back in (False, True):
        net = network(name)
        snn.convert(net)
        if back:
            snn.revert(net)
        over_time(net, torch.rand(2, 3, 6))
        entries = len(snntorch.SpikingNeuron.instances)
        assert entries >= 2
        died = [weakref.ref(lif) for lif in neurons(net)]
        del net
        gc.collect()
        assert all(ref() is None for ref in died)
        getattr(snn, name).reset_hidden()


def test_one_entry_in_the_list_of_snntorch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snntorch.Leaky(0.9), snntorch.Synaptic(0.8, 0.7))
    snn.convert(net)
    entries = len(snntorch.SpikingNeuron.instances)
    for _ in range(3):
        snn.revert(net)
        snn.convert(net)
    assert len(snntorch.SpikingNeuron.instances) == entries


# ---- what a layer keeps


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


@pytest.mark.parametrize("name", ["Leaky", "Synaptic"])
def test_everything_stays(name: str) -> None:
    lif = make(
        snntorch, name, beta=torch.rand(5), threshold=0.9, spike_grad=theirs.sigmoid(slope=3), init_hidden=True,
        learn_beta=True, reset_mechanism="none", output=True, reset_delay=False,
    ).double().eval()  # fmt: skip
    keys = list(lif.state_dict())
    lif.extra = {"mine": 1}
    lif.threshold.requires_grad_()
    lif(torch.rand(2, 5, dtype=torch.float64))
    before, beta, threshold, states = dict(vars(lif)), lif.beta, lif.threshold, held(lif)
    assert "reset" in before  # of the last step
    for function, library in ((snn.convert, snn), (snn.revert, snntorch)):
        function(lif)
        assert not hasattr(lif, "reset")
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


def test_parametrization_after_the_conversion() -> None:
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


@EVERY
def test_a_reverted_layer_is_snntorchs(name: str) -> None:
    spike_grad = theirs.triangular(threshold=0.5)
    lif, fresh = make(snntorch, name, spike_grad=spike_grad, reset_mechanism="zero"), make(snntorch, name)
    snn.convert(lif)
    assert lif.spike_grad == surrogate.triangular(threshold=0.5)
    lif(torch.rand(3, 10))
    state = copy.deepcopy(lif.state_dict())
    snn.revert(lif)
    assert list(lif.state_dict()) == list(state) == list(fresh.state_dict())
    for function in (snn.convert, snn.revert):  # checkpoints load strictly both ways
        fresh.load_state_dict(state, strict=True)
        for key, t in state.items():
            assert_bits_equal(fresh.state_dict()[key], t, key)
        function(fresh)
    assert type(lif) is getattr(snntorch, name)
    assert lif.spike_grad is spike_grad
    assert set(STATES[name]) <= lif._buffers.keys() & lif._non_persistent_buffers_set
    assert lif.state_function == lif._base_zero
    assert vars(lif).keys() == vars(fresh).keys()
    listed = (*getattr(snn, name).instances, *getattr(snnfast, name).instances)
    assert not any(other is lif for other in listed)
    for state in STATES[name]:
        setattr(lif, state, torch.ones(2, 3))
    getattr(snntorch, name).reset_hidden()
    assert not lif.mem.any()  # that of RSynaptic forgets another state


OURS: dict[str, Any] = {
    **SURROGATES,
    "SSO": surrogate.SSO(mean=0.1, variance=0.3),
    "custom": surrogate.custom_surrogate(lambda z, grad, spk: grad * torch.exp(-z.abs())),
}


@pytest.mark.parametrize("name", OURS)
def test_a_layer_made_as_ours_reverts(name: str) -> None:
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


class Converter(torch.fx.Tracer):
    """A converter that does not look into PyTorch's and snnTorch's layers, and goes by the names of their classes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith(("torch.nn", "snntorch")) and not isinstance(m, nn.Sequential)


def test_a_reverted_network_is_known_to_converters() -> None:
    net = nn.Sequential(nn.Linear(6, 4), snn.Leaky(0.75, threshold=0.5, init_hidden=True))
    with pytest.raises(TypeError, match="input_"):  # it looks into the layer
        Converter().trace(net)
    snn.revert(net)
    assert [node.target for node in Converter().trace(net).nodes if node.op == "call_module"] == ["0", "1"]
    found = net[1]
    assert (type(found).__name__, found.beta.item(), found.threshold.item()) == ("Leaky", 0.75, 0.5)
    assert found.reset_mechanism == "subtract"


def test_surrogates_come_back() -> None:
    def unknown(z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    lif = snntorch.Leaky(0.9)
    snn.convert(lif)
    lif.spike_grad = mine = theirs.heaviside()  # set after the conversion
    snn.revert(lif)
    assert lif.spike_grad is mine
    for options in ({"surrogate_disable": True}, {"spike_grad": unknown}):
        lif = snntorch.Leaky(0.9, **options)
        before = lif.spike_grad
        snn.convert(lif)
        snn.revert(lif)
        assert lif.spike_grad is before
        lif = snn.Leaky(0.9, **options)
        snn.revert(lif)
        assert lif.spike_grad is before


def test_a_surrogate_that_is_a_module() -> None:
    lif = snntorch.Leaky(0.9, spike_grad=PerNeuron())
    module = lif.spike_grad
    for function in (snn.convert, snn.revert):
        function(lif)
        assert lif.spike_grad is module
        assert dict(lif.named_modules())["spike_grad"] is module
        assert "spike_grad.slope" in lif.state_dict()


# ---- subclasses


@pytest.mark.needs_extension
def test_a_subclass_without_its_own_step() -> None:
    lif, expected = Named("a", beta=0.9, init_hidden=True), Named("a", beta=0.9, init_hidden=True)
    net = nn.Sequential(lif)
    assert snn.convert(net).swapped == ("0",)
    assert {Named, snn.Leaky, snnfast.Leaky, snntorch.Leaky} <= set(type(lif).__mro__)
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


@pytest.mark.parametrize("cls", [Named, snntorch.Leaky])
def test_copies_pickles_and_files(cls: Any) -> None:
    label = () if cls is snntorch.Leaky else ("a",)
    options: dict[str, Any] = {"init_hidden": True, "learn_beta": True, "spike_grad": theirs.SFS(slope=2.0)}
    lif = cls(*label, beta=torch.rand(3), **options)
    snn.convert(lif)
    lif(torch.rand(2, 3))
    copies, x = copies_of(lif), torch.rand(6, 2, 3) * 2
    expected = [lif(step).detach() for step in x]
    for other in copies:
        assert type(other) is type(lif)
        assert not label or other.label == "a"
        assert not any(a is b or a.requires_grad for a, b in zip(held(other), held(lif), strict=True))
        assert other.beta is not lif.beta
        for step, spk in zip(x, expected, strict=True):
            assert_bits_equal(other(step), spk)
        assert snn.revert(other).swapped == ("",)
        assert type(other) is cls
        assert other.spike_grad.__module__ == "snntorch.surrogate"


def test_a_surrogate_that_snntorch_does_not_have_stays_where_its_layer_is_reverted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lif = snn.Leaky(0.9, spike_grad=surrogate.SFS(slope=2.0))
    monkeypatch.delattr(theirs, "SFS")
    assert snn.revert(lif).swapped == ("",)
    assert type(lif) is snntorch.Leaky
    assert lif.spike_grad == surrogate.SFS(slope=2.0)


@NEURONS
def test_a_subclass_of_our_layer_is_not_reverted(name: str) -> None:
    mine = type("Mine", (getattr(snn, name),), {})
    net = nn.Sequential(mine(**DECAYS[name]))
    assert snn.convert(net) == snn.Report((), {}, {})
    report = snn.revert(net)
    assert report.swapped == ()
    assert report.left == {"0": f"Mine was made as a subclass of snnfast.snntorch.{name}"}
    assert type(net[0]) is mine


# ---- saved in one process, loaded in another, which has imported nothing of ours yet


NEURONS_OF_A_USER = """
import snntorch

class Labelled(snntorch.Leaky):
    label = "mine"
"""


def test_a_model_with_a_converted_subclass_is_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neurons.py").write_text(NEURONS_OF_A_USER)
    monkeypatch.syspath_prepend(tmp_path)
    from neurons import Labelled

    net = nn.Sequential(nn.Linear(3, 4), Labelled(0.9, init_hidden=True), snntorch.Leaky(0.8, init_hidden=True))
    report = snn.convert(net)
    x = torch.rand(2, 3) * 3
    torch.save(net, tmp_path / "net.pt")
    torch.save((x, net(x), net[2].mem), tmp_path / "expected.pt")
    (tmp_path / "report.pickle").write_bytes(pickle.dumps(report))
    code = """
import torch
net = torch.load("net.pt", weights_only=False)
x, spk, mem = torch.load("expected.pt")
assert torch.equal(net(x), spk) and torch.equal(net[2].mem, mem)
print(type(net[1]).__mro__[1].__name__, net[1].label, type(net[2]).__module__)
"""
    assert fresh(code, tmp_path) == "Labelled mine snnfast.snntorch"
    code = "import pickle; print(pickle.load(open('report.pickle', 'rb')))"
    assert fresh(code, tmp_path) == "swapped 2: 1, 2"
    del sys.modules["neurons"]
