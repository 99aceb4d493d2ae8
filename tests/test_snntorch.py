"""snnfast.snntorch is snntorch with other neurons: the same names and objects, and an error without it."""

import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import snntorch
from snntorch_checks import STATES

import snnfast.snntorch as snn
from snnfast import _backend, _snntorch_layers
from snnfast._neurons import LAYERS

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


def test_every_name_of_snntorch_is_here_and_the_same_object_but_for_the_fused_neurons() -> None:
    names = public(snntorch)
    assert {"Synaptic", "Alpha", "Lapicque", "SpikingNeuron", "LIF", "surrogate", "leaky", "BatchNormTT1d"} <= set(
        names
    )
    for name, expected in names.items():
        assert (getattr(snn, name) is expected) == (name not in STATES), name


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


def test_every_neuron_of_the_package_is_here_as_one_of_snntorchs() -> None:
    assert {layer.__name__: layer._fused for layer in _snntorch_layers.LAYERS} == {c.__name__: c for c in LAYERS}
    assert [layer.__name__ for layer in LAYERS] == list(STATES)
    for layer in _snntorch_layers.LAYERS:
        assert layer is getattr(snn, layer.__name__)
        assert layer._theirs is getattr(snntorch, layer.__name__)


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
    assert sorted(fresh["same"]) == sorted(STATES)


@pytest.mark.parametrize("version", ["0.9.4", "0.10", "0+unknown"])
def test_a_snntorch_that_is_too_old_is_an_import_error(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(
        ImportError, match=r"needs snntorch >= 1\.0\.0, but .*pip install \"snntorch>=1\.0\.0\""
    ) as found:
        _snntorch_layers._check_version()
    assert f"but {version} is installed" in str(found.value)


@pytest.mark.parametrize(
    ("version", "newer"),
    [("1.0.0", False), ("1.0.3", False), ("1", False), ("1.1.0", True), ("1.10", True), ("2.0.1rc1", True)],
)
def test_a_newer_one_is_imported_with_one_warning(version: str, newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(_backend, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            _snntorch_layers._check_version()
    assert len(caught) == newer
    for warning in caught:
        assert str(warning.message).startswith(f"snnfast.snntorch: snntorch {version} is newer than snntorch 1.0,")


def test_a_source_tree_of_snntorch_without_metadata_tells_its_version_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    _snntorch_layers._check_version()
    monkeypatch.setattr(snntorch, "__version__", "0.9.4")
    with pytest.raises(ImportError, match=r"but 0\.9\.4 is installed"):
        _snntorch_layers._check_version()
