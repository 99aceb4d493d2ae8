"""Programs: what the kernels make of a step function is what the function does in a loop."""

import contextlib
import ctypes
import random
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gradient_checks import Operators
from helpers import (
    RESETS,
    SURROGATES,
    Case,
    assert_bits_equal,
    emulated_if_thorough,
    every_other,
    fused,
    inputs,
    layer_of,
    leaves,
)
from neuron_kinds import KINDS
from random_steps import RandomStep
from test_own_neurons import OWN, made
from torch import Tensor

from snnfast import use_backend
from snnfast._program import code as program_code
from snnfast._program import cuda
from snnfast._program import nvrtc as nvrtc_of_programs
from snnfast._program.cuda import Engine
from snnfast._program.engines import ENGINES
from snnfast._program.instructions import NUMBERS
from snnfast._program.nvrtc import Launch, NoKernelError
from snnfast._program.run import Program
from snnfast._program.source import CHECKPOINT, backward_source
from snnfast._program.trace import trace
from snnfast._unroll.graph import elementwise_step

pytestmark = pytest.mark.needs_extension
CPU = torch.device("cpu")
SHAPES = ((1,), (5,), (16,), (3, 7), (2, 3, 50), (300,), (257,))


def call(
    step: Any, seed: int, dtype: torch.dtype, backend: str, device: torch.device = CPU
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results of a call of a random step, and the gradients with respect to all that it is given."""
    made = random.Random(seed)
    shape, steps = made.choice(SHAPES), made.choice((1, 2, 5, 16, 17, 33))
    record, constant, ragged, counts = (made.random() < 0.25 for _ in range(4))
    g = torch.Generator().manual_seed(seed)

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype).requires_grad_(made.random() < 0.8)

    x = values(*shape) if constant else values(steps, *shape)
    states = [values(*shape) for _ in range(step.states)]
    widths: list[tuple[int, ...]] = [(), shape, shape[-1:], (1,) * len(shape)]
    parameters = [values(*made.choice(widths)) for _ in range(step.parameters)]
    given = [x, *states, *parameters]
    lengths = torch.randint(0, steps + 1, shape[:1], generator=g).to(device) if ragged else None
    moved = [t.to(device) for t in given]
    with use_backend(backend):
        program = Program(step, 1, step.states, step.parameters)
        states, parameters = moved[1 : 1 + step.states], moved[1 + step.states :]
        outputs, last = program(moved[:1], states, parameters, steps, record, constant, lengths, counts)
    results = [t.to(CPU) for t in (*outputs, *last)]
    kept = [r for r in results if made.random() < 0.8 and r.requires_grad]
    weights = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(dtype) for r in results]
    loss = sum((r * w).sum() for r, w in zip(results, weights, strict=True) if any(r is k for k in kept))
    leaves = [t for t in given if t.requires_grad]
    if not isinstance(loss, Tensor) or not leaves:
        return results, []
    return results, list(torch.autograd.grad(loss, leaves, allow_unused=True))


def check(seed: int, device: torch.device = CPU) -> None:
    step = RandomStep(seed, exact=False)
    ours, grads = call(step, seed, torch.float64, "fused", device)
    theirs, wanted = call(step, seed, torch.float64, "reference")
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)
    for ours_of, theirs_of in zip(grads, wanted or [None] * len(grads), strict=True):
        if theirs_of is None:
            assert ours_of is None or not ours_of.any()
        else:
            a = torch.zeros_like(theirs_of) if ours_of is None else ours_of
            torch.testing.assert_close(a, theirs_of, rtol=1e-7, atol=1e-9, equal_nan=True)


def check_bits(seed: int, device: torch.device = CPU) -> None:
    step = RandomStep(seed, exact=True)
    (ours, _), (theirs, _) = (
        call(step, seed, torch.float32, "fused", device),
        call(step, seed, torch.float32, "reference"),
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


EMULATED = [pytest.mark.emulated], [pytest.mark.emulated, pytest.mark.thorough]
CASES = [pytest.param("cpu", seed) for seed in range(50)]
CASES += [pytest.param("emulated", seed, marks=EMULATED[seed >= 8]) for seed in range(50)]  # it compiles four kernels
CASES += [pytest.param("cuda", seed, marks=pytest.mark.gpu) for seed in range(50)]


@pytest.mark.parametrize(("device", "seed"), CASES, indirect=["device"])
def test_random(device: torch.device, seed: int) -> None:
    check(seed, device)
    check_bits(seed, device)


@pytest.mark.thorough
@pytest.mark.parametrize("start", range(1000, 6000, 500))
def test_many_random(start: int) -> None:
    for seed in range(start, start + 500):
        check(seed)
        check_bits(seed)


# ---- samples whose steps lie together: [T, B, *] of memory [B, T, *], as in x[:, t]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("steps", "shape"),
    [(4, (3, 70)), (17, (2, 300)), (6, (5, 16, 8, 8)), (2, (2, 64)), (33, (4, 257)), (5, (3, 3, 7, 9))],
)
def test_samples_are_taken_as_they_lie(steps: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
    step, made = RandomStep(seed, exact=True), random.Random(seed)
    program = Program(step, 1, step.states, step.parameters)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape[0], steps, *shape[1:], generator=g, dtype=dtype).transpose(0, 1)
    if len(shape) == 4 and made.random() < 0.5:  # channels_last
        x = x.movedim(2, -1).transpose(0, 1).contiguous().transpose(0, 1).movedim(-1, 2)
    sizes = [shape] * step.states + [made.choice(((), shape, shape[-1:])) for _ in range(step.parameters)]
    others = [torch.randn(size, generator=g, dtype=dtype).requires_grad_() for size in sizes]

    def trained(x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        x = x.detach().requires_grad_()
        results = program.unroll(x, *others, steps=steps)
        loss = sum((r * torch.linspace(-1, 1, r.numel(), dtype=dtype).view(r.shape)).sum() for r in results)
        assert isinstance(loss, Tensor)
        return results, torch.autograd.grad(loss, [x, *others], allow_unused=True)

    (ours, grads), (theirs, wanted) = trained(x), trained(x.contiguous())
    outputs = len(ours) - step.states
    for result in (*ours[:outputs], *(t for t in grads[:1] if t is not None)):
        assert result.stride() == x.stride()  # so that nothing is copied for torch.stack(..., dim=1), nor behind it
    for a, b in zip((*ours, *grads[: 1 + step.states]), (*theirs, *wanted[: 1 + step.states]), strict=True):
        assert (a is None and b is None) or torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    # Gradients of parameters are sums over other blocks.
    torch.testing.assert_close(grads[1 + step.states :], wanted[1 + step.states :], equal_nan=True)


def test_few_neurons_of_a_sample_are_copied() -> None:
    program = Program(lambda x, v: (v + x, v + x), 1, 1, 0)
    found, _ = program.unroll(torch.rand(4, 7, 60).transpose(0, 1), 0.0, steps=7)
    assert found.is_contiguous()


# ---- what is made of a step


def leaky(x: Tensor, mem: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    mem = beta.clamp(0, 1) * mem + x
    return (mem > 1).to(x.dtype) * x, mem


def test_instructions_are_those_of_the_kernels() -> None:
    source = Path(__file__).parents[2] / "csrc/cpu/program/instructions.h"
    table = re.search(r"kInstructions\[\] = \{(.*?)\n\};", source.read_text(), flags=re.S)
    assert table is not None
    listed = [name.strip() for name in table[1].split("\n") if name.strip()]
    seconds = len(re.findall(r"pair<First", source.read_text()))
    assert sum(seconds if name.startswith("SNN_SECONDS") else 1 for name in listed) == len(NUMBERS)


def test_what_follows_from_parameters_leaves_the_step() -> None:
    made = trace(leaky, (1, 1, 1), torch.float32, 2)
    code = program_code.forward_code(made, (1, 1, 1))
    assert len(code.fixed) == 1
    assert torch.equal(code.parameters([torch.tensor(1.5)], code.fixed)[1], torch.tensor(1.0))


def decaying(x: Tensor, v: Tensor, beta: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(-tau)
    v = beta.clamp(0, 1) * v + (1 - beta) * (1 - decay) * x
    return torch.sigmoid(v), v * decay


@pytest.mark.emulated
def test_what_follows_from_parameters_is_computed_by_the_kernels_of_cuda(
    emulator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch computes functions alone, such as ``exp``, and what leads to them: each operator is a launch."""
    from emulator.build import kernel_of

    x, v = torch.rand(9, 5).requires_grad_(), torch.rand(5)
    beta, tau = torch.tensor(0.3), torch.linspace(1, 4, 5)
    found, names = [], []
    for engine in (ENGINES["cpu"], Engine(kernel_of)):
        monkeypatch.setitem(ENGINES, "cpu", engine)
        program = Program(decaying, 1, 1, 2)
        for _ in range(2):
            with Operators() as ran:
                outputs, last = program([x], [v], [beta, tau], 9)
                grads = torch.autograd.grad(outputs[0].sum() + last[0].sum(), x)
        found.append([*outputs, *last, *grads])
        names.append([name.partition("::")[2].partition(".")[0] for name in ran.names])
    assert_bits_equal(found[0][1], found[1][1])
    torch.testing.assert_close(*found)
    computed = {"sub", "rsub", "mul", "maximum", "minimum", "exp"}
    assert computed & {*names[0]} == {"sub", "mul", "maximum", "minimum", "exp"}
    assert computed & {*names[1]} == {"exp"}


def test_the_same_is_computed_once() -> None:
    made = trace(lambda x, v: ((v + x) * (v + x), v + x), (1, 1, 0), torch.float32, 2)
    assert [node[0] for node in made.graph.nodes] == ["series", "state", "add", "mul"]
    made = trace(lambda x, v: (-x + v, v - -x), (1, 1, 0), torch.float32, 2)
    assert [made.graph.nodes[v][0] for v in (*made.outputs, *made.states)] == ["sub", "add"]


# ---- what the op refuses


def forward(words: list[int], **changed: Any) -> Any:
    given: dict[str, Any] = {
        "like": torch.empty(0), "series": [torch.rand(3, 20)], "states": [torch.rand(20)],
        "parameters": [torch.tensor(0.5)], "code": torch.tensor(words, dtype=torch.int32),
        "constants": torch.tensor([1.0], dtype=torch.float64), "steps": 3, "neurons": 20, "keep": True,
        "bits": -1, "samples": 1,
    }  # fmt: skip
    return torch.ops.snnfast.program_forward(*{**given, **changed}.values())


# series, states, parameters, constants, outputs, temporaries, instructions; output, state; v = v + x
GOOD = [1, 1, 1, 1, 1, 1, 1, 4, 4, NUMBERS["add"], 4, 1, 0, 0, 0]


def test_op_runs_good_code() -> None:
    x, v = torch.rand(3, 20), torch.rand(20)
    rows, last, kept = forward(GOOD, series=[x], states=[v])
    assert torch.equal(rows, torch.stack([v + x[0], v + x[0] + x[1], v + x[0] + x[1] + x[2]]))
    assert torch.equal(last, rows[-1])
    assert torch.equal(kept, v[None])
    bits, *_ = forward(GOOD, series=[x.round()], states=[torch.zeros(20)], bits=0)
    expected, *_ = torch.ops.snnfast.spikes_as_bits((x.round().cumsum(0) != 0).float()[:, None])
    assert torch.equal(bits, expected[:, 0])


@emulated_if_thorough
def test_functions_to_rounding(device: torch.device) -> None:
    x = torch.cat(
        [torch.linspace(-100, 100, 20001), torch.linspace(-1, 1, 20001), torch.tensor([0.0, 1e-30, -87.5, 88.5])]
    )
    functions = [
        torch.exp, torch.sigmoid, torch.tanh, lambda x: torch.log(x.abs() + 1e-3), lambda x: (x.abs() + 1) ** 1.5,
    ]  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        given, ulp = x.to(dtype)[None], torch.finfo(dtype).eps
        for function in functions:
            program = Program(lambda x, v, function=function: (function(x), v), 1, 1, 0)
            ours = program([given.to(device)], [torch.zeros_like(given[0], device=device)], [], 1)[0][0].to(CPU)
            theirs = function(given)
            normal = (theirs.abs() > 1e-37) & theirs.isfinite()
            torch.testing.assert_close(ours[normal], theirs[normal], rtol=6 * ulp, atol=0)
            assert torch.equal(ours.isinf(), theirs.isinf())
    special = torch.tensor([[torch.nan, torch.inf, -torch.inf]])
    for function in functions[:3]:
        program = Program(lambda x, v, function=function: (function(x), v), 1, 1, 0)
        ours = program([special.to(device)], [torch.zeros(3, device=device)], [], 1)[0][0].to(CPU)
        torch.testing.assert_close(ours, function(special), equal_nan=True)


def test_op_refuses_malformed_code() -> None:
    for at, word in (
        (0, 2), (1, 0), (3, -1), (4, 1 << 20), (6, 2), (7, 5), (7, -1), (8, 3), (9, 999), (9, -1), (10, 1), (11, 5),
        (12, -1),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="code: "):
            forward([*GOOD[:at], word, *GOOD[at + 1 :]])
    for words in ([], GOOD[:5], GOOD[:-1], [*GOOD, 0]):
        with pytest.raises(RuntimeError, match="code: "):
            forward(words)
    for changed in (
        {"like": torch.empty(0, dtype=torch.int32)}, {"series": [torch.rand(2, 20)]},
        {"series": [torch.rand(3, 40)[:, ::2]]}, {"series": [torch.rand(3, 20, dtype=torch.float64)]},
        {"series": [torch.rand(3)]}, {"states": [torch.rand(19)]}, {"parameters": [torch.rand(19)]},
        {"parameters": [torch.tensor(0.5, dtype=torch.float64)]}, {"constants": torch.tensor([1.0])}, {"steps": -1},
        {"steps": 1 << 62, "series": [torch.rand(1, 20)]}, {"neurons": 21}, {"code": torch.tensor(GOOD)},
        {"samples": 0}, {"samples": 3}, {"samples": 2}, {"samples": 40, "series": [torch.rand(3 * 40, 0)]},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            forward(GOOD, **changed)


def test_op_survives_random_code() -> None:
    made = random.Random(0)
    for _ in range(3000):
        words = list(GOOD)
        for _ in range(made.randint(1, 3)):
            words[made.randrange(len(words))] = made.choice(
                (-1, 0, 1, 2, 3, 4, 5, 30, 90, made.randrange(-(2**31), 2**31))
            )
        try:
            forward(words)
        except RuntimeError as error:
            assert "code: " in str(error)  # noqa: PT017


def test_backward_op_survives_random_code() -> None:
    step = RandomStep(3, exact=True)
    counts = 1, step.states, step.parameters
    made = trace(step, counts, torch.float32, 1, [True] * sum(counts))
    code = program_code.backward_code(made, counts, [0], [True] * (1 + step.parameters))
    parameters = code.parameters([torch.tensor(0.5)] * step.parameters, code.fixed)
    drawn = random.Random(1)
    for _ in range(3000):
        words = code.words.clone()
        for _ in range(drawn.randint(0, 2)):
            words[drawn.randrange(len(words))] = drawn.choice(
                (-1, 0, 1, 2, 5, 9, 14, 40, drawn.randrange(-(2**31), 2**31))
            )
        try:
            torch.ops.snnfast.program_backward(
                torch.empty(0), [torch.rand(17, 20)], parameters, torch.rand(2 * step.states, 20), [torch.rand(17, 20)],
                [torch.rand(20)] * step.states, None, words, code.constants, 17, 20, 1,
            )  # fmt: skip
        except RuntimeError as error:
            assert "code: " in str(error)  # noqa: PT017


# ---- CUDA: what needs no card


@pytest.mark.parametrize(
    "places", [(0, 1), (0, 2), (2, 3), (1, 4)], ids=["states", "state and saved", "carries", "both"]
)
def test_a_register_that_two_values_share_is_refused_on_every_device(places: tuple[int, int]) -> None:
    """The places are those of the new states, of the values that are saved and of the carries."""
    counts = 1, 2, 0
    made = trace(lambda x, v, a: (x * v, torch.exp(a * v) + x, a + v), counts, torch.float32, 2, [True] * sum(counts))
    code = program_code.backward_code(made, counts, [0], [True])
    (saved,) = code.words[5:6].tolist()
    table = code.words[9 : 9 + 4 + saved]
    assert saved == 1
    assert len(set(table.tolist())) == len(table)
    first, second = places
    table[second] = table[first]
    rows = torch.rand(17, 20)
    with pytest.raises(RuntimeError, match="code: a register is used twice"):
        torch.ops.snnfast.program_backward(
            torch.empty(0), [rows], code.parameters([], code.fixed), torch.rand(4, 20), [rows], [torch.rand(20)] * 2,
            None, code.words, code.constants, 17, 20, 1,
        )  # fmt: skip
    with pytest.raises(RuntimeError, match="code: a register is used twice"):
        backward_source(code, torch.float32, (("rows",), ()))


def fifth() -> Program:
    step = RandomStep(5, exact=True)
    return Program(step, 1, step.states, step.parameters)


def trained(program: Program) -> list[Tensor]:
    step: Any = program.step
    g = torch.Generator().manual_seed(0)
    x, *others = (torch.rand(size, generator=g) for size in ((18, 20), *((20,),) * (step.states + step.parameters)))
    states, parameters = others[: step.states], others[step.states :]
    outputs, last = program([x.requires_grad_()], states, parameters, 18)
    return [*outputs, *last, *torch.autograd.grad(sum(r.sum() for r in (*outputs, *last)), x)]


@pytest.mark.emulated
@pytest.mark.parametrize("refused", ["forward", "backward"])
def test_runs_step_by_step_without_a_kernel(
    refused: str, emulator: None, nothing_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulator.build import kernel_of

    asked = []

    def some_kernels(text: str, device: torch.device) -> Launch:
        asked.append(text)
        if ("grad_last" in text) == (refused == "backward"):
            raise NoKernelError("there is no compiler")
        return kernel_of(text, device)

    wanted, program = trained(fifth()), fifth()
    monkeypatch.setitem(ENGINES, "cpu", Engine(some_kernels))
    with pytest.warns(UserWarning, match=r"runs step by step (backward )?on cpu: there is no compiler") as said:
        found = trained(program), trained(program)
    assert len(said) == 1
    assert len(asked) == (1 if refused == "forward" else 2)
    for results in found:
        torch.testing.assert_close(results, wanted)
    with use_backend("fused"), pytest.raises(RuntimeError, match=r"'fused' is not available.*no compiler"):
        trained(program)


@pytest.mark.emulated
def test_number_on_another_device(emulator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from emulator.build import kernel_of

    program = Program(lambda x, v, k: (x * k, k * v + x), 1, 1, 1)
    given = [torch.rand(9, 5)], [torch.rand(5)], [torch.tensor(0.3)], 9
    wanted = program(*given)
    monkeypatch.setitem(ENGINES, "cpu", Engine(kernel_of))
    monkeypatch.setattr(cuda, "_kind", lambda parameter, like: "value")
    torch.testing.assert_close(program(*given), wanted, rtol=0, atol=0)


@pytest.fixture
def nvrtc() -> Any:
    try:
        nvrtc_of_programs.compile_text("", 90)
    except NoKernelError as error:
        pytest.skip(str(error))
    return nvrtc_of_programs


@pytest.mark.parametrize(
    ("dtype", "architecture"), [(torch.float32, 90), (torch.float64, 80), (torch.float16, 75), (torch.bfloat16, 75)]
)
def test_nvrtc_compiles_without_spills(
    dtype: torch.dtype, architecture: int, nvrtc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision for one neuron of a thread, and for two."""
    texts: list[str] = []

    def no_kernel(text: str, device: torch.device) -> Launch:
        texts.append(text)
        return lambda blocks, threads, arguments: None

    for least in (1, 1 << 40) if dtype.itemsize == 2 else (1,):
        monkeypatch.setitem(ENGINES, "cpu", Engine(no_kernel, least))
        for kind in OWN if dtype == torch.float32 else OWN[3:5]:
            layer, x = made(kind), torch.rand(18, 2, 37, dtype=dtype, requires_grad=True)
            torch.autograd.grad(sum(r.sum() for r in layer.unroll(x) if r.requires_grad), x)
    assert len(texts) >= (8 if dtype.itemsize == 2 else 4)
    for text in texts:
        _, said = nvrtc.compile_text(text, architecture, "--ptxas-options=-v")
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said, said
        assert int(re.findall(r"Used (\d+) registers", said)[0]) <= 128


# Instructions of the longest loop for each neuron-step, forward and backward, with a few to spare for another NVRTC.
COUNTS = {torch.float32: (15, 42), torch.float16: (13, 41), torch.bfloat16: (16, 48)}


@pytest.mark.parametrize("dtype", COUNTS)
def test_machine_code_of_a_step(
    dtype: torch.dtype, nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of SoftLIF, on an H100: nothing is asked in a step, and what 16 steps read is loaded by 16 instructions."""
    from tools.gates import sass
    from tools.gates.__main__ import find

    nvdisasm = find("nvdisasm")
    if nvdisasm is None:
        pytest.skip("there is no nvdisasm")
    texts: list[str] = []

    def no_kernel(text: str, device: torch.device) -> Launch:
        texts.append(text)
        return lambda blocks, threads, arguments: None

    monkeypatch.setitem(ENGINES, "cpu", Engine(no_kernel, least=1))
    x = torch.rand(18, 2, 37, dtype=dtype, requires_grad=True)
    torch.autograd.grad(OWN[1]().unroll(x, record_mem=False)[0].sum(), x)
    width = 1 if dtype == torch.float32 else 2
    for text, most, loads in zip(texts, COUNTS[dtype], (16, 34), strict=True):
        (tmp_path / "cubin").write_bytes(nvrtc.compile_text(text, 90)[0])
        command = [nvdisasm, "-c", str(tmp_path / "cubin")]
        (kernel,) = sass.parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        loop = [kernel.instructions[i].opcode.partition(".")[0] for i in kernel.longest_loop()]
        assert loop.count("LDG") <= loads
        assert len(loop) / CHECKPOINT / width <= most


STEPS = (1, 3, 4, 15, 16, 17, 31, 32, 33, 35, 48, 50)


@pytest.mark.emulated
@pytest.mark.parametrize("kind", [OWN[1], OWN[5]], ids=lambda kind: kind.__name__)
def test_steps_of_the_kernels_of_cuda(kind: Any, emulator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every way through their loops; two neurons of a thread have the bits of one."""
    from emulator.build import kernel_of

    layer = made(kind)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for steps in STEPS:
            x, found = torch.rand(steps, 2, 7, dtype=dtype).requires_grad_(), []
            for engine in (ENGINES["cpu"], Engine(kernel_of), Engine(kernel_of, least=1)):
                with monkeypatch.context() as patched:
                    patched.setitem(ENGINES, "cpu", engine)
                    results = layer.unroll(x)
                    total = sum(r.float().square().sum() for r in results)
                    found.append([*results, *torch.autograd.grad(total, [x, *layer.parameters()])])
            for ours, one, two in zip(*found, strict=True):
                assert_bits_equal(one, two)
                if ours.dim() == x.dim():
                    torch.testing.assert_close(one, ours, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-4)


@pytest.mark.emulated
def test_rows_that_are_not_aligned_have_a_thread_for_each_neuron(
    emulator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emulator.build import kernel_of

    layer, found, texts = made(OWN[1]), [], []
    monkeypatch.setitem(ENGINES, "cpu", Engine(lambda text, device: texts.append(text) or kernel_of(text, device), 1))
    x = torch.rand(20, 9, dtype=torch.float16)
    for rows in (x[:, :8].contiguous(), torch.cat([x.new_zeros(1), x[:, :8].flatten()])[1:].view(20, 8), x[:, :7]):
        found.append(layer.unroll(rows)[1])
    assert_bits_equal(found[0], found[1])
    assert_bits_equal(found[0][:, :7], found[2])
    assert ["constexpr int V = 2;" in text for text in texts] == [True, False]


TEXT = 'extern "C" __global__ void snnfast_program(float* x) { x[0] = x[1] * x[2] + x[3] / x[4]; }'


@pytest.fixture
def compiled(nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What NVRTC compiles; it is kept in a folder of the test."""
    compiled: list[Any] = []
    compile_text = nvrtc.compile_text
    monkeypatch.setattr(nvrtc, "compile_text", lambda *a: compiled.append(a) or compile_text(*a))
    monkeypatch.setenv("SNNFAST_KERNEL_CACHE", str(tmp_path / "kernels"))
    return compiled


def test_machine_code_is_kept(
    nvrtc: Any, compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_compiled: None
) -> None:
    codes = [nvrtc.machine_code(TEXT, architecture) for architecture in (90, 80, 90)]
    assert codes[0] == codes[2] != codes[1]
    assert len(compiled) == len(list((tmp_path / "kernels").iterdir())) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("SNNFAST_KERNEL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="can't be kept in"):
        assert nvrtc.machine_code(TEXT, 90) == codes[0]
    with pytest.raises(NoKernelError, match=r"can't compile the program: [\s\S]*error"):
        nvrtc.machine_code("no C++", 90)
    with pytest.raises(NoKernelError, match=r"compute capability 1\.1"):
        nvrtc.machine_code(TEXT, 11)


def test_what_is_kept_of_another_nvrtc_is_not_taken(
    nvrtc: Any, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bindings = nvrtc._bindings("nvrtc")
    _, major, minor = bindings.nvrtcVersion()
    for version in ((major, minor), (major, minor + 1), (major + 1, minor)):
        monkeypatch.setattr(bindings, "nvrtcVersion", lambda version=version: (0, *version))
        for _ in range(2):
            nvrtc.machine_code(TEXT, 90)
    assert len(compiled) == 3


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:99] + bytes(1000)])
def test_a_damaged_file_is_made_again(damage: Any, nvrtc: Any, compiled: list[Any], tmp_path: Path) -> None:
    code = nvrtc.machine_code(TEXT, 90)
    (file,) = (tmp_path / "kernels").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert nvrtc.machine_code(TEXT, 90) == code
    assert len(compiled) == 2


def test_a_user_without_a_home_has_kernels(nvrtc: Any, compiled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number."""
    pwd = pytest.importorskip("pwd")

    def no_entry(user: int) -> Any:
        raise KeyError(user)

    for name in ("SNNFAST_KERNEL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.warns(UserWarning, match="can't be kept .*home.*SNNFAST_KERNEL_CACHE"):
        assert nvrtc.machine_code(TEXT, 90).startswith(b"\x7fELF")


def test_a_card_newer_than_nvrtc_gets_code_that_its_driver_compiles(nvrtc: Any) -> None:
    code, _ = nvrtc.compile_text(TEXT, 990)
    newest = max(nvrtc._bindings("nvrtc").nvrtcGetSupportedArchs()[1])
    assert f".target sm_{newest}".encode() in code
    assert code.endswith(b"\0")
    assert [operation in code for operation in (b"mul.rn.f32", b"add.rn.f32", b"div.rn.f32", b"fma.")] == [1, 1, 1, 0]


class Status(IntEnum):
    SUCCESS = 0
    INVALID_CONTEXT = 201


@pytest.mark.emulated
def test_launch_by_the_driver(nvrtc: Any, emulator: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of the test runs on the emulator what it is given, on threads that have the context of PyTorch."""
    from emulator.build import kernel_library

    texts: list[str] = []
    current = threading.local()

    def of_context(function: Any) -> Any:
        return lambda *given: function(*given) if current.__dict__.get("context") == 5 else (Status.INVALID_CONTEXT,)

    def launch(text: str, *given: int) -> tuple[int]:
        blocks, *ones, threads, y, z, shared, stream, pointers, extra = given
        assert (*ones, y, z, shared, stream, extra) == (1, 1, 1, 1, 0, 77, 0)
        return (kernel_library(text).snnfast_launch(blocks, threads, ctypes.c_void_p(pointers)),)

    def load(code: bytes) -> tuple[int, str]:
        assert code.startswith(b"\x7fELF")
        return 0, texts[-1]

    driver = SimpleNamespace(
        cuDeviceGet=lambda ordinal: (0, 3),
        cuDevicePrimaryCtxRetain=lambda device: (0, device + 2),
        cuCtxGetCurrent=lambda: (0, current.__dict__.get("context", 0)),
        cuCtxSetCurrent=lambda context: (current.__dict__.update(context=context) or 0,),
        cuModuleLoadData=of_context(load),
        cuModuleGetFunction=lambda module, name: (0, module),
        cuLaunchKernel=of_context(launch),
    )
    bindings = nvrtc._bindings
    monkeypatch.setattr(nvrtc, "_bindings", lambda name: driver if name == "driver" else bindings(name))
    monkeypatch.setenv("SNNFAST_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))

    def kernel_of(text: str, device: torch.device) -> Launch:
        texts.append(text)
        made: Launch = nvrtc.kernel_of.__wrapped__(text, device)
        return made

    wanted, program = trained(fifth()), fifth()
    monkeypatch.setitem(ENGINES, "cpu", Engine(kernel_of))
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for thread in (first, second):
            torch.testing.assert_close(thread.submit(trained, program).result(), wanted)
    assert len(texts) == 2


@pytest.mark.parametrize("delay", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("neuron", KINDS)
def test_the_step_of_a_layer_is_a_program_with_the_bits_of_its_kernel(neuron: str, reset: str, delay: bool) -> None:
    for spike_grad in every_other(SURROGATES.values(), neuron, delay):
        case = Case(neuron, "step", reset=reset, delay=delay, spike_grad=spike_grad, parameters="neuron")
        ours, theirs = (leaves(inputs(case)) for _ in range(2))
        wanted = fused(theirs, case)
        options, ops = layer_of(case, theirs)._options(), case.kind.ops

        def step(*given: Tensor, ops: Any = ops, options: Any = options) -> tuple[Tensor, ...]:
            found = elementwise_step(ops.name, given[0], list(given[1:]), options.packed, *options.derivative, "auto")
            return (*found, *found[not ops.has_spike_feedback :])

        program = Program(step, 1, len(ops.states), len(ops.parameters))
        records = program.unroll(*(ours[name] for name in case.names), steps=case.steps)
        found = dict(zip(case.kind.results, records, strict=False))
        for name, t in wanted.items():
            assert_bits_equal(found[name], t, f"{case} {name}")
        for outputs in (found, wanted):
            sum((t * (1 + i)).sum() for i, t in enumerate(outputs.values())).backward()  # type: ignore[union-attr]
        for name in case.names:
            torch.testing.assert_close(ours[name].grad, theirs[name].grad, msg=lambda m, name=name: f"{name}: {m}")
