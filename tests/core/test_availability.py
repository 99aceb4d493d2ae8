"""Where the kernels can't run: which card, driver, PyTorch or library; what is said, and to whom."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fresh import fresh

import snnfast
from snnfast._core import backend, library, ops

OLD_DRIVER = "its driver is one for CUDA 12.2, and the kernels need one for CUDA 13 or newer"


class Cards:
    """A build with CUDA on a machine with cards, the second of which has too old a driver."""

    cuda = True
    cuda_architectures = "8.0;9.0;12.0+PTX"
    cuda_compiler = "nvcc 13.0.88"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.asked: list[int] = []
        monkeypatch.setattr(ops, "extension", self)
        monkeypatch.setattr(backend, "_asked", {})
        for name, replacement in {
            "is_available": lambda: True,
            "current_device": lambda: self.current,
            "device": self.chosen,
            "get_device_capability": lambda index: (7, 0),
        }.items():
            monkeypatch.setattr(torch.cuda, name, replacement)

    @contextmanager
    def chosen(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before

    def cuda_unavailable(self) -> str | None:
        self.asked.append(self.current)
        return OLD_DRIVER if self.current == 1 else None


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    return Cards(monkeypatch)


def test_a_card_is_asked_once(cards: Cards) -> None:
    why = f"{OLD_DRIVER} (a card of compute capability 7.0; kernels for 8.0;9.0;12.0+PTX by nvcc 13.0.88)"
    for _ in range(3):
        assert backend.unavailable(torch.device("cuda:0")) is None
        assert backend.unavailable(torch.device("cuda")) is None
        assert backend.unavailable(torch.device("cuda:1")) == why
    assert (cards.asked, cards.current) == ([0, 1], 0)


def on(device: str) -> Any:
    """All that is asked of a tensor there."""
    return SimpleNamespace(is_cpu=False, device=torch.device(device))


def test_a_card_that_cannot_run_the_kernels(cards: Cards) -> None:
    with snnfast.use_backend("auto"):
        assert backend.use_fused(on("cuda:0"))
        with pytest.warns(UserWarning, match=f"slow reference path on cuda:1: {OLD_DRIVER}") as caught:
            assert not backend.use_fused(on("cuda:1"))
        assert len(caught) == 1
        with warnings.catch_warnings(action="error"):
            assert not backend.use_fused(on("cuda:1"))
    with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=f"'fused'.*cuda:1: {OLD_DRIVER}"):
        backend.use_fused(on("cuda:1"))


def test_the_answer_of_a_card_is_a_constant(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler must see no card, for which it would look for more than is there.
    to_us = "snnfast._core.backend"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sys._getframe(1).f_globals["__name__"] == to_us)
    torch._dynamo.reset()

    def told(x: torch.Tensor) -> torch.Tensor:
        first, second = (backend.unavailable(torch.device("cuda", index)) for index in (0, 1))
        return x + (10 if first is None else 20) + (1 if second is None else 2)

    compiled = torch.compile(told, backend="eager", fullgraph=True)
    for _ in range(2):
        assert compiled(torch.zeros(1)).item() == 12
    assert cards.asked == [0, 1]


def test_each_card_has_a_line_of_its_own(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    for name in ("compiler", "torch_target", "vendor", "isa", "isa_available"):
        monkeypatch.setattr(cards, name, "baseline" if "isa" not in name else lambda: ["baseline"], raising=False)
    facts = snnfast.config()
    assert facts["fused on cuda"] == facts["fused on cuda:0"].removeprefix("Card 0: ") == "yes"
    assert facts["fused on cuda:1"].startswith(f"Card 1: no: {OLD_DRIVER}")


def test_rocm(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    reason = "this PyTorch is a build for ROCm 6.4, and the kernels are for CUDA"
    assert backend.unavailable(torch.device("cuda:0")) == reason
    assert cards.asked == []


@pytest.mark.needs_extension
def test_no_driver_or_no_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    if ops.extension.cuda:
        assert ops.extension.cuda_unavailable() == "there is no driver of NVIDIA's"
    else:
        with pytest.raises(RuntimeError, match="snnfast was built without CUDA"):
            ops.extension.cuda_unavailable()


def test_a_library_that_lacks_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "OPS", (*ops.OPS, "an_op_of_tomorrow"))
    with pytest.raises(ImportError, match=r"_kernels\.\w+ is older .*no op an_op_of_tomorrow; build it again: .*pip"):
        ops.check_ops(library.PATH)


@pytest.mark.needs_extension
def test_a_library_that_lacks_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(library._FUNCTIONS, "of_tomorrow", (None, ()))
    with pytest.raises(ImportError, match=r"_kernels\.\w+ .* older ones: .*snnfast_of_tomorrow; build it again: .*pip"):
        library.Library(library.PATH)


@pytest.mark.needs_extension
def test_a_library_for_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = json.loads
    monkeypatch.setattr(library.json, "loads", lambda text: {**loads(text), "isa_available": []})
    with pytest.raises(ImportError, match=r"built for another processor than this one; build it again: .*pip"):
        library.Library(library.PATH)


@pytest.mark.needs_extension
def test_every_op_is_looked_for() -> None:
    code = (
        f"import torch; torch.ops.load_library({str(library.PATH)!r})\n"
        "print(*(name[9:] for name in torch._C._dispatch_get_all_op_names() if name.startswith('snnfast::')))"
    )
    assert sorted(fresh(code).split()) == sorted(ops.names_of_ops())


# ---- one library fits every Python and says why it cannot be loaded


@pytest.mark.needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_library_needs_no_symbol_of_python() -> None:
    command = ["nm", "-D", "--undefined-only", ops.extension.path]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "aoti_torch_empty_strided" in names
    assert not [name for name in names if name.startswith(("Py", "_Py"))]


def test_a_file_that_cannot_be_loaded_is_an_import_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "_kernels.so").write_text("no library")
    message = rf"loaded with torch {re.escape(torch.__version__)}: .*_kernels\.so: .*torch 2\.11 or newer"
    with pytest.raises(ImportError, match=message):
        library.Library(tmp_path / "_kernels.so")


def test_a_library_without_the_functions_is_an_import_error_that_says_so() -> None:
    folder = Path(torch.__file__).parent / "lib"
    (other,) = (path for name in ("libc10.so", "libc10.dylib", "c10.dll") for path in folder.glob(name))
    with pytest.raises(ImportError, match=r"c10\.\w+ was built from other sources than .*snnfast_facts"):
        library.Library(other)


@pytest.mark.needs_extension
@pytest.mark.thorough
def test_a_wrong_instruction_set_after_the_import_is_an_error() -> None:
    code = (
        "import os, snnfast; os.environ['SNNFAST_ISA'] = 'mmx'\n"
        "try: snnfast.config()\nexcept RuntimeError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert "SNNFAST_ISA: 'mmx' is not available" in done.stdout, done.stderr
