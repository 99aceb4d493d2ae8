"""Which backend runs, who is told, and what the configuration says."""

import types
import warnings

import pytest
import torch
from fresh import fresh

import snnfast
from snnfast import functional
from snnfast._core import backend, ops

CURRENT = torch.rand(3, 4)


def test_an_extension_of_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for extension in (types.SimpleNamespace(), types.SimpleNamespace(resets=["zero", "subtract", "none"])):
        monkeypatch.setattr(ops, "extension", extension)
        with pytest.raises(ImportError, match=r"its resets are .* build it again"):
            ops.check_names("resets", ops.RESET_MECHANISMS)


def test_a_compiled_function_follows_the_block(monkeypatch: pytest.MonkeyPatch, nothing_compiled: None) -> None:
    monkeypatch.setattr(ops, "extension", None)  # "fused" is an error then, and "reference" is none
    monkeypatch.setattr(ops, "missing", "for this test")

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


@pytest.mark.needs_extension
def test_how_the_extension_was_built() -> None:
    facts = snnfast.config()
    assert facts["fused on cpu"] == "yes"
    for name in ("compiler", "built for torch", "CPU instructions", "CUDA compiler", "CUDA architectures"):
        assert facts[name]
    assert (facts["CUDA compiler"] != "none") == ops.extension.cuda


@pytest.mark.needs_extension
def test_a_build_without_cuda_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ops.extension.cuda_missing == "") == ops.extension.cuda
    monkeypatch.setattr(ops.extension, "cuda", False)
    monkeypatch.setattr(ops.extension, "cuda_missing", "no nvcc was found at install time")
    reason = "snnfast was built without CUDA: no nvcc was found at install time"
    assert snnfast.config()["fused on cuda"] == f"no: {reason}"
    assert snnfast.config()["fused on cpu"] == "yes"


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> str:
    """As installed without a compiler."""
    reason = "there was no compiler"
    monkeypatch.setattr(ops, "extension", None)
    monkeypatch.setattr(ops, "missing", reason)
    monkeypatch.setattr(backend, "_warned", set())
    return reason


def test_without_the_extension(no_extension: str) -> None:
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


def test_fused_without_the_extension(no_extension: str) -> None:
    with snnfast.use_backend("fused"), pytest.raises(RuntimeError, match=f"'fused'.*cpu.*{no_extension}"):
        functional.lif(CURRENT, beta=0.9)
    assert no_extension in snnfast.config()["fused on cpu"]
    with snnfast.use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.lif(CURRENT, beta=0.9)


# ---- imports, in processes of their own

BACKEND, EVENTS = (
    "import snnfast; print(snnfast.config()['backend'])",
    "import snnfast; print(snnfast.config()['events'])",
)
ELSEWHERE = """
import pathlib, sys
pathlib.Path.exists = lambda path: False
sys.platform = {!r}
import snnfast; print(snnfast.config()['fused on cpu'])
"""
SAID: dict[str, tuple[str, dict[str, str], str]] = {
    "unset": (BACKEND, {}, "auto"),
    "empty": (BACKEND, {"SNNFAST_BACKEND": "", "SNNFAST_ISA": ""}, "auto"),
    **{name: (BACKEND, {"SNNFAST_BACKEND": name}, name) for name in ("auto", "fused", "reference")},
    "events": (EVENTS, {"SNNFAST_EVENTS": "1"}, "yes"),
    "no events": (EVENTS, {"SNNFAST_EVENTS": "0"}, "no: spikes go to linear layers as numbers"),
    "empty events": (EVENTS, {"SNNFAST_EVENTS": ""}, "yes"),
    "windows": (ELSEWHERE.format("win32"), {}, "no: snnfast has kernels for Linux only, and this is win32"),
    "mac": (ELSEWHERE.format("darwin"), {}, "no: snnfast has kernels for Linux only, and this is darwin"),
    "no kernels": (ELSEWHERE.format("linux"), {}, "no: snnfast was installed without its compiled kernels"),
}


@pytest.mark.parametrize("case", SAID)
def test_the_configuration_of_a_process(case: str) -> None:
    code, variables, said = SAID[case]
    assert fresh(code, **variables).startswith(said)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SNNFAST_BACKEND", r"SNNFAST_BACKEND: expected 'auto', 'fused' or 'reference', got 'mmx'"),
        ("SNNFAST_EVENTS", r"SNNFAST_EVENTS: expected 0 or 1, got 'mmx'"),
        pytest.param("SNNFAST_ISA", "SNNFAST_ISA: this .* kernels for .*'mmx'", marks=pytest.mark.needs_extension),
    ],
)
def test_a_wrong_variable_is_an_error_at_import(variable: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh("import snnfast", **{variable: "mmx"})


def test_what_an_import_does_not_do() -> None:
    """It prints nothing, needs neither numpy nor snnTorch, runs no compiler and no backward pass (of threads)."""
    code = """
import io, sys, warnings, torch
warnings.simplefilter("error")
sys.stderr = io.StringIO()
torch.autograd.grad = torch.Tensor.backward = None
sys.modules["numpy"] = sys.modules["snntorch"] = None
before = "torch._dynamo" in sys.modules
import snnfast
assert before or "torch._dynamo" not in sys.modules
assert not sys.stderr.getvalue()
assert snnfast.losses.accuracy_rate(torch.ones(2, 1, 3), torch.tensor([0])) == 1.0
snnfast.reset(snnfast.Leaky(0.9))
"""
    assert fresh(code) == ""


@pytest.mark.parametrize("mode", ["torch.inference_mode()", "FakeTensorMode()", "torch.device('meta')"])
def test_an_import_under_any_mode(mode: str) -> None:
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {mode}: import snnfast
print(snnfast.Leaky(0.9).unroll(torch.rand(3, 2, 4))[0].device)
if "meta" in {mode!r}:
    print(snnfast.RLeaky(0.9, linear_features=4).unroll(torch.rand(3, 2, 4))[0].device)
"""
    assert set(fresh(code).split()) == {"cpu"}


def test_the_module_prints_what_show_config_prints(capsys: pytest.CaptureFixture[str]) -> None:
    snnfast.show_config()
    shown = capsys.readouterr().out
    found = fresh("import runpy, sys; sys.argv[:] = ['snnfast']; runpy.run_module('snnfast', run_name='__main__')")
    names = ("python", "backend", "fused on cpu", "fused on cuda", "threads")
    for text in (shown, found):
        for fact in (snnfast.__version__, torch.__version__, *names):
            assert fact in text
    facts = snnfast.config()
    assert len(shown.splitlines()) == len(facts)
    assert all(value in shown for value in facts.values())


@pytest.mark.parametrize(
    "statement",
    [
        "import snnfast.snntorch._convert", "import snnfast.snntorch._drop_ins", "import snnfast.snntorch",
        "import snnfast; snnfast.snntorch.Leaky", "from snnfast import snntorch",
        "import snnfast.snntorch.functional.probe", "from snnfast.snntorch.functional import quant",
        "import snnfast.snntorch.spikegen as spikegen", "from snnfast.snntorch._convert import Report",
    ],
)  # fmt: skip
def test_every_module_can_be_the_first_to_be_imported(statement: str) -> None:
    fresh(statement)
