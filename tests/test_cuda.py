"""What the CUDA kernels alone do: which of them runs, time shared out among warps, sums over neurons.

Other files compare their numbers with the reference; here it is known which kernel ran.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator.build import kernels, set_chunked_limits, set_seed, set_vector_minimum, take_launches
from gradient_checks import Operators, gradients
from helpers import (
    FIRST_SEED,
    FLOATS,
    HALVES,
    NEURONS,
    PARAMETERS,
    SURROGATES,
    THOROUGH,
    Case,
    Tensors,
    assert_bits_equal,
    assert_close,
    assert_each_equal,
    fused,
    inputs,
    leaves,
    random_cases,
)
from test_kernels import ORDINARY, check_ordinary
from torch import Tensor, nn

import snnfast
from benchmarks.gpu import workload
from snnfast import surrogate
from snnfast._core import ops
from snnfast._unroll.autograd import sum_to
from snnfast.functional import lif

CSRC = Path(__file__).parent.parent / "csrc"
DTYPES = FLOATS + HALVES
LIMITS = (256, 12288)  # steps from which, neurons up to which many warps share out the time of a few neurons
ALWAYS, NEVER = (0, 1 << 40), (1 << 40, 0)
DEFAULT = -1

neurons = pytest.mark.parametrize("neuron", NEURONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def emulated(test: Callable[..., None]) -> Callable[..., None]:
    """The test runs on the emulator, and leaves its settings as they were."""
    on = pytest.param("emulated", marks=[pytest.mark.emulated, pytest.mark.needs_extension])
    marked: Callable[..., None] = pytest.mark.parametrize("device", [on], indirect=True)(test)
    return pytest.mark.usefixtures("settings")(marked)


@pytest.fixture
def settings(device: torch.device) -> Iterator[None]:
    take_launches()
    yield
    set_vector_minimum(1)
    set_chunked_limits(*LIMITS)
    set_seed(FIRST_SEED)


# ---- launches

# Blocks, and threads of each, forward and backward: at least 128 blocks where warps suffice, and no more threads than
# the kernels are made for.
LAUNCHES = {
    1: (1, 32), 1001: (32, 32), 4095: (128, 32), 8191: (256, 32), 8193: (129, 64), 16385: (129, 128),
    32769: (257, 128),
}  # fmt: skip


@emulated
@pytest.mark.parametrize("size", LAUNCHES)
def test_few_neurons_spread_over_many_multiprocessors(size: int, device: torch.device) -> None:
    x = torch.rand(2, size, device=device).requires_grad_()
    spk, _ = lif(x, beta=0.9, record_mem=False)
    spk.sum().backward()
    assert [(blocks, threads) for _, blocks, threads in take_launches()] == [LAUNCHES[size]] * 2


@emulated
def test_from_how_many_neurons_on_a_thread_takes_several(device: torch.device) -> None:
    set_vector_minimum(DEFAULT)
    for size, forward, backward in ((98303, 1, 1), (98304, 1, 4), (1 << 18, 4, 4)):
        x = torch.rand(1, size, device=device).requires_grad_()
        lif(x, beta=0.9)[0].sum().backward()
        assert [int(kernel.split(", ")[2]) for kernel, *_ in take_launches()] == [forward, backward]


@emulated
@neurons
def test_a_layer_takes_two_launches_and_no_other_op(neuron: str, device: torch.device) -> None:
    for record_mem in (True, False):
        case = Case(neuron, "unroll", 20, (4, 500), record_mem=record_mem)
        given = leaves(inputs(case, device))
        take_launches()
        outputs = [t for t in fused(given, case).values() if t.requires_grad]
        assert len(take_launches()) == 1
        wanted = [t for t in given.values() if t is not None]
        weights = [torch.ones_like(t) for t in outputs]
        with Operators() as ran:
            torch.autograd.grad(outputs, wanted, weights)
        assert len(take_launches()) == 1
        launched = [name for name in ran.names if name != "aten::detach"]  # of an output that was saved
        assert launched == [f"snnfast_emulated::{case.kind.ops.name}_backward"]


def test_what_the_sources_call_can_be_captured_in_a_graph() -> None:
    """A call launches kernels and clears a word of its own memory. It allocates nothing, and waits for nothing."""
    once = {"cudaFuncGetAttributes", "cudaDriverGetVersion", "cudaRuntimeGetVersion"}  # of each card, before any call
    found = {
        name for path in sorted(CSRC.glob("cuda/*.cu*")) for name in re.findall(r"\b(cuda[A-Z]\w*)\(", path.read_text())
    }
    asked = {"cudaGetLastError", "cudaGetErrorString"}
    assert found == {"cudaMemsetAsync"} | asked | once


@emulated
@neurons
def test_no_order_of_threads_or_blocks_changes_a_bit(neuron: str, device: torch.device) -> None:
    """Nor what an earlier call left in the memory in which the blocks count themselves."""
    shapes = ((NEVER, 5, (37,), "scalar"), (NEVER, 5, (3, 427), "scalar"), (ALWAYS, 75, (3, 30), "neuron"))
    for dtype, (limits, steps, shape, parameters) in itertools.product(DTYPES, shapes):
        set_chunked_limits(*limits)
        case = Case(neuron, "unroll", steps, shape, dtype, "zero", record_mem=dtype in FLOATS, parameters=parameters)
        found = []
        for seed in range(6):
            set_seed(seed)
            found.append(gradients(fused, leaves(inputs(case, device)), case))
        for again in found[1:]:
            assert_each_equal(again, found[0], case)


# ---- which kernel a call takes

RESET = {"subtract": "(Reset)0", "zero": "(Reset)1"}
NONE, FIRST, ALL = (f"(Sums){kind}" for kind in range(3))


def plain(direction: str, width: int, recorded: bool, *sums: str, dtype: str = "float", reset: str = "subtract") -> str:
    """The name of a plain kernel, whether it writes or reads the record, and, backward, which parameters it sums."""
    words = ["Leaky", dtype, str(width), RESET[reset], str(recorded).lower(), *sums]
    return f"{direction}_plain<{', '.join(words)}>"


def unrolled(x: Tensor, layer: dict[str, Any], **options: Any) -> Tensor:
    return snnfast.Leaky(**{"beta": 0.9, **layer}).unroll(x, **options)[0]


def tutorial(x: Tensor) -> Tensor:
    """The network of snnTorch's tutorial 5 on one image, with its loss on all membranes of the last layer."""
    net = nn.Sequential(
        nn.Linear(16, 40), snnfast.Leaky(0.9, init_hidden=True), nn.Linear(40, 8),
        snnfast.Leaky(0.9, init_hidden=True, output=True),
    )  # fmt: skip
    return snnfast.MultiStep(net)(x[0].expand(25, -1, -1))[1]  # type: ignore[no-any-return]


def convolutional(x: Tensor) -> Tensor:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), snnfast.Leaky(0.9, init_hidden=True), nn.Flatten(), nn.Linear(64, 2)
    )
    return snnfast.MultiStep(net)(x.view(25, 4, 1, 4, 4))  # type: ignore[no-any-return]


EACH = {"beta": torch.linspace(0.5, 0.9, 16), "learn_beta": True}  # a number for each neuron
LOST = "backward<Leaky, float, 4, true>"  # the general kernel of recorded membranes
FORWARD, RECORD = plain("forward", 4, False), plain("forward", 4, True)
BACKWARD, RECORDED = plain("backward", 4, False, NONE), plain("backward", 4, True, NONE)
CHOSEN: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "defaults": (lambda x: unrolled(x, {}), [RECORD, RECORDED]),
    "record_mem=False": (lambda x: unrolled(x, {}, record_mem=False), [FORWARD, BACKWARD]),
    "learn_beta": (lambda x: unrolled(x, {"learn_beta": True}), [RECORD, plain("backward", 4, True, FIRST)]),
    "learn_beta, constant": (
        lambda x: unrolled(x[0], {"learn_beta": True}, num_steps=25), [RECORD, plain("backward", 4, True, ALL)],
    ),
    "learn_threshold, record_mem=False": (
        lambda x: unrolled(x, {"learn_threshold": True}, record_mem=False),
        [FORWARD, plain("backward", 4, False, ALL)],
    ),
    "learn_beta of each neuron": (
        lambda x: unrolled(x, EACH), [plain("forward", 1, True), plain("backward", 1, True, FIRST)],
    ),
    "constant": (lambda x: unrolled(x[0], {}, num_steps=25, record_mem=False), [FORWARD, BACKWARD]),
    "constant, recorded": (lambda x: unrolled(x[0], {}, num_steps=25), [RECORD, RECORDED]),
    "reset to zero": (
        lambda x: unrolled(x, {"reset_mechanism": "zero"}, record_mem=False),
        [plain("forward", 4, False, reset="zero"), plain("backward", 4, False, NONE, reset="zero")],
    ),
    "half": (
        lambda x: unrolled(x.half(), {}),
        [plain("forward", 8, True, dtype="Half"), plain("backward", 4, False, NONE, dtype="Half")],
    ),
    "few neurons, many steps": (
        lambda x: unrolled(x.repeat(20, 1, 1), {}),
        [RECORD, plain("backward", 1, True, ALL).replace("plain", "plain_chunked")],
    ),
    "tutorial 5": (tutorial, [FORWARD, RECORD, LOST, BACKWARD]),
    "convolutions": (convolutional, [FORWARD, BACKWARD]),
    "a loss on the membrane": (lambda x: snnfast.Leaky(0.9).unroll(x)[1], [RECORD, LOST]),
    "another surrogate": (lambda x: unrolled(x, {"spike_grad": surrogate.sigmoid()}), [RECORD, LOST]),
    "float64": (lambda x: unrolled(x.double(), {}), ["forward<Leaky, double, 1>", "backward<Leaky, double, 1, true>"]),
}  # fmt: skip


@emulated
@pytest.mark.parametrize("name", CHOSEN)
def test_which_kernels_a_call_takes(name: str, device: torch.device) -> None:
    call, chosen = CHOSEN[name]
    call(torch.rand(25, 4, 16, device=device, requires_grad=True)).sum().backward()
    assert [kernel for kernel, *_ in take_launches()] == chosen


@emulated
def test_the_calls_for_the_tools_of_a_card_launch_every_kernel(device: torch.device) -> None:
    def launched(calls: Iterator[workload.Call]) -> set[str]:
        for call in calls:
            workload.run(call, *workload.given(call, device))
        return {kernel for kernel, *_ in take_launches()}

    assert launched(workload.watched(many=16)) == set(kernels().values())
    assert launched(workload.profiled(many=16)) >= {kernel for _, chosen in CHOSEN.values() for kernel in chosen}


# ---- the backward kernel that shares out the time of few neurons among the warps of a block

CHUNKED: dict[str, Any] = {
    **ORDINARY, "neuron": ("leaky",), "steps": (20, 41, 75), "shape": ((3, 11),), "spike_grad": (SURROGATES["atan"],),
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    # Around a chunk; fewer chunks than warps, as many, and more.
    **{f"T{n}": {"steps": (n,)} for n in (1, 15, 16, 17, 33, 48, 127, 128, 129, 255, 256, 257, 273, 400)},
    **{"x".join(map(str, shape)): {"shape": (shape,)} for shape in ((1,), (31,), (32,), (33,), (4, 8), (2, 3, 17))},
    **{f"parameters-{kind}": {"parameters": (kind,)} for kind in PARAMETERS},
    **{str(dtype)[6:]: {"dtype": (dtype,)} for dtype in HALVES},
    "fast_sigmoid": {"spike_grad": (SURROGATES["fast_sigmoid"],)},
}


def is_chunked() -> bool:
    """Whether the kernel that ran last was the one with many warps to a few neurons."""
    return take_launches()[-1].kernel.startswith("backward_plain_chunked<")


def chunked_and_plain(case: Case, tensors: Tensors) -> list[Any]:
    """The gradients of both kernels, by name."""
    found = []
    for limits in (ALWAYS, NEVER):
        set_chunked_limits(*limits)
        found.append(gradients(fused, leaves(tensors), case, "spk"))
        assert is_chunked() == (limits == ALWAYS)
    return found


@emulated
@pytest.mark.parametrize("name", ROWS)
def test_chunked_calls(name: str, device: torch.device) -> None:
    set_chunked_limits(*ALWAYS)
    choices = {"dtype": (torch.float32,), **CHUNKED, **ROWS[name]}
    for i, case in enumerate(random_cases(30 if THOROUGH else 6, name, **choices)):
        check_ordinary(case, device, i)
        assert is_chunked(), case


@emulated
def test_a_single_chunk_has_the_numbers_of_the_plain_kernel(device: torch.device) -> None:
    for dtype, record_mem in itertools.product((torch.float32, *HALVES), (True, False)):
        case = Case("leaky", "unroll", 16, (5, 11), dtype, record_mem=record_mem, parameters="element")
        assert_each_equal(*chunked_and_plain(case, inputs(case, device)), case)


@emulated
def test_nan_goes_where_it_goes_in_the_plain_kernel(device: torch.device) -> None:
    for record_mem in (True, False):
        case = Case("leaky", "unroll", 75, (40,), record_mem=record_mem, parameters="element")
        tensors: Any = inputs(case, device)
        tensors["current"][30, 3] = tensors["beta"][5] = float("nan")
        chunked, plain_ones = ({n: g.isnan() for n, g in of.items()} for of in chunked_and_plain(case, tensors))
        assert sum(nan.any() for nan in chunked.values()) >= 3
        assert_each_equal(chunked, plain_ones, case)


@emulated
def test_the_shape_alone_decides_which_kernel_runs(device: torch.device) -> None:
    steps, most = LIMITS
    for T, N, chunked in ((steps, most, True), (steps - 1, 33, False), (steps, most + 1, False)):
        x = torch.rand(N, device=device).requires_grad_()
        spk, _ = lif(x, beta=0.9, num_steps=T, reduce="sum", record_mem=False)
        spk.sum().backward()
        assert is_chunked() == chunked, (T, N)


# ---- the gradient of a parameter that is one number over all neurons is summed by the kernel


def of_parameters(case: Case, tensors: dict[str, Tensor | None], per_neuron: bool) -> dict[str, Tensor]:
    """Their gradients; ``per_neuron``: each has a value for each neuron, all alike."""
    given, names = leaves(tensors), case.kind.ops.parameters
    if per_neuron:
        given |= {n: given[n].detach().expand(case.shape).clone().requires_grad_() for n in names}  # type: ignore[union-attr]
    outputs = [t for t in fused(given, case).values() if t.requires_grad]
    weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64).view(t.shape).to(t) for t in outputs]
    found = torch.autograd.grad(outputs, [given[n] for n in names], weights)  # type: ignore[type-var]
    return dict(zip(names, found, strict=True))


@emulated
@pytest.mark.parametrize(("neuron", "limits"), [*((n, NEVER) for n in NEURONS), ("leaky", ALWAYS)])
def test_a_sum_is_of_the_gradients_of_all_neurons(neuron: str, limits: tuple[int, int], device: torch.device) -> None:
    shapes = ((1,), (31,), (33,), (4, 32), *((3, 427), (8, 1000)) * (limits == NEVER))
    set_chunked_limits(*limits)
    for i, (shape, dtype) in enumerate(itertools.product(shapes, DTYPES)):
        case = Case(neuron, "unroll", (5, 19)[i // 4 % 2], shape, dtype, delay=i % 7 != 3, record_mem=i % 3 != 0)
        case = replace(case, parameters=("scalar", "one")[i % 2], steps=50 if limits == ALWAYS else case.steps)
        tensors = inputs(case, device, i)
        found, each = of_parameters(case, tensors, False), of_parameters(case, tensors, True)
        for name, total in found.items():
            values = each[name].double().flatten().tolist()
            exact, magnitude = math.fsum(values), math.fsum(map(abs, values))
            assert total.shape == tensors[name].shape  # type: ignore[union-attr]
            relative = {torch.float32: 1e-6, torch.float64: 1e-14}[case.acc]
            assert_close(total, torch.full_like(total, exact), relative, f"{case}: {name}", scale=magnitude)


@emulated
def test_sums_for_parameters_of_every_dtype(device: torch.device) -> None:
    x = torch.rand(9, 4, 40, device=device, requires_grad=True)
    for dtype in DTYPES:
        beta = torch.tensor(0.75, dtype=dtype, device=device, requires_grad=True)
        same = beta.detach().float().requires_grad_()
        found, wanted = (torch.autograd.grad(lif(x, beta=b)[0].square().sum(), b)[0] for b in (beta, same))
        assert found.dtype == dtype
        if dtype == torch.float64:
            assert_close(found.float(), wanted, 1e-6)
        else:
            assert_bits_equal(found, wanted.to(dtype))


@emulated
def test_beta_alone_has_the_gradients_that_it_has_beside_a_threshold(device: torch.device) -> None:
    for dtype, record_mem, least in itertools.product((torch.float32, *HALVES), (False, True), (1, DEFAULT)):
        set_vector_minimum(least)
        x = torch.rand(19, 4, 40, dtype=dtype, device=device, requires_grad=True)
        beta, threshold = (torch.tensor(number, device=device, requires_grad=True) for number in (0.75, 0.5))
        results = []
        for other in (threshold, threshold.detach()):
            spk = lif(x, beta=beta, threshold=other, record_mem=record_mem)[0]
            results.append(torch.autograd.grad(spk.square().sum(), (x, beta)))
        assert_bits_equal(results[0][0], results[1][0])
        assert_close(results[0][1], results[1][1], 1e-6)
        last = [kernel for kernel, *_ in take_launches()][1::2]
        several = f", {4 if least == 1 else 1}, "
        alone = FIRST if dtype == torch.float32 or least == 1 else ALL
        both = several if dtype == torch.float32 else ", 1, "
        assert [ALL in last[0], both in last[0], alone in last[1], several in last[1]] == [True] * 4


@emulated
def test_several_neurons_of_a_thread_have_the_bits_of_one(device: torch.device) -> None:
    """With every number of steps in the first and last batches. Sums over neurons have another order."""
    counts, dtypes = (*range(1, 20), *range(31, 41)), (torch.float32, *HALVES)
    for steps, dtype, record_mem in itertools.product(counts, dtypes, (True, False)):
        x = torch.rand(steps, 16, dtype=dtype, device=device, requires_grad=True)
        learned = (0, 1, 3)[steps % 3]
        numbers = [torch.tensor(n, device=device, requires_grad=i < learned) for i, n in enumerate((0.75, 0.5, 1.5))]
        named = dict(zip(("beta", "threshold", "graded_spikes_factor"), numbers, strict=True))
        weights, found = torch.randn_like(x), []
        for least in (1, DEFAULT):
            set_vector_minimum(least)
            spk = lif(x, **named, record_mem=record_mem)[0]
            found.append([spk, *torch.autograd.grad(spk, [x, *numbers[:learned]], weights)])
            alone = least == DEFAULT or (learned == 3 and dtype in HALVES)
            assert (", 1, " in take_launches()[-1].kernel) == alone
        for i, (several, one) in enumerate(zip(*found, strict=True)):
            if i < 2:
                assert_bits_equal(several, one)
            else:  # a sum whose terms may cancel out
                assert_close(several, one, 1e-6, scale=weights.float().abs().sum().item())


@emulated
def test_an_output_that_a_step_writes_to_is_of_each_neuron(device: torch.device) -> None:
    """Connected neurons add up what their steps write, and sum over the neurons at the end."""
    layer = snnfast.RLeaky(beta=0.9, linear_features=6, learn_beta=True).to(device)
    x, results = torch.rand(5, 3, 6, device=device), []
    for namespace in ("snnfast_emulated", "snnfast"):
        ops.use(namespace)
        spk, *_ = layer.unroll(x, record_mem=False)
        results.append(torch.autograd.grad(spk.square().sum(), layer.beta)[0])
    ops.use("snnfast_emulated")
    assert_close(results[0], results[1], 1e-6)


def test_a_number_of_another_device_costs_one_copy_and_of_the_same_none() -> None:
    """PyTorch wants the gradient of a number on the CPU there when ``backward`` returns, so the host waits for it."""
    total = torch.tensor(1.5)
    for device, names in (("cpu", []), ("meta", ["aten::_to_copy"])):
        with Operators() as ran:
            found = sum_to(total, torch.empty((), device=device))
        assert [name for name in ran.names if name != "aten::empty.memory_format"] == names
        assert found.device.type == device
