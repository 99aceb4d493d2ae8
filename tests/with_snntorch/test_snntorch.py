"""snnfast.snntorch is snntorch with other neurons: the same names and objects, and an error without it."""

import ast
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import snntorch
import torch
from fresh import fresh
from snntorch import functional as SF  # noqa: N812
from snntorch_checks import STATES
from torch import Tensor, nn

import snnfast
import snnfast.snntorch as snn
from snnfast.neurons import LAYERS
from snnfast.snntorch import _drop_ins

# ---- names

OWN = ("spikegen",)  # submodules of snnfast's own


def modules() -> list[str]:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # spikevision announces its end
        names = [module.name for module in pkgutil.walk_packages(snntorch.__path__, "snntorch.")]
    return [name for name in names if not any(part.startswith("_") for part in name.split(".")[2:])]


def imported(name: str) -> ModuleType:
    """A module of snnTorch; a skip where it needs a package that isn't installed."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # snntorch.backprop announces its end
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{name} needs {error.name}, which is not installed")


def public(module: ModuleType) -> dict[str, object]:
    return {n: o for n, o in vars(module).items() if not n.startswith("_")}


def test_every_name_of_snntorch() -> None:
    names = public(snntorch)
    assert {"Synaptic", "Alpha", "SpikingNeuron", "LIF", "surrogate", "leaky", "BatchNormTT1d"} <= names.keys()
    for name, expected in names.items():
        assert (getattr(snn, name) is expected) == (name not in {*STATES, *OWN}), name


@pytest.mark.parametrize("name", [name for name in modules() if name not in {f"snntorch.{own}" for own in OWN}])
def test_a_submodule_is_snntorchs_own(name: str) -> None:
    """Whether it is reached as an attribute, by its path, or by a from-import; it keeps its name."""
    module = imported(name)
    outer, _, inner = name.rpartition(".")
    found: Any = snn
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    space: dict[str, Any] = {}
    exec(f"import snnfast.{name} as by_path\nfrom snnfast.{outer} import {inner} as by_from", space)
    assert found is space["by_path"] is space["by_from"] is module is sys.modules[name]
    assert "." in outer or inner.startswith("_") or inner in dir(snn)
    assert module.__name__ == name
    assert module.__spec__ is not None
    assert module.__spec__.name == name
    for member, expected in public(module).items():
        exec(f"from snnfast.{name} import {member} as found", space)
        assert space["found"] is expected, member


@pytest.mark.parametrize("name", ["nothing", "functional.nothing", "utils.nothing"])
def test_a_submodule_that_snntorch_lacks(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"No module named 'snnfast\.snntorch\.{name}'"):
        importlib.import_module(f"snnfast.snntorch.{name}")


def test_all_dir_and_version() -> None:
    assert snn.__version__ == snntorch.__version__ == importlib.metadata.version("snntorch")
    assert len(set(snn.__all__)) == len(snn.__all__)
    assert set(snn.__all__) <= set(dir(snn))
    assert {"Leaky", "convert", "revert", "Synaptic", "functional", "spikegen", "__version__"} <= set(dir(snn))
    for name in dir(snn):
        assert name in ("backprop", "export_nir", "import_nir", "spikeplot", "spikevision") or hasattr(snn, name), name


def test_editors_which_run_nothing_know_the_names_of_snntorch() -> None:
    block = next(node for node in ast.parse(inspect.getsource(snn)).body if isinstance(node, ast.If))
    found: set[str] = {"Report", "convert", "revert", "__version__"}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            found |= set(public(importlib.import_module(str(node.module)))) if alias.name == "*" else {alias.name}
    assert {name for name in dir(snn) if not name.startswith("__")} <= found


@pytest.mark.parametrize("name", ["Leeky", "no.such", "functional.loss", "__wrapped__"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(AttributeError, match=r"snnfast\.snntorch.*no attribute"):
        getattr(snn, name)
    if name.isidentifier():
        with pytest.raises(ImportError):
            exec(f"from snnfast.snntorch import {name}")


def test_every_neuron_of_the_package() -> None:
    assert {layer.__name__: layer._fused for layer in _drop_ins.LAYERS} == LAYERS
    assert LAYERS.keys() == STATES.keys()
    for layer in _drop_ins.LAYERS:
        assert layer is getattr(snn, layer.__name__)
        assert layer._theirs is getattr(snntorch, layer.__name__)


# ---- being there or not


ALONE = """
import sys, torch, snnfast
lif = snnfast.Leaky(0.9, init_hidden=True, learn_beta=True)
lif.unroll(torch.rand(3, 2, 5))[0].sum().backward()
net = torch.nn.Sequential(torch.nn.Linear(5, 5), lif)
snnfast.MultiStep.from_sequential(net)(torch.rand(3, 2, 5))
assert not hasattr(snnfast, "nothing")
assert not [name for name in sys.modules if "snntorch" in name]

def error():
    try:
        snnfast.snntorch
    except ImportError as error:
        found = [type(error).__name__, str(error), error.name, error.__suppress_context__]
    for name in [n for n in sys.modules if "snntorch" in n]:
        del sys.modules[name]
    return found

sys.modules["snntorch"] = None
kind, message, name, hidden = error()
needs = 'snnfast.snntorch needs snntorch >= 1.0.0, which is not installed: pip install "snntorch>=1.0.0"'
assert (kind, message, name, hidden) == ("ModuleNotFoundError", needs, "snntorch", True)
sys.modules["snntorch._layers"] = None  # a broken one is reported as it is
kind, message, name, _ = error()
assert (kind, name) == ("ModuleNotFoundError", "snntorch._layers") and "pip" not in message
snn = snnfast.snntorch  # is what imports snnTorch
import snntorch
snn.spikegen.rate, snn.functional.mse_count_loss, snn.utils.reset
assert snn.functional is snntorch.functional and snn.utils is snntorch.utils
for name in ("functional", "utils", "spikegen"):
    delattr(snntorch, name)
ours, theirs = {}, {}
exec("from snnfast.snntorch import *", ours)
exec("from snntorch import *", theirs)
assert ours.keys() - theirs.keys() == {"Report", "convert", "revert"} and not theirs.keys() - ours.keys()
print(*sorted(name for name in theirs if name != "__builtins__" and ours[name] is not theirs[name]))
"""


def test_snntorch_is_imported_when_it_is_asked_for() -> None:
    """And an error says what to install; a star import has what snnTorch's has."""
    assert fresh(ALONE).split() == sorted(STATES)


@pytest.mark.parametrize(
    ("version", "newer"),
    [("0.9.4", None), ("0.10", None), ("0+unknown", None), ("1.0.0", False), ("1.0.3", False), ("1", False),
     ("1.1.0", True), ("1.10", True), ("2.0.1rc1", True)],
)  # fmt: skip
@pytest.mark.parametrize("metadata", [True, False], ids=["installed", "source tree"])
def test_versions(version: str, newer: bool | None, metadata: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one is an error, a newer one is imported with one warning. A source tree tells its version itself."""

    def installed(name: str) -> str:
        if metadata:
            return version
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setattr(snntorch, "__version__", version)
    with warnings.catch_warnings(record=True, action="always") as caught:
        for _ in range(2):
            if newer is None:
                message = rf">= 1\.0\.0, but {re.escape(version)} .*pip install \"snntorch>="
                with pytest.raises(ImportError, match=message):
                    _drop_ins._check_version()
            else:
                _drop_ins._check_version()
    assert len(caught) == bool(newer)
    for warning in caught:
        assert str(warning.message).startswith(f"snnfast.snntorch: snntorch {version} is newer than snntorch 1.0,")


# ---- the loop of snntorch.backprop, written out as in docs/recipes.md


@pytest.mark.needs_extension
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(("name", "K"), [("BPTT", 9), ("TBPTT", 3), ("TBPTT", 4)])
def test_the_recipe_has_the_losses_and_weights_of_backprop(name: str, K: int) -> None:
    backprop, losses = imported("snntorch.backprop"), snnfast.losses.ce_rate_loss()
    generator, T = torch.Generator().manual_seed(0), 9
    loader = [(3 * torch.rand(5, 12, generator=generator), torch.randint(4, (5,), generator=generator))] * 3

    @snnfast.compile
    def loss_of(net: nn.Module, part: Tensor, targets: Tensor) -> Tensor:
        spk_rec = [net(part[step])[0] for step in range(part.size(0))]
        return losses(torch.stack(spk_rec), targets)

    def by_hand(net: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        total = 0.0
        for data, targets in loader:
            snnfast.reset(net)
            for part in data.expand(T, *data.shape).split(K):
                loss = loss_of(net, part, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                snn.Leaky.detach_hidden()
                total += loss.item() * (K / T if len(part) == K else 1 / len(part))  # as snnTorch weighs them
        return total / len(loader)

    found = []
    for way in ("theirs", "by hand"):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(12, 20), snn.Leaky(0.9, init_hidden=True),
            nn.Linear(20, 4), snn.Leaky(0.9, init_hidden=True, output=True),
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if way == "by hand":
            loss = by_hand(net, optimizer)
        else:
            by_theirs = functools.partial(getattr(backprop, name), net, loader, optimizer, SF.ce_rate_loss())
            loss = by_theirs(num_steps=T, time_var=False, **({"K": K} if name == "TBPTT" else {})).item()
        found.append((torch.tensor(loss), *(p.detach() for p in net.parameters())))
    torch.testing.assert_close(found[1], found[0])
