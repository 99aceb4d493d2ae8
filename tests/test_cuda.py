"""What the CUDA kernels alone do: launches, time shared out among warps, sums over neurons, accesses past the cache.

Other files compare their numbers with the reference; here it is known which kernel ran.
"""

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator.build import (
    Launch,
    Streamed,
    cache_bytes,
    last_launch,
    set_chunked_limits,
    set_seed,
    set_stream_bytes,
    streamed,
    take_launches,
)
from gradient_checks import FLOWS, RELATIVE, check_against_reference, gradients
from helpers import (
    FIRST_SEED,
    FLOATS,
    HALVES,
    NEURONS,
    PARAMETERS,
    RESETS,
    SURROGATES,
    THOROUGH,
    VARIANTS,
    Case,
    assert_bits_equal,
    assert_close,
    expected,
    fused,
    inputs,
    layer_of,
    leaves,
    random_cases,
)
from ops import backward_arguments, call_op, forward_arguments
from test_kernels import ORDINARY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from snnfast import surrogate
from snnfast._core import ops
from snnfast._core.ops import SAVE_NOTHING, SAVE_SPIKES
from snnfast._unroll.autograd import sum_to
from snnfast.functional import lif

CSRC = Path(__file__).parent.parent / "csrc"
DTYPES = FLOATS + HALVES
LIMITS = (256, 12288)  # steps from which, neurons up to which many warps share out the time of a few neurons
ALWAYS, NEVER = (0, 1 << 40), (1 << 40, 0)
EVERYTHING, NOTHING, DEFAULT = 0, 1 << 60, -1  # bytes of a call from which on it goes past the cache
LANES = 32

neurons = pytest.mark.parametrize("neuron", NEURONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def emulated(test: Callable[..., None]) -> Callable[..., None]:
    """The test runs on the emulator, and leaves its settings as they were."""
    on = pytest.param("emulated", marks=[pytest.mark.emulated, pytest.mark.needs_extension])
    marked: Callable[..., None] = pytest.mark.parametrize("device", [on], indirect=True)(test)
    return pytest.mark.usefixtures("settings")(marked)


@pytest.fixture
def settings(device: torch.device) -> Iterator[None]:
    streamed()
    yield
    set_stream_bytes(DEFAULT)
    set_chunked_limits(*LIMITS)
    set_seed(FIRST_SEED)


class Calls(TorchDispatchMode):
    """Names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# ---- launches

# Forward and backward: at least 128 blocks where warps suffice, and no more threads than the kernels are made for.
LAUNCHES = {
    1: Launch(1, 32), 1001: Launch(32, 32), 4095: Launch(128, 32), 8191: Launch(256, 32), 8193: Launch(129, 64),
    16385: Launch(129, 128), 32769: Launch(257, 128),
}  # fmt: skip


@emulated
@pytest.mark.parametrize("size", LAUNCHES)
def test_few_neurons_spread_over_many_multiprocessors(size: int, device: torch.device) -> None:
    x = torch.rand(2, size, device=device).requires_grad_()
    spk, _ = lif(x, beta=0.9, record_mem=False)
    forward = last_launch()
    spk.sum().backward()
    assert forward == last_launch() == LAUNCHES[size]


@emulated
@neurons
def test_a_layer_takes_two_launches_and_no_other_op(neuron: str, device: torch.device) -> None:
    for record_mem in (True, False):
        case = Case(neuron, "unroll", 20, (4, 500), record_mem=record_mem)
        given = leaves(inputs(case, device))
        take_launches()
        outputs = [t for t in fused(given, case).values() if t.requires_grad]
        assert take_launches() == 1
        wanted = [t for t in given.values() if t is not None]
        weights = [torch.ones_like(t) for t in outputs]
        with Calls() as calls:
            torch.autograd.grad(outputs, wanted, weights)
        assert take_launches() == 1
        launched = [name for name in calls.names if name != "aten::detach"]  # of an output that was saved
        assert launched == [f"snnfast_emulated::{case.kind.ops.name}_backward"]


def test_what_the_sources_call_can_be_captured_in_a_graph() -> None:
    """A call launches kernels and clears a word of its own memory. It allocates nothing, and waits for nothing."""
    once = {"cudaFuncGetAttributes", "cudaDriverGetVersion", "cudaRuntimeGetVersion"}  # of each card, before any call
    found = {
        name for path in sorted(CSRC.glob("cuda/*.cu*")) for name in re.findall(r"\b(cuda[A-Z]\w*)\(", path.read_text())
    }
    asked = {"cudaGetDevice", "cudaDeviceGetAttribute", "cudaGetLastError", "cudaGetErrorString"}
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
        for again, (name, grad) in itertools.product(found[1:], found[0].items()):
            assert_bits_equal(again[name], grad, f"{case}: {name}")  # type: ignore[arg-type]


# ---- the backward kernel that shares out the time of few neurons among the warps of a block


def assert_chunked(case: Case) -> None:
    """The kernel that ran last was the one with many warps to a few neurons."""
    size, warps = torch.Size(case.shape).numel(), 8 if case.dtype == torch.float64 else 16
    assert last_launch() == Launch(-(-size // LANES), LANES * warps), f"{case}: another kernel ran"


def chunked_and_plain(case: Case, tensors: Any) -> list[tuple[str, Tensor, Tensor]]:
    """The gradients of both kernels, by name."""
    set_chunked_limits(*ALWAYS)
    chunked = gradients(fused, leaves(tensors), case)
    assert_chunked(case)
    set_chunked_limits(*NEVER)
    plain = gradients(fused, leaves(tensors), case)
    assert last_launch().threads <= 128
    return [(name, chunked[name], plain[name]) for name in plain]  # type: ignore[misc]


# Choices for the fields of the cases, by the name of what is special about them.
OPEN: dict[str, Any] = {
    "neuron": ("leaky",), "variant": ("unroll", "constant", "count", "count+constant"), "steps": (20, 41, 75),
    "shape": ((3, 11),), "spike_grad": tuple(SURROGATES.values()),
}  # fmt: skip
FUNCTIONS = tuple(variant for variant in VARIANTS if "step" not in variant)
ROWS: dict[str, dict[str, Any]] = {
    # Around a chunk; fewer chunks than warps, as many, and more. Through many steps a steep gradient grows without end.
    **{
        f"T{n}": {"steps": (n,), "spike_grad": (SURROGATES["atan"],)}
        for n in (0, 1, 15, 16, 17, 33, 48, 127, 128, 129, 255, 256, 257, 273, 400)
    },
    **{"x".join(map(str, shape)): {"shape": (shape,)} for shape in ((1,), (31,), (32,), (33,), (4, 8), (2, 3, 17))},
    **{f"parameters-{kind}": {"parameters": (kind,)} for kind in PARAMETERS},
    **{name: {"spike_grad": (spike_grad,), "variant": FUNCTIONS} for name, spike_grad in SURROGATES.items()},
    **{str(dtype)[6:]: {"dtype": (dtype,), "variant": FUNCTIONS} for dtype in DTYPES},
    # A derivative from outside enters the kernel where the reset is immediate.
    "callable": {"variant": ("callable", "callable+constant"), "delay": (False,)},
}


@emulated
@pytest.mark.parametrize("name", ROWS)
def test_chunked_special_calls(name: str, device: torch.device) -> None:
    set_chunked_limits(*ALWAYS)
    draw = random.Random(name)
    for i, case in enumerate(random_cases(30 if THOROUGH else 6, name, **{**OPEN, **ROWS[name]})):
        check_against_reference(case, device, draw.choice(FLOWS), i, wild=case.steps < 50)
        assert_chunked(case)


@emulated
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=lambda d: str(d)[6:])
def test_chunked_ordinary_calls(dtype: torch.dtype, device: torch.device) -> None:
    """Where only the current learns."""
    set_chunked_limits(*ALWAYS)
    for i, case in enumerate(random_cases(10, 1, **{**OPEN, **ORDINARY, "dtype": (dtype,), "steps": (1, 17, 75, 290)})):
        check_against_reference(case, device, "spk", i, wrt=("current",))
        assert_chunked(case)


@emulated
@neurons
def test_a_neuron_whose_membrane_does_not_tell_all_has_the_plain_kernel(neuron: str, device: torch.device) -> None:
    """As where there are more states: what a stretch hands back is then not one number times what enters it."""
    set_chunked_limits(*ALWAYS)
    case = Case(neuron, "unroll", 40, (3, 11), record_mem=False)
    check_against_reference(case, device)
    assert (last_launch().threads > 128) == case.kind.ops.recorded_membrane_suffices


@emulated
def test_a_single_chunk_has_the_numbers_of_the_plain_kernel(device: torch.device) -> None:
    for dtype, reset, delay in itertools.product(DTYPES, RESETS, (True, False)):
        case = Case("leaky", "unroll", 16, (5, 11), dtype, reset, delay, True, "element")
        for name, a, b in chunked_and_plain(case, inputs(case, device)):
            assert torch.equal(a, b), f"{case}: {name}"


@emulated
def test_no_gradient_from_later_steps_stays_none_where_it_would_overflow(device: torch.device) -> None:
    """A loss on the first spikes alone, where each step multiplies what comes from later ones by 1e30."""
    set_chunked_limits(*ALWAYS)
    case = Case("leaky", "unroll", 64, (3, 11), delay=False, spike_grad=surrogate.triangular(threshold=1e30))
    found = []
    for function in (fused, expected):
        tensors = leaves(inputs(case, device), ("current",))
        found += torch.autograd.grad(function(tensors, case)["spk"][0].sum(), [tensors["current"]])  # type: ignore[list-item]
        if function is fused:
            assert_chunked(case)
    assert found[1][0].abs().min() > 1e29
    assert_close(*found, RELATIVE[case.dtype])


@emulated
@pytest.mark.parametrize("reset", RESETS)
def test_nan_goes_where_it_goes_in_the_plain_kernel(reset: str, device: torch.device) -> None:
    for delay, record_mem in itertools.product((True, False), (True, False)):
        case = Case("leaky", "unroll", 75, (40,), torch.float32, reset, delay, record_mem, "element")
        tensors: Any = inputs(case, device)
        tensors["current"][30, 3] = tensors["beta"][5] = float("nan")
        found = chunked_and_plain(case, tensors)
        assert sum(b.isnan().any() for _, _, b in found) >= 3
        for name, a, b in found:
            assert torch.equal(a.isnan(), b.isnan()), f"{case}: {name}"


@dtypes
def test_many_steps_of_few_neurons(dtype: torch.dtype, device: torch.device, request: pytest.FixtureRequest) -> None:
    """The shapes that take the kernel of their own accord, on every device."""
    for i, (reset, delay) in enumerate(itertools.product(RESETS, (True, False))):
        variant = {2: "count", 4: "constant"}.get(i, "unroll")
        case = Case("leaky", variant, 256 + i, (3, 13), dtype, reset, delay, i % 3 == 0, "neuron")
        check_against_reference(case, device, FLOWS[i % 4])
        if "emulated" in request.node.name:
            assert_chunked(case)


@emulated
def test_the_shape_alone_decides_which_kernel_runs(device: torch.device) -> None:
    steps, most = LIMITS
    for T, N, chunked in ((steps, most, True), (steps - 1, 33, False), (steps, most + 1, False)):
        x = torch.rand(N, device=device).requires_grad_()
        spk, _ = lif(x, beta=0.9, num_steps=T, reduce="sum", record_mem=False)
        spk.sum().backward()
        assert (last_launch() == Launch(-(-N // LANES), LANES * 16)) == chunked, (T, N)


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
def test_a_sum_is_that_of_the_gradients_of_all_neurons(
    neuron: str, limits: tuple[int, int], device: torch.device
) -> None:
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
        with Calls() as calls:
            found = sum_to(total, torch.empty((), device=device))
        assert [name for name in calls.names if name != "aten::empty.memory_format"] == names
        assert found.device.type == device


# ---- calls whose tensors over time exceed the cache of the device go past it, others through it

# T, N and dtype of all: a row is 8 accesses of 4 neurons, of the current, spikes or states.
T, ROW = 40, 8


def accesses(case: Case, device: torch.device) -> tuple[Streamed, Streamed]:
    """Of the forward and the backward pass, with a gradient for every input."""
    tensors = leaves(inputs(case, device))
    outputs = fused(tensors, case)
    forward = streamed()
    wanted = list(outputs.values()) if case.record_mem else [outputs["spk"]]
    asking = [t for t in tensors.values() if t is not None]
    torch.autograd.grad(wanted, asking, [torch.ones_like(t) for t in wanted], allow_unused=True)
    return forward, streamed()


def expected_accesses(neuron: str, variant: str, record_mem: bool) -> tuple[Streamed, Streamed]:
    """Rows of T steps, and checkpoints."""
    states, tells = len(Case(neuron).kind.ops.states), record_mem and Case(neuron).kind.ops.recorded_membrane_suffices
    rows = 0 if tells else 2 * states * ROW
    x, spikes = variant != "constant", variant != "count"
    recorded = states * record_mem
    read_again = not tells and x  # in backward: so forward leaves the current in the caches
    return (
        Streamed(T * ROW * (x and not read_again), T * ROW * (spikes + recorded) + rows),
        Streamed(T * ROW * (read_again + tells + spikes + recorded) + rows, T * ROW * x),
    )


@emulated
@neurons
@pytest.mark.parametrize("record_mem", [True, False], ids=["record", "last"])
@pytest.mark.parametrize("variant", ["unroll", "count", "constant"])
def test_rows_are_streamed_once(variant: str, record_mem: bool, neuron: str, device: torch.device) -> None:
    case = Case(neuron, variant, T, (32,), record_mem=record_mem)
    set_stream_bytes(EVERYTHING)
    assert accesses(case, device) == expected_accesses(neuron, variant, record_mem)
    set_stream_bytes(NOTHING)
    assert accesses(case, device) == (Streamed(0, 0), Streamed(0, 0))


@emulated
@pytest.mark.parametrize("steps", [2, 15, 16])
def test_a_current_that_backward_reads_again(steps: int, device: torch.device) -> None:
    set_stream_bytes(EVERYTHING)
    for neuron in NEURONS:
        case = Case(neuron, "unroll", steps, (32,), record_mem=False)
        forward, backward = accesses(case, device)
        assert forward == Streamed(0, steps * ROW)
        assert backward == Streamed(2 * steps * ROW, steps * ROW)
        tensors = leaves(inputs(case, device))
        layer_of(case, tensors)(tensors["current"][0], *(tensors[s] for s in case.kind.ops.states))  # type: ignore[index]
        assert streamed().loads == 0


@pytest.mark.thorough
@emulated
def test_a_pass_that_is_repeated(device: torch.device) -> None:
    """Warps that share out the time read all but the first and last segments twice."""
    set_chunked_limits(*ALWAYS)
    set_stream_bytes(EVERYTHING)
    steps, size, checkpoints = 300, 32, 18
    _, backward = accesses(Case("leaky", "unroll", steps, (size,), record_mem=False), device)
    assert last_launch().threads == 512
    assert backward == Streamed((2 * steps + checkpoints) * size, steps * size)


@emulated
@dtypes
def test_the_limit_of_bytes(dtype: torch.dtype, device: torch.device) -> None:
    case = Case("leaky", "unroll", T, (32,), dtype, record_mem=False)
    size, acc = (torch.empty(0, dtype=t).element_size() for t in (dtype, case.acc))
    # Of the current, spikes and checkpoints; in backward of the gradients of spikes and current besides.
    for i, limit in enumerate((T * 32 * 2 * size + 2 * 32 * acc, T * 32 * 3 * size + 2 * 32 * acc)):
        set_stream_bytes(limit)
        assert accesses(case, device)[i] == Streamed(0, 0)
        set_stream_bytes(limit - 1)
        assert accesses(case, device)[i].stores > 0


@pytest.mark.thorough
@emulated
def test_the_limit_counts_what_is_saved(device: torch.device) -> None:
    case = Case("leaky", "unroll", T, (32,))
    op = case.kind.ops

    def stores(saved: int, size: int) -> int:
        set_stream_bytes(size)
        call_op(op.forward, forward_arguments(case, device, saved=saved, record=0, last=True))
        return streamed().stores

    for saved, size in ((SAVE_SPIKES, 5 * 32), (SAVE_NOTHING, 0)):
        size += 2 * T * 32 * 4
        assert stores(saved, size) == 0
        assert stores(saved, size - 1) > 0

    def loads(given: bool, size: int) -> int:
        arguments = backward_arguments(case, device, saved=SAVE_NOTHING, needs=1, derivative=given)
        streamed()
        set_stream_bytes(size)
        call_op(op.backward, {**arguments, "grad_mem_rec": None})
        return streamed().loads

    for given, tensors in ((False, 3), (True, 4)):
        assert loads(given, tensors * T * 32 * 4) == 0
        assert loads(given, tensors * T * 32 * 4 - 1) > 0


@emulated
def test_the_cache_of_the_device(device: torch.device) -> None:
    size = cache_bytes() // (2 * 4 * 4)
    for N, beyond in ((size, False), (size + 4, True)):
        with torch.no_grad():
            lif(torch.rand(4, N, device=device), beta=0.9, record_mem=False)
        assert streamed() == Streamed(beyond * N, beyond * N)


@pytest.mark.thorough
@emulated
@neurons
def test_streaming_changes_no_bit(neuron: str, device: torch.device) -> None:
    for case in random_cases(40, 1, neuron=(neuron,), variant=FUNCTIONS, steps=(21,), shape=((37,), (64,))):
        found: list[dict[str, Tensor | None]] = []
        for size in (EVERYTHING, NOTHING):
            set_stream_bytes(size)
            tensors = leaves(inputs(case, device), case.wrt)
            found.append({**fused(tensors, case), **gradients(fused, tensors, case)})
            assert (streamed().stores > 0) == (size == EVERYTHING)
        for name, t in found[0].items():
            if t is None:
                assert found[1][name] is None
            else:
                assert_bits_equal(t, found[1][name], f"{case}: {name}")  # type: ignore[arg-type]


@emulated
def test_bits_are_streamed(device: torch.device) -> None:
    set_stream_bytes(EVERYTHING)
    row = 64 // 4
    x = torch.rand(T, 64, device=device).requires_grad_()
    lif(x, beta=0.9, spike_grad=SURROGATES["straight_through_estimator"], record_mem=False)
    assert streamed() == Streamed(T * row, T * row + 5 * row)
