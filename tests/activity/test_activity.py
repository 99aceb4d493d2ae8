"""The spikes of layers of neurons: equal in every form of a network, in training, and in parts of it."""

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from loop_nets import WAYS
from multistep_checks import Loop
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snnfast
from snnfast import surrogate
from snnfast.spikingjelly import functional, neuron

T, B = 11, 3


@snnfast.neuron
def Own(  # noqa: N802 - it is a class
    x: Tensor, mem: Tensor, *, beta: float = 0.7, threshold: float = 1.0
) -> Any:
    mem = beta * mem + x
    spk = snnfast.spike(mem - threshold, surrogate.atan())
    return spk, mem - spk * threshold


def counts_of(a: snnfast.Activity, rel: float = 1e-4) -> dict[str, Any]:
    found = {}
    for name, layer in a.layers.items():
        numbers = layer.to_dict()
        membrane = numbers.pop("membrane")
        found[name] = numbers, None if membrane is None else pytest.approx(membrane, rel)
    return found


def by_numbers(spk: Tensor) -> dict[str, Any]:
    """The counts of spikes ``[T, B, *]``, from the record."""
    each = (spk != 0).sum((0, 1))
    return {
        "spikes": int(each.sum()),
        "rate": int(each.sum()) / spk.numel(),
        "silent": float((each == 0).double().mean()),
        "saturated": float((each == len(spk) * spk.shape[1]).double().mean()),
        "rate_by_step": pytest.approx((spk != 0).double().flatten(1).mean(1).tolist()),
    }


def expect(layer: snnfast.LayerActivity, spk: Tensor) -> None:
    wanted = by_numbers(spk)
    assert {name: getattr(layer, name) for name in wanted} == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True])
def test_all_steps_in_one_call_count_as_their_loop(backend: str, own: bool, dtype: torch.dtype) -> None:
    neurons = [Own(), Own()] if own else [snnfast.Leaky(0.9), snnfast.Leaky(0.8, reset_mechanism="zero")]
    net = snnfast.MultiStep(nn.Linear(6, 20), neurons[0], nn.Linear(20, 5), neurons[1]).to(dtype)
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[2].weight.mul_(4)
    x = torch.rand(T, B, 6).to(dtype)
    a = snnfast.activity(net, x)
    rounds = 0.02 if dtype == torch.bfloat16 else 1e-4  # a membrane that is recorded
    assert counts_of(a, rounds) == counts_of(snnfast.activity(Loop(*net), x), rounds)
    with torch.no_grad():
        _, spikes = net(x, return_spikes=True)[-2:]
    expect(a.layers["1"], spikes[0])
    expect(a.layers["3"], spikes[1])
    assert 0 < a.layers["1"].spikes < a.layers["1"].neuron_steps == T * B * 20
    assert a.layers["2"].synops == 5 * a.layers["1"].spikes
    assert a.layers["0"].macs == T * B * 6 * 20
    assert a.synops == a.layers["2"].synops
    assert a.spikes == a.layers["1"].spikes + a.layers["3"].spikes


@pytest.mark.needs_extension
def test_spikes_that_go_on_as_bits_stay_bits_and_are_counted() -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Flatten(), nn.Linear(20, 5))
    x = 4 * torch.rand(T, B, 6)
    with torch.profiler.profile() as plain, torch.no_grad():
        wanted = net(x)
    with torch.profiler.profile() as counted, snnfast.activity(net) as a, torch.no_grad():
        found = net(x)
    names = [{event.key for event in p.key_averages()} for p in (plain, counted)]
    assert all("snnfast::spikes_linear" in n for n in names)
    assert torch.equal(found, wanted)
    with torch.no_grad():
        *_, spikes = net(x, return_spikes=True)
    expect(a.layers["1"], spikes[0])
    assert a.layers["3"].synops == 5 * a.layers["1"].spikes > 0


@pytest.mark.parametrize("samples", [3, 64], ids=["numbers", "bits"])
@pytest.mark.parametrize("how", ["shared weight", "autocast"])
def test_a_product_is_that_of_the_linear_layer_also_where_its_weight_does_not_tell(how: str, samples: int) -> None:
    net = snnfast.MultiStep(nn.Linear(6, 6), snnfast.Leaky(0.5), nn.Linear(6, 6), snnfast.Leaky(0.9))
    if how == "shared weight":
        net[2].weight = net[0].weight
    x = 3 * torch.rand(T, samples, 6)
    for form in (net, Loop(*net)):
        with snnfast.activity(form) as a, torch.no_grad(), torch.autocast("cpu", enabled=how == "autocast"):
            form(x)
        layers = a.layers
        found = {name: (layer.synops, layer.macs) for name, layer in layers.items()}
        spikes = layers["1"].spikes
        assert found == {"0": (0, T * samples * 36), "1": (0, 0), "2": (6 * spikes, 0), "3": (0, 0)}
        assert spikes > 0


@pytest.mark.parametrize("reduce", [None, "sum"])
def test_steps_that_a_sample_does_not_have_are_not_counted(backend: str, reduce: str | None) -> None:
    lif = snnfast.Leaky(0.9)
    current, lengths = torch.full((T, B, 4), 5.0), torch.tensor([1, 7, T])
    with snnfast.activity(lif) as a:
        lif.unroll(current, lengths=lengths, reduce=reduce)
    layer = a.layers["Leaky"]
    assert layer.neuron_steps == 4 * int(lengths.sum())
    assert (layer.rate, layer.saturated) == (1.0, 1.0)
    assert layer.rate_by_step == ([] if reduce else [1.0] * T)  # of the samples that have the step


def test_a_graded_spike_is_one_spike_and_its_products_are_multiplications(backend: str) -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9, graded_spikes_factor=0.5), nn.Linear(20, 5))
    x = 4 * torch.rand(T, B, 6)
    wanted, found = snnfast.activity(Loop(*net), x), snnfast.activity(net, x)
    assert counts_of(found) == counts_of(wanted)
    assert found.layers["1"].spikes > 0
    assert (found.layers["2"].synops, found.layers["2"].macs) == (0, T * B * 100)
    with snnfast.activity(net[1]) as counted:
        net[1].unroll(4 * torch.rand(T, B, 6), reduce="sum")
    assert 0 < counted.spikes <= T * B * 6


def test_a_block_adds_up_all_calls_in_training_and_can_be_entered_again() -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Linear(20, 5), snnfast.Leaky(0.9))
    batches = [3 * torch.rand(T, n, 6) for n in (B, 2, B)]
    alone = [snnfast.activity(net, x) for x in batches]
    a = snnfast.activity(net)
    with a:
        for x in batches[:2]:
            net(x)[0].sum().backward()
    with torch.no_grad():
        net(batches[0])  # outside
    with a:
        net(batches[2])
    assert a.calls == 3
    for name in ("spikes", "synops", "macs"):
        assert getattr(a, name) == sum(getattr(one, name) for one in alone)
    assert len(a.layers["1"].rate_by_step) == T


def test_a_second_entry_is_an_error_and_leaves_nothing() -> None:
    net = nn.Sequential(nn.Linear(6, 20), snnfast.Leaky(0.9, init_hidden=True))
    a = snnfast.activity(net)
    with a, pytest.raises(RuntimeError, match="it counts already"):
        a.__enter__()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    net(torch.rand(B, 6))
    assert a.calls == 0


def test_what_a_backward_pass_computes_again_is_not_counted() -> None:
    net = nn.Sequential(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Linear(20, 5))

    def step(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        spk, mem = net[1](net[0](x), mem)
        return net[2](spk), mem

    def run(call: Callable[..., Any]) -> tuple[int, ...]:
        with snnfast.activity(net) as a:
            mem, total = torch.zeros(B, 20), torch.zeros(())
            for x in torch.full((T, B, 6), 3.0):
                y, mem = call(step, x, mem)
                total = total + y.sum()
            total.backward()
        return a.spikes, a.synops, a.macs

    assert run(lambda f, *args: checkpoint(f, *args, use_reentrant=False)) == run(lambda f, *args: f(*args))


@pytest.mark.parametrize("calls", [1, 3])
def test_a_network_in_parts_of_some_steps_has_the_counts_and_membranes_of_the_whole(calls: int) -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Linear(20, 5), snnfast.Leaky(0.8))

    def run(part: Any) -> Any:
        with snnfast.activity(net) as a:
            for factor in range(calls):
                net(torch.linspace(-1, factor + 3, T * B * 6).view(T, B, 6), checkpoint=part)[0].sum().backward()
        return counts_of(a), a.health()

    assert run(3) == run(False)


def test_calls_of_other_threads_are_not_counted() -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Linear(20, 5))
    steps = nn.Sequential(snnfast.Leaky(0.9, init_hidden=True))
    with snnfast.activity(net) as a, snnfast.activity(steps) as b:
        thread = threading.Thread(target=lambda: (net(3 * torch.rand(T, B, 6)), steps(3 * torch.rand(B, 6))))
        thread.start()
        thread.join()
    assert not a.layers
    assert not b.layers


@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode])
def test_spikingjellys_names_count_alike_in_both_step_modes(node: Any) -> None:
    net = nn.Sequential(node(), node())
    x = 2 * torch.rand(T, B, 8)
    functional.set_step_mode(net, "m")
    a = snnfast.activity(net, x)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    with snnfast.activity(net) as b, torch.no_grad():
        spk = torch.stack([net(step) for step in x])
    expect(a.layers["1"], spk)
    expect(b.layers["1"], spk)
    assert counts_of(a) == counts_of(b)


class ByHand(nn.Module):
    """A neuron that a user has written, with a surrogate in a module, and a pooling of spikes, which is none."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.max_pool1d(x, 2)

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    class LIF(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Threshold(1.0, 0.0)

        def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            mem = 0.5 * mem + x
            spk = snnfast.spike(mem - 1, surrogate.atan())
            return spk, mem * (1 - spk)

    def __init__(self) -> None:
        super().__init__()
        self.halved, self.lif, self.pool, self.fc = self.Half(), self.LIF(), self.Pool(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, rows, spikes = torch.zeros(x.shape[1:]), [], []
        for step in x:
            spk, mem = self.lif(self.halved(step), mem)
            spikes.append(spk)
            rows.append(self.fc(self.pool(spk)))
        return torch.stack(rows), torch.stack(spikes)


def test_a_neuron_by_hand_with_a_state_may_be_given_spikes() -> None:
    lif, events = ByHand.LIF(), (torch.rand(T, B, 8) < 0.5).float()
    mem, rows = torch.zeros(B, 8), []
    with torch.no_grad(), snnfast.activity(lif) as a:
        for step in events:
            spk, mem = lif(step, mem)
            rows.append(spk)
    expect(a.layers["LIF"], torch.stack(rows))


def test_a_threshold_by_hand_that_does_not_fit_the_membrane_is_left_alone() -> None:
    class ByChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.threshold, self.mem = torch.tensor([0.2, 0.5, 0.7]), torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            self.mem = 0.5 * self.mem + x
            return (self.mem > self.threshold.view(-1, 1, 1)).float()

    net = ByChannel()
    a = snnfast.activity(net, torch.rand(2, 3, 4, 5))
    assert (a.spikes, a.layers["ByChannel"].membrane) == (int((net.mem > net.threshold.view(-1, 1, 1)).sum()), None)
    net.threshold = net.threshold.view(-1, 1, 1)
    assert snnfast.activity(net, torch.rand(2, 3, 4, 5)).layers["ByChannel"].membrane > 0


@pytest.mark.needs_extension
@pytest.mark.parametrize("other", [False, True], ids=["spikes", "and one number"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_convolution_of_spikes_counts_alike_by_any_kernel(share: float, other: bool) -> None:
    net = snnfast.MultiStep(nn.Conv2d(32, 32, 3, padding=1), snnfast.Leaky(0.9))
    x, counts = (torch.rand(T, B, 32, 16, 16) < share).float(), []
    x[5, 1, 3, 2, 1] = 1 + other
    for by_events in (True, False):
        with snnfast.use_events(by_events), snnfast.activity(net) as found:
            net(x)
        counts.append(found.layers["0"].to_dict())
    assert counts[0] == counts[1]


def test_a_transform_is_refused() -> None:
    lif = snnfast.Leaky(0.9)
    with snnfast.activity(lif), pytest.raises(RuntimeError, match=r"under a torch\.func transform"):
        torch.func.vmap(lambda x: lif(x, torch.zeros(4))[0])(torch.rand(B, 4))


def test_weights_that_are_made_by_the_first_call_or_replaced_count() -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    x = torch.ones(B, 4)
    with torch.no_grad(), snnfast.activity(net) as a:
        net(x)
        net[0].weight.data = torch.rand(3, 4)
        net(x)
        net[1].weight = nn.Parameter(torch.rand(2, 3))
        net(x)
    assert (a.layers["0"].synops, a.layers["1"].macs) == (3 * B * 12, 3 * B * 6)


def test_a_neuron_that_was_written_by_hand_is_found_by_its_spikes() -> None:
    net, x = ByHand(), 3 * torch.rand(T, B, 8)
    a = snnfast.activity(net, x)
    with torch.no_grad():
        _, spk = net(x)
    assert list(a.layers) == ["lif", "fc"]
    expect(a.layers["lif"], spk)
    assert a.layers["fc"].synops == 2 * int(torch.nn.functional.max_pool1d(spk.flatten(0, 1), 2).sum()) > 0


@pytest.mark.needs_extension
@pytest.mark.parametrize("by", WAYS)
def test_a_compiled_network_counts_as_its_loop_and_stays_compiled(by: Any, nothing_compiled: None) -> None:
    layers = nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Linear(20, 5), snnfast.Leaky(0.9)
    x = 3 * torch.rand(T, B, 6)
    wanted = counts_of(snnfast.activity(Loop(*layers), x))
    net = Loop(*layers)
    compiled = by(net)
    function = by(lambda x: compiled(x)[0].sum())
    call = net._compiled_call_impl
    for run in (compiled, function):
        run(x)
        with snnfast.activity(net) as a:
            run(x)
        assert counts_of(a) == wanted
        run(x)
    assert net._compiled_call_impl is call


@pytest.mark.needs_extension
@pytest.mark.parametrize("graded", [1.0, 0.5])
def test_no_copy_of_a_record_is_made(graded: float) -> None:
    net = snnfast.MultiStep(snnfast.Leaky(0.9, graded_spikes_factor=graded), nn.ReLU(), nn.Linear(500, 5))
    x = torch.rand(100, 32, 500)
    record = x.numel() * x.element_size()

    def allocations() -> int:
        """How many are larger than a 16th of a record."""
        with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
            net(x)
        return sum(event.self_cpu_memory_usage > record / 16 for event in profile.events())

    wanted = allocations()
    with snnfast.activity(net) as a:
        assert allocations() == wanted
    assert a.layers["0"].spikes > 0


def test_spikes_of_chosen_layers_are_kept_as_bits() -> None:
    net = snnfast.MultiStep(nn.Linear(6, 20), snnfast.Leaky(0.9), nn.Flatten(), nn.Linear(20, 5), snnfast.Leaky(0.9))
    x = 3 * torch.rand(T, B, 6)
    _, _, spikes = net(x, return_spikes=True)
    for form in (net, Loop(*deepcopy(net))):
        a = snnfast.activity(form, x, record=["4"])
        bits = a.layers["4"].bits
        assert (bits.bytes.dtype, tuple(bits.bytes.shape), bits.steps) == (torch.uint8, (2, B, 5), T)
        assert torch.equal(bits.unpack(), spikes[1] != 0)
        assert torch.equal(bits.unpack(torch.float32), spikes[1].detach())
        assert a.layers["1"].bits is None
        on = snnfast.activity(form, x, record=["1"]).layers["1"]  # whose spikes go on as bits
        assert torch.equal(on.bits.unpack(), spikes[0] != 0)


def test_a_network_that_is_one_layer_can_be_recorded_by_its_class() -> None:
    a = snnfast.activity(snnfast.Leaky(0.9, init_hidden=True), torch.full((B, 4), 3.0), record=["Leaky"])
    assert a.layers["Leaky"].bits.unpack().all()


def test_spikes_that_are_changed_in_place_are_looked_at_again() -> None:
    lif, fc = snnfast.Leaky(0.9, init_hidden=True), nn.Linear(4, 2)
    net = nn.Sequential(lif, fc)
    with torch.no_grad(), snnfast.activity(net) as a:
        spk = lif(torch.full((B, 4), 3.0))
        spk[0] = 0
        fc(spk)
    assert (a.layers["0"].spikes, a.layers["1"].synops) == (4 * B, 2 * 4 * (B - 1))
    with torch.no_grad(), snnfast.activity(net) as a:
        lif.reset_mem()
        fc(lif(torch.full((B, 4), 3.0)).mul_(2))
    assert (a.layers["1"].synops, a.layers["1"].macs) == (0, B * 8)


def test_another_view_of_the_same_memory_is_looked_at() -> None:
    lif, fc = snnfast.Leaky(0.9, init_hidden=True), nn.Linear(4, 2)
    with torch.no_grad(), snnfast.activity(nn.Sequential(lif, fc)) as a:
        spk = lif(torch.tensor([[3.0, 0.0, 0.0, 0.0]] * B))
        fc(spk[:, :1].expand(B, 4))
        fc(spk.t().contiguous().t())
        fc(spk.view(4, B).t().reshape(B, 4))
    assert (a.layers["0"].spikes, a.layers["1"].synops) == (B, 2 * (4 * B + B + B))


def test_spikingjellys_own_nodes_are_counted() -> None:
    theirs = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    x = 2 * torch.rand(T, B, 8)
    for mode in ("s", "m"):
        node = theirs.LIFNode(step_mode=mode)
        with torch.no_grad(), snnfast.activity(node) as a:
            spk = node(x) if mode == "m" else torch.stack([node(step) for step in x])
        expect(a.layers["LIFNode"], spk)
        assert a.layers["LIFNode"].membrane == pytest.approx(float(node.v.mean()))


def test_norses_neurons_are_counted() -> None:
    norse = pytest.importorskip("norse.torch", reason="Norse is not installed")
    x = 8 * torch.rand(T, B, 8)
    all_steps, step = norse.LIF(), norse.LIFCell()
    with torch.no_grad(), snnfast.activity(nn.ModuleList([all_steps, step])) as a:
        spk, _ = all_steps(x)
        state, rows = None, []
        for row in x:
            out, state = step(row, state)
            rows.append(out)
    expect(a.layers["0"], spk)
    expect(a.layers["1"], torch.stack(rows))
    assert a.spikes > 0
