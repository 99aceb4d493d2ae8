"""convert puts a model's snnTorch layers on the kernels without anyone noticing but the clock; revert undoes it."""

import gc
import weakref
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal, assert_close
from snntorch import surrogate as theirs
from snntorch_checks import DECAYS, NEURONS, NOT_LAPICQUE, STATES, held, make, neurons, over_time, own_list_of_neurons  # noqa: F401
from torch import Tensor, nn
from torch.nn.utils import parametrize

import snnfast
import snnfast.snntorch as snn


def doubled(self: Any, input_: Tensor, *states: Tensor) -> Any:
    return snntorch.Leaky.forward(self, 2 * input_, *states)


def fires_late(self: Any, mem: Tensor) -> Tensor:
    return snntorch.SpikingNeuron.fire(self, mem - 0.1)  # type: ignore[no-any-return]


def network(name: str = "Leaky") -> nn.Sequential:
    torch.manual_seed(5)
    beta, spike_grad = torch.rand(10), theirs.fast_sigmoid(slope=5)
    return nn.Sequential(
        nn.Linear(6, 10),
        make(snntorch, name, beta=beta, init_hidden=True, learn_beta=True, spike_grad=spike_grad),
        nn.Sequential(nn.Linear(10, 8), make(snntorch, name, beta=0.8, init_hidden=True, learn_threshold=True)),
        nn.Linear(8, 4),
        make(snntorch, name, beta=0.7, init_hidden=True, output=True, reset_mechanism="zero", reset_delay=False),
    )


def reset(net: nn.Module) -> None:
    for layer in neurons(net):
        layer.reset_mem()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[Tensor]:
    """A few steps of training with a loss on spikes and membranes."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        reset(net)
        spk, *_, mem = over_time(net, torch.rand(7, 3, 6, generator=generator) * 2)
        loss = (spk.mean(0) - 0.3).square().sum() + (mem - 0.2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


# ---- the same numbers


@NEURONS
@pytest.mark.needs_extension
def test_a_converted_model_gives_the_same_numbers_one_step_at_a_time_and_unrolled(name: str) -> None:
    expected, net = network(name), network(name)
    assert snn.convert(net).swapped == ("1", "2.1", "4")
    assert all(type(layer) is getattr(snn, name) for layer in neurons(net))
    x = torch.rand(9, 3, 6) * 2
    for a, b in zip(over_time(net, x), over_time(expected, x), strict=True):
        assert_bits_equal(a, b)
    reset(net)
    reset(expected)
    layer, snntorchs = net[1], expected[1]
    x = x.repeat(1, 1, 2)[..., :10]
    with snnfast.use_backend("fused"):
        spk, *records = layer.unroll(x)
    for t, step in enumerate(x):
        assert_bits_equal(spk[t], snntorchs(step))
        for record, state in zip(records, held(snntorchs), strict=True):
            assert_bits_equal(record[t], state)


@NOT_LAPICQUE
def test_an_optimizer_made_before_trains_on_with_the_losses_of_snntorch(name: str) -> None:
    expected, net = network(name), network(name)
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (expected, net)]
    parameters = dict(net.named_parameters())
    losses = [train(expected, optimizers[0], 2), train(net, optimizers[1], 2)]
    snn.convert(net)
    for (key, p), (before_key, before) in zip(net.named_parameters(), parameters.items(), strict=True):
        assert key == before_key
        assert p is before
    old = [p.detach().clone() for p in net.parameters()]
    losses = [[*losses[0], *train(expected, optimizers[0], 6)], [*losses[1], *train(net, optimizers[1], 6)]]
    torch.testing.assert_close(torch.stack(losses[1]), torch.stack(losses[0]), rtol=1e-4, atol=1e-6)
    assert all(not torch.equal(a, b) for a, b in zip(old, net.parameters(), strict=True))
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        assert_close(a, b, 1e-4)


@NOT_LAPICQUE
def test_converted_trained_and_reverted_snntorch_goes_on_with_the_same_numbers(name: str) -> None:
    expected, net = network(name), network(name)
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-2) for n in (expected, net)]
    train(expected, optimizers[0], 3)
    snn.convert(net)
    train(net, optimizers[1], 3)
    assert snn.revert(net).swapped == ("1", "2.1", "4")
    assert all(type(layer) is getattr(snntorch, name) for layer in neurons(net))
    x = torch.rand(4, 3, 6)
    for a, b in zip(over_time(net, x), over_time(expected, x), strict=True):  # from the held states
        assert_close(a, b, 1e-4)
    losses = train(net, optimizers[1], 3, seed=1), train(expected, optimizers[0], 3, seed=1)
    torch.testing.assert_close(torch.stack(losses[0]), torch.stack(losses[1]), rtol=1e-4, atol=1e-6)


# ---- where layers are


def test_layers_are_found_in_every_container_and_a_shared_one_once() -> None:
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


def test_a_layer_used_twice_in_a_step_runs_as_snntorchs() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(2)
        lif = snntorch.Leaky(0.9, init_hidden=True)
        nets.append(nn.Sequential(nn.Linear(6, 6), lif, nn.Linear(6, 6), lif))
    snn.convert(nets[1])
    for step in torch.rand(6, 3, 6) * 3:
        assert_bits_equal(nets[1](step), nets[0](step))


@NEURONS
def test_the_model_may_itself_be_a_layer(name: str) -> None:
    lif = make(snntorch, name)
    report = snn.convert(lif)
    assert report.swapped == ("",)
    assert str(report) == "swapped 1: (the model)"
    assert type(lif) is getattr(snn, name)
    assert snn.revert(lif).swapped == ("",)
    assert type(lif) is getattr(snntorch, name)


@NEURONS
def test_a_second_call_changes_nothing(name: str) -> None:
    net = network(name)
    snn.convert(net)
    over_time(net, torch.rand(2, 3, 6))
    before = [dict(vars(lif)) for lif in neurons(net)]
    assert snn.convert(net) == snn.Report((), {}, {})
    assert [dict(vars(lif)) for lif in neurons(net)] == before
    snn.revert(net)
    assert snn.revert(net) == snn.Report((), {}, {})


@pytest.mark.parametrize("function", [snn.convert, snn.revert])
@pytest.mark.parametrize("net", [None, 3, [nn.Linear(2, 2)], snntorch.Leaky], ids=str)
def test_something_that_is_not_a_module_is_a_type_error(function: Any, net: Any) -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got"):
        function(net)


@NEURONS
def test_a_model_without_neurons_and_layers_of_snnfast_are_left_in_peace(name: str) -> None:
    ours, plain = make(snn, name), make(snnfast, name)
    assert snn.convert(nn.Sequential(nn.Linear(2, 2), ours, plain)) == snn.Report((), {}, {})
    assert type(ours) is getattr(snn, name)
    assert type(plain) is getattr(snnfast, name)


def test_a_model_in_data_parallel_is_converted_inside_it() -> None:
    wrapped, expected = nn.DataParallel(network()), network()
    assert snn.convert(wrapped).swapped == ("module.1", "module.2.1", "module.4")
    x = torch.rand(4, 3, 6) * 2
    for a, b in zip(
        over_time(wrapped, x), over_time(expected, x), strict=True
    ):  # without a GPU, DataParallel calls the module
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


NO_KERNEL: dict[str, Any] = {
    "slstm": lambda: snntorch.SLSTM(2, 3),
    "conv": lambda: snntorch.SConv2dLSTM(1, 1, 3),
    "parallel": lambda: snntorch.LeakyParallel(2, 3),
    "state_leaky": lambda: snntorch.StateLeaky(0.9, 3),
}


@NOT_LAPICQUE
def test_layers_that_compute_something_else_are_left_and_reported(name: str) -> None:
    theirs = getattr(snntorch, name)
    own, fires = type("Own", (theirs,), {"forward": doubled}), type("Fires", (theirs,), {"fire": fires_late})
    inherits = type("FiresLike", (fires,), {})  # a computation that is not snnTorch's
    with_method, other_state, shadowed, no_buffer, parametrized = (
        make(snntorch, name, learn_beta=True) for _ in range(5)
    )
    with_method.fire = lambda mem: mem
    other_state.state_function = lambda input_: input_
    shadowed.state_function = make(snntorch, name)._base_sub
    parametrize.register_parametrization(parametrized, "beta", nn.Sigmoid())
    mixed = make(snntorch, name, reset_delay=False)
    mixed.reset_mechanism = "zero"
    state = STATES[name][0]
    setattr(no_buffer, state, no_buffer._buffers.pop(state))
    net = nn.ModuleDict({
        **{key: cls(**DECAYS[name]) for key, cls in {"own": own, "fires": fires, "inherits": inherits}.items()},
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


def test_a_report_names_what_there_was_to_know() -> None:
    assert str(snn.Report((), {}, {})) == "swapped 0: none"
    assert str(snn.Report(("a", ""), {"": "why"}, {"a": "what"})) == (
        "swapped 2: a, (the model)\nleft (the model): why\nnote on a: what"
    )


@NEURONS
def test_a_reset_mechanism_that_had_no_effect_in_snntorch_gets_none_and_a_note(name: str) -> None:
    layers = [make(snntorch, name, init_hidden=True, output=True) for _ in range(2)]
    for layer in layers:
        layer.reset_mechanism = "zero"  # with a delayed reset snnTorch goes on subtracting
    report = snn.convert(layers[1])
    assert report.swapped == ("",)
    assert "stays 'subtract'" in report.notes[""]
    assert layers[1].reset_mechanism == "subtract"
    assert layers[1].reset_mechanism_val == 0
    x = torch.rand(6, 2, 3) * 2
    for a, b in zip(*(over_time(layer, x) for layer in layers), strict=True):
        assert_bits_equal(b, a)


# ---- lists and lives


@NEURONS
def test_a_converted_and_a_reverted_model_are_freed(name: str) -> None:
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


def test_converting_back_and_forth_leaves_one_entry_in_the_list_of_snntorch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snntorch.Leaky(0.9), snntorch.Synaptic(0.8, 0.7))
    snn.convert(net)
    entries = len(snntorch.SpikingNeuron.instances)
    for _ in range(3):
        snn.revert(net)
        snn.convert(net)
    assert len(snntorch.SpikingNeuron.instances) == entries
