"""Which backend runs, who is told, and what the configuration says."""

import os
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import snnfast
from snnfast import _backend, _ops, functional

ROOT = Path(__file__).parents[1]
CURRENT = torch.rand(3, 4)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    arguments = code.split() if code.startswith("-m") else ["-c", code]
    own = ("SNNFAST_BACKEND", "SNNFAST_EVENTS")
    environment = {name: value for name, value in os.environ.items() if name not in own} | variables
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def test_blocks_choose_the_backend_and_restore_it() -> None:
    outside = snnfast.config()["backend"]
    with snnfast.use_backend("reference"):
        assert snnfast.config()["backend"] == "reference"
        with snnfast.use_backend("fused"):
            assert snnfast.config()["backend"] == "fused"
        assert snnfast.config()["backend"] == "reference"
    assert snnfast.config()["backend"] == outside


def test_a_block_left_by_an_exception_restores_the_backend() -> None:
    outside = snnfast.config()["backend"]
    with pytest.raises(ZeroDivisionError), snnfast.use_backend("reference"):
        raise ZeroDivisionError
    assert snnfast.config()["backend"] == outside


def test_a_block_holds_for_its_own_thread() -> None:
    seen: list[str] = []
    outside = snnfast.config()["backend"]
    with snnfast.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(snnfast.config()["backend"]))
        thread.start()
        thread.join()
    assert seen == [outside]


def test_blocks_that_overlap_in_several_threads_leave_the_backend_as_it_was() -> None:
    outside = snnfast.config()["backend"]
    entered, left = threading.Barrier(3), threading.Barrier(3)

    def work(name: str) -> None:
        with snnfast.use_backend(name):
            entered.wait()  # all are inside before the first leaves
            seen.append(snnfast.config()["backend"] == name)
        left.wait()

    for _ in range(20):
        seen: list[bool] = []
        threads = [threading.Thread(target=work, args=(name,)) for name in ("reference", "fused", "reference")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [True] * 3
        assert snnfast.config()["backend"] == outside
        assert _backend._setting.value == outside


def test_what_torch_compile_sees_is_the_innermost_block() -> None:
    with snnfast.use_backend("reference"), snnfast.use_backend("fused"):
        with snnfast.use_backend("reference"):
            pass
        assert _backend._setting.value == _backend.current_backend() == "fused"


def test_importing_runs_no_backward_pass_and_works_under_any_mode() -> None:
    """The first backward pass starts PyTorch's threads, and with them CUDA."""
    found = run(
        "import torch; torch.autograd.grad = torch.Tensor.backward = None\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with torch.inference_mode(), FakeTensorMode(): import snnfast\n"
        "print('imported')"
    )
    assert (found.stdout.strip(), found.returncode) == ("imported", 0), found.stderr


def test_an_extension_built_from_other_sources_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for extension in (types.SimpleNamespace(), types.SimpleNamespace(resets=["zero", "subtract", "none"])):
        monkeypatch.setattr(_ops, "extension", extension)
        with pytest.raises(ImportError, match=r"its resets are .* build it again"):
            _ops.check_names("resets", _ops.RESET_MECHANISMS)


def test_a_compiled_function_follows_the_block_that_it_is_called_in_or_contains(
    monkeypatch: pytest.MonkeyPatch, no_dynamo_left: None
) -> None:
    monkeypatch.setattr(_ops, "extension", None)  # "fused" is an error then, and "reference" is none
    monkeypatch.setattr(_ops, "missing", "for this test")

    def inside(x: torch.Tensor) -> torch.Tensor:
        with snnfast.use_backend("reference"):
            return functional.lif(x, beta=0.9)[0]

    x = torch.rand(5, 2)
    compiled = torch.compile(lambda x: functional.lif(x, beta=0.9)[0], backend="eager")
    for _ in range(2):
        with snnfast.use_backend("reference"):
            expected = compiled(x)
        with snnfast.use_backend("fused"):
            with pytest.raises(RuntimeError, match="'fused' is not available"):
                compiled(x)
            assert torch.equal(torch.compile(inside, backend="eager")(x), expected)
            assert snnfast.config()["backend"] == "fused"


@pytest.fixture
def no_dynamo_left() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["auto", "fused", "reference"])
def test_the_environment_sets_the_backend(name: str) -> None:
    found = run("import snnfast; print(snnfast.config()['backend'])", SNNFAST_BACKEND=name)
    assert (found.stdout.strip(), found.returncode) == (name, 0), found.stderr


def test_the_backend_is_auto_where_nothing_is_said() -> None:
    assert run("import snnfast; print(snnfast.config()['backend'])").stdout.strip() == "auto"


def test_an_empty_variable_counts_as_unset() -> None:
    found = run("import snnfast; print(snnfast.config()['backend'])", SNNFAST_BACKEND="", SNNFAST_ISA="")
    assert (found.stdout.strip(), found.returncode) == ("auto", 0), found.stderr


@pytest.mark.needs_extension
def test_a_wrong_instruction_set_is_an_error_at_import_that_names_the_variable() -> None:
    found = run("import snnfast", SNNFAST_ISA="mmx")
    assert found.returncode != 0
    assert "ValueError: SNNFAST_ISA: this processor has kernels for" in found.stderr
    assert "'mmx'" in found.stderr


def test_a_wrong_backend_in_the_environment_is_an_error_that_names_the_variable() -> None:
    found = run("import snnfast", SNNFAST_BACKEND="cuda")
    assert found.returncode != 0
    assert "ValueError: SNNFAST_BACKEND" in found.stderr
    assert "'cuda'" in found.stderr


@pytest.mark.parametrize(("value", "told"), [("0", "no"), ("1", "yes"), ("", "yes")])
def test_the_environment_sets_whether_spikes_go_as_bits(value: str, told: str) -> None:
    found = run("import snnfast; print(snnfast.config()['events'])", SNNFAST_EVENTS=value)
    assert (found.stdout.partition(":")[0].strip(), found.returncode) == (told, 0), found.stderr


def test_another_value_for_it_is_an_error_that_names_the_variable() -> None:
    found = run("import snnfast", SNNFAST_EVENTS="off")
    assert found.returncode != 0
    assert "ValueError: SNNFAST_EVENTS: expected 0 or 1, got 'off'" in found.stderr


def test_the_module_prints_what_show_config_prints(capsys: pytest.CaptureFixture[str]) -> None:
    snnfast.show_config()
    shown, found = capsys.readouterr().out, run("-m snnfast")
    assert found.returncode == 0, found.stderr
    for text in (shown, found.stdout):
        for fact in (
            snnfast.__version__,
            torch.__version__,
            "python",
            "backend",
            "fused on cpu",
            "fused on cuda",
            "threads",
        ):
            assert fact in text
    facts = snnfast.config()
    assert len(shown.splitlines()) == len(facts)
    assert all(value in shown for value in facts.values())


@pytest.mark.needs_extension
def test_show_config_says_how_the_extension_was_built() -> None:
    facts = snnfast.config()
    assert facts["fused on cpu"] == "yes"
    for name in ("compiler", "built for torch", "CPU instructions", "CUDA compiler", "CUDA architectures"):
        assert facts[name]
    assert (facts["CUDA compiler"] != "none") == _ops.extension.cuda


@pytest.mark.needs_extension
def test_a_build_without_cuda_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (_ops.extension.cuda_missing == "") == _ops.extension.cuda
    monkeypatch.setattr(_ops.extension, "cuda", False)
    monkeypatch.setattr(_ops.extension, "cuda_missing", "no nvcc was found at install time")
    reason = "snnfast was built without CUDA: no nvcc was found at install time"
    assert snnfast.config()["fused on cuda"] == f"no: {reason}"
    assert snnfast.config()["fused on cpu"] == "yes"


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> str:
    """As installed without a compiler."""
    reason = "there was no compiler"
    monkeypatch.setattr(_ops, "extension", None)
    monkeypatch.setattr(_ops, "missing", reason)
    monkeypatch.setattr(_backend, "_warned", set())
    return reason


def test_without_the_extension_everything_runs_after_one_warning(no_extension: str) -> None:
    with snnfast.use_backend("auto"):
        with pytest.warns(UserWarning, match=f"slow reference path on cpu: {no_extension}") as caught:
            spk, mem = functional.lif(CURRENT, beta=0.9)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            functional.lif(CURRENT, beta=0.9)
            snnfast.Leaky(0.9).unroll(CURRENT)
    expected = snnfast.reference.lif(CURRENT, beta=0.9)
    assert torch.equal(spk, expected[0])
    assert torch.equal(mem, expected[1])


def test_without_the_extension_the_fused_backend_is_an_error_that_says_why(no_extension: str) -> None:
    with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=f"'fused'.*cpu.*{no_extension}"):
        functional.lif(CURRENT, beta=0.9)
    assert no_extension in snnfast.config()["fused on cpu"]


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("win32", "snnfast has kernels for Linux only, and this is win32"),
        ("darwin", "snnfast has kernels for Linux only, and this is darwin"),
        ("linux", "snnfast was installed without its compiled kernels"),
    ],
)
def test_a_system_without_kernels_is_told_from_an_installation_without_them(system: str, reason: str) -> None:
    # In a process of its own, with neither the file nor the name of this system.
    found = run(
        "import pathlib, sys, torch\n"
        "pathlib.Path.exists = lambda path: False\n"
        f"sys.platform = {system!r}\n"
        "import snnfast; print(snnfast.config()['fused on cpu'])"
    )
    assert found.stdout.startswith(f"no: {reason}"), found.stderr


def test_without_the_extension_the_reference_backend_does_not_warn(no_extension: str) -> None:
    with snnfast.use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.lif(CURRENT, beta=0.9)


def test_a_callable_that_the_kernels_cannot_follow_warns_once_that_it_is_slow(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_backend, "_warned", set())

    def fire(z: torch.Tensor) -> torch.Tensor:
        return (z > 0.5).to(z.dtype)  # another step than that of the kernels' reset

    current = CURRENT.to(device)
    with pytest.raises(RuntimeError, match=r"'fused'.*spike_grad"):
        functional.lif(current, beta=0.9, spike_grad=fire, reset_delay=False)
    with snnfast.use_backend("auto"), pytest.warns(UserWarning, match="spike_grad") as caught:
        functional.lif(current, beta=0.9, spike_grad=fire, reset_delay=False)
    assert caught[0].filename == __file__
    with snnfast.use_backend("auto"), warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.lif(current, beta=0.9, spike_grad=fire, reset_delay=False)


def test_importing_prints_and_warns_nothing() -> None:
    found = run("import warnings; warnings.simplefilter('error'); import snnfast")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_importing_does_not_import_the_compiler() -> None:
    found = run("import torch, sys; before = 'torch._dynamo' in sys.modules; import snnfast; "
                "print(before or 'torch._dynamo' not in sys.modules)")  # fmt: skip
    assert found.stdout.strip() == "True"
