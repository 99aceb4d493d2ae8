"""snnfast.snntorch is snntorch with another Leaky: the same names, and what takes a Leaky takes ours, unpatched."""

import gc
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import snntorch
import torch
from helpers import assert_bits_equal
from snntorch import spikegen, utils
from snntorch.functional import acc, loss, probe, reg
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast import _snntorch_leaky

BOTH = pytest.mark.parametrize("library", [snn, snntorch], ids=["ours", "theirs"])


@pytest.fixture(autouse=True)
def own_list_of_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch keeps every neuron for good: none of another test's here."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


# ---- names


def modules() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # snntorch.spikevision announces its end
        names = [module.name for module in pkgutil.walk_packages(snntorch.__path__, "snntorch.")]
    return [name for name in names if not any(part.startswith("_") for part in name.split(".")[2:])]


def imported(name: str) -> ModuleType:
    """A module of snnTorch; a skip where it needs a package that isn't installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # snntorch.backprop announces its end
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{name} needs {error.name}, which is not installed")


def public(module: ModuleType) -> dict[str, object]:
    return {n: o for n, o in vars(module).items() if not n.startswith("_")}


def test_every_name_of_snntorch_is_here_and_the_same_object_except_leaky() -> None:
    names = public(snntorch)
    assert {"Synaptic", "Alpha", "Lapicque", "SpikingNeuron", "LIF", "surrogate", "leaky", "BatchNormTT1d"} <= set(
        names
    )
    for name, expected in names.items():
        assert (getattr(snn, name) is expected) == (name != "Leaky"), name


@pytest.mark.parametrize("name", modules())
def test_every_class_and_function_is_reached_by_its_path(name: str) -> None:
    module = imported(name)
    found: Any = snn
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert found is module
    for member, expected in public(module).items():
        if inspect.isclass(expected) or inspect.isfunction(expected):
            assert getattr(found, member) is expected, member


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(snntorch.__path__) if m.name[0] != "_"])
def test_submodules_can_be_imported_from_it(name: str) -> None:
    module = imported(f"snntorch.{name}")
    space: dict[str, Any] = {}
    exec(f"from snnfast.snntorch import {name} as found", space)
    assert space["found"] is module
    assert name in dir(snn)


@pytest.mark.parametrize("name", modules())
def test_a_submodule_imported_by_its_path_is_snntorchs_own_and_keeps_its_name(name: str) -> None:
    module = imported(name)
    space: dict[str, Any] = {}
    exec(f"import snnfast.{name} as found", space)
    assert space["found"] is module is sys.modules[name]
    assert module.__name__ == name
    assert module.__spec__ is not None
    assert module.__spec__.name == name
    for member, expected in public(module).items():
        exec(f"from snnfast.{name} import {member} as found", space)
        assert space["found"] is expected, member


@pytest.mark.parametrize("name", ["nothing", "functional.nothing", "utils.nothing"])
def test_a_submodule_that_snntorch_lacks_is_not_found_under_the_name_that_was_asked_for(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"No module named 'snnfast\.snntorch\.{name}'"):
        importlib.import_module(f"snnfast.snntorch.{name}")


def test_all_dir_and_version() -> None:
    assert snn.__version__ == snntorch.__version__ == importlib.metadata.version("snntorch")
    assert len(set(snn.__all__)) == len(snn.__all__)
    assert set(snn.__all__) <= set(dir(snn))
    assert {"Leaky", "convert", "revert", "Synaptic", "functional", "spikegen", "__version__"} <= set(dir(snn))
    for name in dir(snn):
        assert name in ("backprop", "export_nir", "import_nir", "spikeplot", "spikevision") or hasattr(snn, name), name


@pytest.mark.parametrize("name", ["Leeky", "no.such", "functional.loss", "__wrapped__"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=r"snnfast\.snntorch.*no attribute"):
        getattr(snn, name)


def test_an_unknown_name_is_an_import_error_in_a_from_import() -> None:
    with pytest.raises(ImportError):
        exec("from snnfast.snntorch import Leeky")


# ---- being there or not, in a process of its own

FRESH = """
import json, sys, torch, snnfast
found = {}
lif = snnfast.Leaky(0.9, init_hidden=True, learn_beta=True)
lif.unroll(torch.rand(3, 2, 5))[0].sum().backward()
snnfast.MultiStep(torch.nn.Linear(5, 5), lif)(torch.rand(3, 2, 5))
found["alone"] = sorted(name for name in sys.modules if "snntorch" in name)

def error():
    try:
        import snnfast.snntorch
    except ImportError as error:
        found_error = [type(error).__name__, str(error), error.name, error.__suppress_context__]
    for name in [n for n in sys.modules if "snntorch" in n]:
        del sys.modules[name]
    return found_error

sys.modules["snntorch"] = None
found["missing"] = error()
sys.modules["snntorch._layers"] = None
found["broken"] = error()
import snnfast.snntorch as snn, snntorch
snn.spikegen.rate, snn.functional.mse_count_loss, snn.utils.reset
found["submodules"] = [snn.functional is snntorch.functional, snn.utils is snntorch.utils]
for name in ("functional", "utils", "spikegen"):
    delattr(snntorch, name)
ours, theirs = {}, {}
exec("from snnfast.snntorch import *", ours)
exec("from snntorch import *", theirs)
found["star"] = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
found["same"] = [name for name in theirs if name != "__builtins__" and ours[name] is not theirs[name]]
found["attribute"] = snnfast.snntorch is snn
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_snnfast_alone_never_imports_snntorch(fresh: dict[str, Any]) -> None:
    assert fresh["alone"] == []


def test_without_snntorch_the_error_says_what_to_install(fresh: dict[str, Any]) -> None:
    message = 'snnfast.snntorch needs snntorch >= 1.0.0, which is not installed: pip install "snntorch>=1.0.0"'
    assert fresh["missing"] == ["ModuleNotFoundError", message, "snntorch", True]


def test_a_broken_snntorch_is_reported_as_it_is(fresh: dict[str, Any]) -> None:
    kind, message, name, _ = fresh["broken"]
    assert (kind, name) == ("ModuleNotFoundError", "snntorch._layers")
    assert "pip" not in message


def test_a_submodule_is_found_though_nothing_imported_it(fresh: dict[str, Any]) -> None:
    assert fresh["submodules"] == [True, True]


def test_star_import_brings_what_it_brings_from_snntorch(fresh: dict[str, Any]) -> None:
    assert fresh["star"] == [["Report", "convert", "revert"], []]
    assert fresh["same"] == ["Leaky"]


@pytest.mark.parametrize(("version", "fine"), [("0.9.4", False), ("0.10", False), ("1.0.0", True), ("2.1.0rc1", True)])
def test_a_snntorch_that_is_too_old_is_an_import_error(
    version: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if fine:
        _snntorch_leaky._check_version()
        return
    with pytest.raises(
        ImportError, match=rf"needs snntorch >= 1\.0\.0, but {version} .*pip install \"snntorch>=1\.0\.0\""
    ):
        _snntorch_leaky._check_version()


def test_a_source_tree_of_snntorch_without_metadata_tells_its_version_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    _snntorch_leaky._check_version()
    monkeypatch.setattr(snntorch, "__version__", "0.9.4")
    with pytest.raises(ImportError, match=r"but 0\.9\.4 is installed"):
        _snntorch_leaky._check_version()


# ---- being a snntorch.Leaky


def test_a_layer_is_an_instance_of_both_classes() -> None:
    lif = snn.Leaky(0.9)
    for cls in (snn.Leaky, snnfast.Leaky, snntorch.Leaky, snntorch.LIF, snntorch.SpikingNeuron, nn.Module):
        assert isinstance(lif, cls)
        assert issubclass(snn.Leaky, cls)
    assert not isinstance(snntorch.Leaky(0.9), snnfast.Leaky)
    assert not list(lif.children())  # a leaf, as exporters expect


def test_signatures_are_those_of_snntorch() -> None:
    for method in ("__init__", "forward", "fire", "fire_inhibition", "mem_reset", "reset_mem", "init_leaky"):
        ours = inspect.signature(getattr(snn.Leaky, method)).parameters
        theirs = inspect.signature(getattr(snntorch.Leaky, method)).parameters
        assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in theirs.items()], method
    assert {n for n in dir(snntorch.Leaky) if not n.startswith("_")} <= set(dir(snn.Leaky))
    assert snn.Leaky.reset_dict == snntorch.Leaky.reset_dict


@BOTH
def test_one_neuron_on_a_batch_of_one_number(library: Any) -> None:
    lif = library.Leaky(beta=0.5)
    x = torch.tensor([0.24])
    mem = lif.init_leaky()
    mem_rec, spk_rec = [], []
    for _ in range(2):
        spk, mem = lif(x, mem)
        mem_rec.append(mem)
        spk_rec.append(spk)
    assert mem_rec[1] == mem_rec[0] * 0.5 + x
    assert mem_rec[0].shape == spk_rec[0].shape == (1,)
    assert not lif.reset_mechanism_val
    lif.reset_mechanism = "none"
    assert lif.reset_mechanism_val == 2


@BOTH
def test_a_membrane_given_to_a_layer_that_holds_its_own_is_a_type_error(library: Any) -> None:
    lif = library.Leaky(beta=0.5, init_hidden=True)
    with pytest.raises(TypeError, match="mem"):
        lif(torch.tensor([0.24]), torch.tensor([0.24]))


def test_that_type_error_leaves_the_held_membrane_alone() -> None:
    lif = snn.Leaky(beta=0.5, init_hidden=True)
    lif(torch.tensor([0.24]))
    with pytest.raises(TypeError, match="mem"):
        lif(torch.tensor([0.24]), torch.tensor([0.9]))
    assert_bits_equal(lif.mem, torch.tensor([0.24]))


@BOTH
@pytest.mark.parametrize("learn", [True, False])
def test_a_learned_graded_factor_requires_a_gradient(library: Any, learn: bool) -> None:
    lif = library.Leaky(beta=0.5, learn_graded_spikes_factor=learn)
    assert lif.graded_spikes_factor.requires_grad == learn


def test_fire_and_mem_reset_give_the_numbers_of_snntorch() -> None:
    mem = torch.rand(3, 10) * 2
    options: dict[str, Any] = {"threshold": torch.rand(10) + 0.4, "graded_spikes_factor": 1.5}
    ours, theirs = snn.Leaky(0.9, **options), snntorch.Leaky(0.9, **options)
    assert_bits_equal(ours.fire(mem), theirs.fire(mem))
    assert_bits_equal(ours.mem_reset(mem), theirs.mem_reset(mem))
    assert_bits_equal(ours.fire_inhibition(3, mem), theirs.fire_inhibition(3, mem))
    with pytest.raises(ValueError, match="reset_mechanism"):
        ours.reset_mechanism = "halve"


def test_a_subclass_that_replaces_a_part_of_the_step_is_refused_unless_it_calls_it() -> None:
    for part in ("fire", "mem_reset", "_base_sub"):
        with pytest.raises(TypeError, match=f"Mine replaces {part}.*snntorch.Leaky"):
            type("Mine", (snn.Leaky,), {part: lambda self, mem: mem})

    class Adaptive(snn.Leaky):
        def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
            mem = super().forward(input_, mem)[1]
            return self.fire(mem), mem

        def fire(self, mem: Tensor) -> Tensor:
            return torch.full_like(mem, 7)

    assert Adaptive(0.9)(torch.rand(2, 3))[0].eq(7).all()


# ---- what takes a Leaky


def network(library: Any, hidden: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 12),
        library.Leaky(0.9, init_hidden=hidden, learn_beta=True),
        nn.Linear(12, 4),
        library.Leaky(0.8, init_hidden=hidden, output=True, learn_threshold=True, reset_mechanism="zero"),
    )


def over_time(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    spk_rec, mem_rec = zip(*(net(step) for step in x), strict=True)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def test_the_unpatched_reset_reaches_our_layers() -> None:
    net = network(snn)
    x = torch.rand(5, 3, 6)
    first = over_time(net, x)
    assert net[1].mem.any()
    assert net[3].mem.requires_grad
    utils.reset(net)
    for i in (1, 3):
        assert not net[i].mem.any()
        assert not net[i].mem.requires_grad
        assert net[i].mem.shape == (3, net[i - 1].out_features)
    for a, b in zip(over_time(net, x), first, strict=True):
        assert_bits_equal(a, b)


def test_detach_and_reset_hidden_of_either_class_reach_the_layers_of_both() -> None:
    for cls in (snn.Leaky, snntorch.Leaky):
        layers = [
            snn.Leaky(0.9, init_hidden=True, learn_beta=True),
            snntorch.Leaky(0.9, init_hidden=True, learn_beta=True),
        ]
        for lif in layers:
            lif(torch.ones(2, 3))
        assert all(lif.mem.requires_grad for lif in layers)
        cls.detach_hidden()
        assert not any(lif.mem.requires_grad for lif in layers)
        assert all(lif.mem.any() for lif in layers)
        cls.reset_hidden()
        assert not any(lif.mem.any() for lif in layers)


def test_reset_hidden_of_snnfast_reaches_the_layers_that_are_snntorchs_too() -> None:
    layers = [snn.Leaky(0.9, init_hidden=True), snnfast.Leaky(0.9, init_hidden=True)]
    for lif in layers:
        lif(torch.ones(2, 3))
    snnfast.Leaky.reset_hidden()
    assert not any(lif.mem.any() for lif in layers)


def test_init_forgets_the_layers_there_are() -> None:
    old = snn.Leaky(0.9, init_hidden=True)
    old(torch.ones(2, 3))
    snn.Leaky.init()
    new = snn.Leaky(0.9, init_hidden=True)
    new(torch.ones(2, 3))
    assert list(snn.Leaky.instances) == [new]
    snn.Leaky.reset_hidden()
    assert old.mem.any()
    assert not new.mem.any()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 5, 6, generator=generator) * 2, torch.randint(4, (5,), generator=generator)) for _ in range(2)
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["BPTT", "TBPTT", "RTRL"])
def test_unpatched_backprop_trains_our_layers_to_the_numbers_of_snntorchs(name: str) -> None:
    from snntorch import backprop

    # Time-varying data meet a bug of snnTorch's (K_flag) in the other two.
    data = batches() if name == "BPTT" else [(x[0], y) for x, y in batches()]
    options: dict[str, Any] = {} if name == "BPTT" else {"time_var": False, "num_steps": 8}
    if name == "TBPTT":
        options["K"] = 4
    results = []
    for library in (snn, snntorch):
        net = network(library)
        found = getattr(backprop, name)(
            net, data, torch.optim.Adam(net.parameters(), lr=1e-2), loss.mse_count_loss(), **options
        )
        results.append((found.detach(), *(p.detach() for p in net.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.manual_seed(3)
    assert not torch.equal(results[0][1], nn.Linear(6, 12).weight)  # it did train


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce_rate": lambda spk, mem, y: loss.ce_rate_loss()(spk, y),
    "ce_count": lambda spk, mem, y: loss.ce_count_loss()(spk, y),
    "ce_max_membrane": lambda spk, mem, y: loss.ce_max_membrane_loss()(mem, y),
    "mse_count": lambda spk, mem, y: loss.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)(spk, y),
    "mse_count_population": lambda spk, mem, y: loss.mse_count_loss(population_code=True, num_classes=2)(spk, y % 2),
    "mse_membrane": lambda spk, mem, y: loss.mse_membrane_loss()(mem, y),
    "mse_temporal": lambda spk, mem, y: loss.mse_temporal_loss()(spk, y),
    "ce_temporal": lambda spk, mem, y: loss.ce_temporal_loss()(spk, y),
    "l1_rate_sparsity": lambda spk, mem, y: reg.l1_rate_sparsity(1e-2)(spk),
}


@pytest.mark.parametrize("name", LOSSES)
def test_unpatched_losses_give_the_values_and_gradients_of_snntorchs_layer(name: str) -> None:
    x, y = batches()[0]
    results = []
    for library in (snn, snntorch):
        net = network(library)
        value = LOSSES[name](*over_time(net, x), y).sum()
        value.backward()
        results.append((value.detach(), [p.grad for p in net.parameters()]))
    assert_bits_equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        if b is None:
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_unpatched_losses_take_what_an_unroll_returns(name: str) -> None:
    x, y = batches()[0]
    stepped, unrolled = network(snn), network(snn)
    expected = LOSSES[name](*over_time(stepped, x), y).sum()
    spk, _ = unrolled[1].unroll(unrolled[0](x))
    value = LOSSES[name](*unrolled[3].unroll(unrolled[2](spk)), y).sum()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    for a, b in zip(unrolled.parameters(), stepped.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_unpatched_accuracies_agree() -> None:
    x, y = batches()[0]
    spks = [over_time(network(library), x)[0].detach() for library in (snn, snntorch)]
    assert acc.accuracy_rate(spks[0], y) == acc.accuracy_rate(spks[1], y)
    assert acc.accuracy_temporal(spks[0], y) == acc.accuracy_temporal(spks[1], y)


def test_unpatched_probes_record_our_layers() -> None:
    x = batches()[0][0]
    records = []
    for library in (snn, snntorch):
        net = network(library)
        out = probe.OutputMonitor(net, snntorch.Leaky)
        inside = probe.InputMonitor(net, snntorch.Leaky)
        mem = probe.AttributeMonitor("mem", False, net, snntorch.Leaky)
        over_time(net, x)
        assert out.monitored_layers == mem.monitored_layers == ["1", "3"]
        records.append((out["1"], inside["3"], mem["1"], mem["3"]))
        out.remove_hooks()
        inside.remove_hooks()
        mem.remove_hooks()
    for ours, theirs in zip(*records, strict=True):
        assert len(ours) == len(theirs) == 8
        for a, b in zip(ours, theirs, strict=True):
            assert_bits_equal(a, b)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_unpatched_gradient_probes_record_our_layers() -> None:
    x, y = batches()[0]
    records = []
    for library in (snn, snntorch):
        net = network(library)
        monitor = probe.GradOutputMonitor(net, nn.Linear)
        loss.mse_count_loss()(over_time(net, x)[0], y).backward()
        records.append(list(monitor.records))
        monitor.remove_hooks()
    assert len(records[0]) == len(records[1]) > 0
    for a, b in zip(*records, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_spike_trains_of_spikegen_drive_our_layer_as_snntorchs() -> None:
    data = torch.rand(3, 6)
    trains = {
        "rate": spikegen.rate(data, num_steps=7),
        "latency": spikegen.latency(data, num_steps=7, normalize=True, linear=True),
        "delta": spikegen.delta(torch.rand(7, 3, 6), threshold=0.2, off_spike=True),
    }
    for name, train in trains.items():
        ours, theirs = snn.Leaky(0.7, init_hidden=True, output=True), snntorch.Leaky(0.7, init_hidden=True, output=True)
        expected = over_time(theirs, train)
        for a, b in zip(over_time(ours, train), expected, strict=True):
            assert_bits_equal(a, b, name)
        ours.reset_mem()
        for a, b in zip(ours.unroll(train), expected, strict=True):
            assert_bits_equal(a, b, name)


def test_a_program_may_put_our_layer_in_the_place_of_snntorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = snntorch.Leaky
    old = theirs(0.9, init_hidden=True)
    monkeypatch.setattr(snntorch, "Leaky", snn.Leaky)
    monkeypatch.setattr(snntorch._neurons, "Leaky", snn.Leaky)
    net = network(snntorch)
    over_time(net, torch.rand(5, 3, 6))
    old(torch.ones(2, 3))
    utils.reset(net)
    assert not any(lif.mem.any() or lif.mem.requires_grad for lif in (net[1], net[3], old))
    assert snn.convert(nn.Sequential(old)).swapped == ("0",)
    assert snn.revert(net).swapped == ("1", "3")
    assert type(net[1]) is theirs


# ---- snnTorch's list of neurons


def test_snntorchs_list_of_neurons_keeps_no_layer_alive_and_stays_short() -> None:
    keep = snn.Leaky(0.9)
    for _ in range(20):
        snn.Leaky(0.9)
    gc.collect()
    snn.Leaky.reset_hidden()
    utils.reset(nn.Sequential(keep))
    assert len(snntorch.SpikingNeuron.instances) == 2  # the living one, and a dead one's place until the next comes
    other = snn.Leaky(0.9)
    assert [neuron is not None for neuron in (keep, other)] == [
        isinstance(neuron, snntorch.Leaky) for neuron in snntorch.SpikingNeuron.instances
    ]


def test_a_layer_that_dies_while_snntorch_resets_it_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    # A layer in a reference cycle dies when the collector happens to run: here in the middle of snnTorch's loop.
    lif = snn.Leaky(0.9, init_hidden=True)
    lif(torch.ones(2, 3))
    other = snn.Leaky(0.9, init_hidden=True)
    other(torch.ones(2, 3))
    lif.register_forward_hook(lambda *args, me=lif: None)
    zeros_like = torch.zeros_like
    gc.collect()
    del lif

    def collecting(*args: Any, **kwargs: Any) -> Tensor:
        gc.collect()
        return zeros_like(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", collecting)
    alive = len(snn.Leaky.instances)
    snntorch.Leaky.reset_hidden()
    snntorch.Leaky.detach_hidden()
    assert len(snn.Leaky.instances) == alive - 1
    assert not other.mem.any()


# ---- torch.compile


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grads[0] * torch.exp(-2 * z.abs()) * 0.8


def steep(z: Tensor) -> Tensor:
    return Steep.apply(z)  # type: ignore[no-any-return,no-untyped-call]


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "zero": {"reset_mechanism": "zero"},
    "init_hidden": {"init_hidden": True},
    "output": {"init_hidden": True, "output": True},
    "surrogate_disable": {"surrogate_disable": True},
    "inhibition": {"inhibition": True},
    "nodelay": {"reset_delay": False},
    "nodelay-zero": {"reset_delay": False, "reset_mechanism": "zero"},
    "learn": {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True},
    "vector": {"beta": torch.linspace(0.5, 1, 6), "learn_beta": True, "init_hidden": True},
    "integer": {"beta": 1, "threshold": 2},
    "closure": {"spike_grad": snntorch.surrogate.fast_sigmoid(slope=4)},
    "callable": {"spike_grad": steep},
    "callable-learn": {"spike_grad": steep, "learn_beta": True, "init_hidden": True, "output": True},
}


@pytest.mark.parametrize("options", [{}, {"surrogate_disable": True}, {"init_hidden": True}], ids=str)
def test_explain_finds_no_graph_break(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    assert torch._dynamo.explain(snn.Leaky(beta=0.5, **options))(torch.rand(3, 6)).graph_break_count == 0


@pytest.mark.needs_extension
@pytest.mark.filterwarnings("ignore:The tensor attribute self.lif.mem was assigned during export")
def test_exported_from_the_reference_a_step_has_only_operators_of_pytorch() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snn.Leaky(0.9)

        def forward(self, x: Tensor, mem: Tensor) -> Any:
            return self.lif(x, mem)

    names = []
    for backend in ("reference", "fused"):
        with snnfast.use_backend(backend), torch.no_grad():
            exported = torch.export.export(Step().eval(), (torch.rand(2, 6), torch.rand(2, 6)))
        names.append([str(n.target) for n in exported.graph.nodes if n.op == "call_function"])
    assert all(name.startswith("aten.") for name in names[0])
    assert any(name.startswith("snnfast.") for name in names[1])


@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_steps_are_one_graph_and_equal_eager(name: str) -> None:
    options = {"beta": 0.9, **OPTIONS[name]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eager, compiled = snn.Leaky(**options), snn.Leaky(**options)
        compiled.load_state_dict(eager.state_dict())
        for p in compiled.parameters():
            p.data = p.data.clone()
    torch._dynamo.reset()
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for i in range(3):
        x = torch.rand(3, 6) * 2
        results = []
        for layer, call in ((eager, eager), (compiled, step)):
            layer.zero_grad()
            layer.mem = layer.mem.detach()
            leaf = x.clone().requires_grad_()
            out = call(leaf)
            out = out if isinstance(out, tuple) else (out,)
            total = sum(o.square().sum() for o in (*out, layer.mem))
            total.backward()
            results.append(
                (*(o.detach() for o in out), layer.mem.detach(), leaf.grad, *(p.grad for p in layer.parameters()))
            )
        for a, b in zip(*results, strict=True):
            assert_bits_equal(a, b, f"call {i}")
    torch._dynamo.reset()
