"""Fixtures: where the fused kernels run, which backend runs, and the same random numbers for every test."""

import gc
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

# Read when torch is imported. Several processes have more threads than there are cores: one that spins while it waits
# takes the time of those that it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

from snnfast import use_backend
from snnfast._core import backend as _backend
from snnfast._core import linear, ops
from snnfast._program.cuda import Engine
from snnfast._program.engines import ENGINES
from snnfast.compiler import stages


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_extension") and ops.extension is None:
        skip_unless_required(ops.missing, "SNNFAST_REQUIRE_EXT")


def pytest_collection_finish() -> None:
    """Set aside what is there before the first test: a search for garbage would go through half a million objects."""
    gc.collect()
    gc.freeze()


def skip_unless_required(reason: str | None, variable: str) -> NoReturn:
    reason = str(reason)
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning has come yet, and snnTorch's list has no neuron of another test; few rows are multiplied as bits."""
    monkeypatch.setattr(_backend, "_warned", set())
    monkeypatch.setattr(linear, "LEAST_ROWS", 1)
    if "snntorch" in sys.modules:
        monkeypatch.setattr(sys.modules["snntorch"].SpikingNeuron, "instances", [])


@pytest.fixture(autouse=True)
def graphs_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a graph takes to make on this machine decides nothing that a test looks at."""
    monkeypatch.setattr("snnfast.compiler.choice._FREE", float("inf"))


@pytest.fixture(autouse=True)
def forms_are_checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each form after each stage of the compiler; a loop with a fault there would run as it is."""
    check, faults = stages.check, []

    def checked(form: Any) -> None:
        try:
            check(form)
        except Exception as error:
            faults.append(error)
            raise

    monkeypatch.setattr(stages, "CHECKS", True)
    monkeypatch.setattr(stages, "check", checked)
    yield
    assert not faults


@pytest.fixture(scope="session")
def emulator() -> None:
    """The CUDA sources built for the CPU, registered as ``torch.ops.snnfast_emulated``."""
    from emulator.build import load

    try:
        load()
    except RuntimeError as error:
        skip_unless_required(str(error), "SNNFAST_REQUIRE_EMULATOR")


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.needs_extension),
        pytest.param("emulated", marks=[pytest.mark.needs_extension, pytest.mark.emulated]),
        pytest.param("cuda", marks=[pytest.mark.needs_extension, pytest.mark.gpu]),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where the fused kernels run; the backend is "fused" for the duration of the test."""
    if request.param == "cuda" and not torch.cuda.is_available():
        skip_unless_required("torch sees no CUDA device", "SNNFAST_REQUIRE_GPU")
    if request.param == "cuda" and not ops.extension.cuda:
        skip_unless_required("snnfast was built without CUDA", "SNNFAST_REQUIRE_EXT")
    if request.param == "emulated":
        request.getfixturevalue("emulator")
        ops.use("snnfast_emulated")
        from emulator.build import kernel_of

        monkeypatch.setitem(ENGINES, "cpu", Engine(kernel_of, least=1))  # shapes of tests are small
    try:
        with use_backend("fused"):
            yield torch.device("cuda" if request.param == "cuda" else "cpu")
    finally:
        if request.param == "emulated":
            monkeypatch.undo()  # now: an op that a test has replaced would else become the emulated one again
            ops.use(ops.NAMESPACE)


@pytest.fixture(params=["reference", pytest.param("fused", marks=pytest.mark.needs_extension)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn, on the CPU."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of instructions that this processor has, in use."""
    if request.param not in ops.extension.isa_available():
        pytest.skip(f"the kernels are not built for {request.param}, or the processor has not got it")
    used = ops.extension.isa()
    ops.extension.set_isa(request.param)
    yield request.param
    ops.extension.set_isa(used)


@pytest.fixture
def stream_bytes() -> Iterator[Callable[[int], int]]:
    """Sets from how many bytes calls of the CPU kernels write past the caches."""
    default = ops.extension.set_stream_bytes(1 << 60)
    yield ops.extension.set_stream_bytes
    ops.extension.set_stream_bytes(default)


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Random images in place of MNIST, for the benchmarks."""
    from benchmarks import mnist

    images, labels = torch.rand(256, 784), torch.randint(10, (256,))
    found = mnist.Digits(images, labels, images, labels)
    monkeypatch.setattr(mnist, "load", lambda: found)
    return found


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder as torchvision stores MNIST, with a few images: a bright bar whose place tells the class."""
    raw = tmp_path / "dataset" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("train", 160), ("t10k", 40)):
        labels = torch.arange(size) % 10
        rows = torch.arange(28) - 2 * labels[:, None]
        images = 255 * ((rows >= 0) & (rows < 3))[..., None].expand(size, 28, 28)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + values.dim()}I", 0x800 + values.dim(), *values.shape)
            (raw / f"{split}-{kind}-ubyte").write_bytes(header + values.to(torch.uint8).numpy().tobytes())
    return tmp_path / "dataset"


@pytest.fixture
def run_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run an example with these arguments and constants in an empty folder; returns what it prints.

    MNIST can't be downloaded there, so that it trains on scikit-learn's digits, unless it is given a folder.
    """
    for package in ("matplotlib", "sklearn", "snntorch"):
        pytest.importorskip(package)
    monkeypatch.setattr(pytest.importorskip("torchvision.datasets").MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.delenv("SNNFAST_DATA", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Networks this small are faster on one.

    def run(name: str, *args: str, **constants: object) -> str:
        module = import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        module.main(args)
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """torch.compile begins anew, and so do its counters."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those of the graphs that are made from now on."""
    merge, made = import_module("snnfast.compiler.merge"), []

    def watched(gm: torch.fx.GraphModule, report_of: Callable[[torch.fx.GraphModule], Any] = merge._report_of) -> Any:
        made.append(report_of(gm))
        return made[-1]

    monkeypatch.setattr(merge, "_report_of", watched)
    return made


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    """Seed every test alike, and leave the generators and the number of threads as they were."""
    state, threads = (random.getstate(), np.random.get_state(), torch.get_rng_state()), torch.get_num_threads()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    torch.set_num_threads(threads)
