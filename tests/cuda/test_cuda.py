"""What the CUDA kernels alone do: which of them runs, time shared out among warps, sums over neurons; and that no
forward pass and no training step copies between host and card or waits.

Other files compare their numbers with the reference; here it is known which kernel ran.
"""

import contextlib
import inspect
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import training_steps
from emulator.build import kernels, set_chunked_limits, set_seed, set_vector_minimum, take_launches
from gradient_checks import ORDINARY, Operators, check_ordinary, gradients
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
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from benchmarks.gpu import workload
from snnfast import losses, spikingjelly, surrogate
from snnfast._core import ops
from snnfast._program import run as program_run
from snnfast._program.cuda import Engine
from snnfast._unroll.autograd import sum_to
from snnfast.functional import lif

CSRC = Path(__file__).parents[2] / "csrc"
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
    assert [(blocks, threads) for _, blocks, threads, _ in take_launches()] == [LAUNCHES[size]] * 2


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


def plain(
    direction: str, width: int, recorded: bool, *sums: str, dtype: str = "float", reset: str = "subtract",
    of: str = "Leaky", asks: bool = False, few: bool = False,
) -> str:  # fmt: skip
    """The name of a plain kernel, whether it writes or reads the record, and, backward, which parameters it sums.

    ``asks``: backward, whether the surrogate may be another one. ``few``: whether it is one of a few steps.
    """
    words = [of, dtype, str(width), RESET[reset], str(recorded).lower(), *sums]
    words += [str(few).lower()] if direction == "forward" else [str(asks).lower(), str(4 if few else 16)]
    return f"{direction}_plain<{', '.join(words)}>"


CHUNKED_KERNEL = f"backward_plain_chunked<Leaky, float, 1, (Reset)0, true, {ALL}>"


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
FORWARD, RECORD = plain("forward", 4, False), plain("forward", 4, True)
BACKWARD, RECORDED = plain("backward", 4, False, NONE), plain("backward", 4, True, NONE)
ASKING = plain("backward", 4, True, ALL, asks=True)  # of recorded membranes, whatever the reset and the loss
STRAIGHT = surrogate.straight_through_estimator()


def jelly(name: str, few: bool = False, **options: Any) -> Callable[[Tensor], Tensor]:
    node = getattr(spikingjelly.neuron, name)
    return lambda x: node(step_mode="m", **options)(x[:4] if few else x)


def of_node(*sums: str, reset: str = "zero", few: bool = False, dtype: str = "float") -> list[str]:
    forward = plain("forward", 4 if dtype == "float" else 8, False, of="IFNode", reset=reset, few=few, dtype=dtype)
    return [forward, plain("backward", 4, False, *sums, of="IFNode", reset=reset, few=few, dtype=dtype, asks=True)]


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
        [RECORD, CHUNKED_KERNEL],
    ),
    "tutorial 5": (tutorial, [FORWARD, RECORD, ASKING, BACKWARD]),
    "convolutions": (convolutional, [FORWARD, BACKWARD]),
    "a loss on the membrane": (lambda x: snnfast.Leaky(0.9).unroll(x)[1], [RECORD, ASKING]),
    "sigmoid": (lambda x: unrolled(x, {"spike_grad": surrogate.sigmoid()}), [RECORD, ASKING]),
    "sigmoid, record_mem=False": (
        lambda x: unrolled(x, {"spike_grad": surrogate.sigmoid()}, record_mem=False),
        [FORWARD, plain("backward", 4, False, ALL, asks=True)],
    ),
    "reset to zero, recorded": (
        lambda x: unrolled(x, {"reset_mechanism": "zero"}), ["forward<Leaky, float, 4>", ASKING],
    ),
    "another surrogate": (
        lambda x: unrolled(x, {"spike_grad": STRAIGHT}), [RECORD, "backward<Leaky, float, 4>"],
    ),
    "four steps": (lambda x: unrolled(x[:4], {}), [RECORD, plain("backward", 4, True, NONE, few=True)]),
    "four steps, record_mem=False": (
        lambda x: unrolled(x[:4], {}, record_mem=False), [FORWARD, plain("backward", 4, False, NONE, few=True)],
    ),
    "IFNode": (jelly("IFNode"), of_node(NONE)),
    "LIFNode, four steps": (jelly("LIFNode", few=True), of_node(NONE, few=True)),
    "LIFNode, soft reset": (jelly("LIFNode", v_reset=None), of_node(NONE, reset="subtract")),
    "ParametricLIFNode": (jelly("ParametricLIFNode"), of_node(FIRST)),
    "ParametricLIFNode, soft reset, four steps": (
        jelly("ParametricLIFNode", few=True, v_reset=None), of_node(FIRST, reset="subtract", few=True),
    ),
    "LIFNode(tau=3)": (
        jelly("LIFNode", tau=3.0), ["forward<IFNode, float, 4>", "backward<IFNode, float, 4>"],
    ),
    "float64": (lambda x: unrolled(x.double(), {}), ["forward<Leaky, double, 1>", "backward<Leaky, double, 1>"]),
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
    """The gradients of both kernels, by name; in half precision those of the current and the states alone."""
    found, wrt = [], ("current", *case.kind.ops.states) if case.dtype in HALVES else None
    for limits in (ALWAYS, NEVER):
        set_chunked_limits(*limits)
        found.append(gradients(fused, leaves(tensors, wrt), case, "spk"))
        assert is_chunked() == (limits == ALWAYS)
    return found


@emulated
@pytest.mark.parametrize("name", ROWS)
def test_chunked_calls(name: str, device: torch.device) -> None:
    set_chunked_limits(*ALWAYS)
    choices = {"dtype": (torch.float32,), **CHUNKED, **ROWS[name]}
    for i, case in enumerate(random_cases(30 if THOROUGH else 6, name, **choices)):
        check_ordinary(case, device, i)
        learns = i % 3 == 2 and case.reset != "zero"
        assert is_chunked() == (not learns or case.dtype not in HALVES), case


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


# ---- the nodes of SpikingJelly, and few steps

COUNTS = (*range(1, 20), 32, 33)  # around a few steps, a batch and a chunk


def of_both(call: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What a call has in the emulator, with several neurons to a thread and with one, and on the CPU."""
    found = []
    for namespace, least in (("snnfast_emulated", 1), ("snnfast_emulated", DEFAULT), ("snnfast", 1)):
        ops.use(namespace)
        set_vector_minimum(least)
        found.append(call())
    ops.use("snnfast_emulated")
    return found


def assert_as_on_the_cpu(call: Callable[[], list[Tensor]], results: int, dtype: torch.dtype, why: str) -> None:
    """Spikes and states, the first results, by their bits, and gradients to rounding; NaN where NaN is."""
    *emulated_ones, wanted = of_both(call)
    relative = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for found in emulated_ones:
        for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            if i < results:
                assert_bits_equal(ours, theirs, why)
            else:
                assert_close(ours, theirs, relative, why, scale=float(theirs.dim() == 0))  # a sum may cancel out


@emulated
@pytest.mark.parametrize("kind", ["IFNode", "LIFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("gradient", ["Sigmoid", "ATan"])
def test_nodes_of_every_number_of_steps(kind: str, gradient: str, device: torch.device) -> None:
    """Hard and soft resets, with a gradient and without, inputs that decay or not, in all dtypes; with NaN."""
    choices = itertools.cycle(itertools.product((0.0, None, -0.25), (True, False), (True, False), (False, True)))
    for steps, dtype in itertools.product(COUNTS, (torch.float32, *HALVES)):
        v_reset, detach, decay, wild = next(choices)
        generator = torch.Generator().manual_seed(steps)
        x = torch.randn(steps, 3, 8, generator=generator) * 1.5 + 0.5
        weights = torch.randn(steps, 3, 8, generator=generator).to(dtype)
        if wild and dtype == torch.float32:  # NaN of half precision may look like poison
            x[steps // 2, 1, 3], x[0, 2, 5] = float("nan"), float("inf")
        given = x.to(dtype).requires_grad_()
        options = {"v_reset": v_reset, "detach_reset": detach, "step_mode": "m", "v_threshold": 0.75}
        if kind != "IFNode":
            options["decay_input"] = decay
        node = getattr(spikingjelly.neuron, kind)(
            surrogate_function=getattr(spikingjelly.surrogate, gradient)(), **options
        )

        def call(node: Any = node, x: Tensor = given, weights: Tensor = weights) -> list[Tensor]:
            node.reset()
            spk = node(x)
            return [spk, node.v, *torch.autograd.grad(spk, [x, *node.parameters()], weights)]

        assert_as_on_the_cpu(call, 2, dtype, f"{steps} steps, {dtype}, {options}, wild {wild}")


@emulated
def test_recorded_calls_of_every_surrogate_reset_and_loss(device: torch.device) -> None:
    losses_of = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.5))  # of the spikes and of the membranes
    resets, learned = ("subtract", "zero"), ({}, {"learn_beta": True}, {"learn_beta": True, "learn_threshold": True})
    choices = itertools.cycle(itertools.product(losses_of, resets, ("sigmoid", "atan"), learned))
    for steps in COUNTS:
        for (of_spk, of_mem), reset, gradient, learns in itertools.islice(choices, 7):
            layer = snnfast.Leaky(0.8, reset_mechanism=reset, spike_grad=getattr(surrogate, gradient)(), **learns)
            x = (torch.rand(steps, 3, 8, generator=torch.Generator().manual_seed(steps)) * 2).requires_grad_()

            def call(layer: Any = layer, x: Tensor = x, of_spk: float = of_spk, of_mem: float = of_mem) -> list[Tensor]:
                spk, mem = layer.unroll(x)
                loss = sum(factor * t.cos().sum() for factor, t in ((of_spk, spk), (of_mem, mem)) if factor)
                return [spk, mem, *torch.autograd.grad(loss, [x, *layer.parameters()])]

            assert_as_on_the_cpu(call, 2, torch.float32, f"{steps}, {of_spk}, {of_mem}, {reset}, {gradient}, {learns}")


@emulated
def test_a_start_that_is_one_number_is_read_as_one(device: torch.device) -> None:
    """An expanded number takes no copy, in any kernel, and has the numbers of a tensor of all of them."""
    for steps, reset, dtype in itertools.product((3, 18), ("subtract", "zero"), (torch.float32, torch.float64)):
        x, number = torch.rand(steps, 3, 8, dtype=dtype, requires_grad=True), torch.tensor(0.25, dtype=dtype)
        found = []
        for start in (number.expand(3, 8), number.expand(3, 8).clone()):
            with Operators() as ran:
                spk, _ = lif(x, start, beta=0.9, reset_mechanism=reset, record_mem=False)
                found.append([spk, *torch.autograd.grad(spk.square().sum(), x)])
            assert not {name for name in ran.names if "copy" in name or "fill" in name}
        assert_bits_equal(found[0][0], found[1][0])
        assert_bits_equal(found[0][1], found[1][1])


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


# ---- a forward pass, and a training step, neither copies between host and card nor waits


class Waits(TorchDispatchMode):
    """The operators that copy from one device to another, or whose result the host would have to know."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(op.tags):
            self.found.append(str(op))
        result = op(*args, **(kwargs or {}))
        tensors = [t for t in pytree.tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        # A number on the CPU goes along with a launch, if it is not copied by itself.
        by_itself = op in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if len({t.device for t in tensors if t.dim() > 0 or t.device.type != "cpu" or by_itself}) > 1:
            self.found.append(str(op))
        return result


STEPS, BATCH = 4, 3
LAYERS: dict[str, Callable[..., Any]] = {
    "Leaky": partial(snnfast.Leaky, 0.9), "Synaptic": partial(snnfast.Synaptic, 0.9, 0.8),
    "Alpha": partial(snnfast.Alpha, 0.9, 0.8), "Lapicque": partial(snnfast.Lapicque, 0.9),
    "RLeaky": partial(snnfast.RLeaky, 0.9, linear_features=8),
    "RSynaptic": partial(snnfast.RSynaptic, 0.9, 0.8, linear_features=8),
    "RLeaky alone": partial(snnfast.RLeaky, 0.9, V=0.5, all_to_all=False),
}  # fmt: skip
Calls = Iterator[Callable[[], object]]


def on_card(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A module there; it is called outside of this block, in which every tensor is made there."""
    with torch.device("cuda"):
        return make(*args, **options)


def record() -> Tensor:
    return torch.rand(STEPS, BATCH, 8, device="cuda")


def images() -> Tensor:
    return torch.rand(STEPS, BATCH, 2, 8, 8, device="cuda")


def lengths() -> Tensor:
    return torch.ones(BATCH, dtype=torch.int64, device="cuda")


def labels() -> Tensor:
    return torch.randint(4, (BATCH,), device="cuda")


def step_by_step(layer: Any) -> object:
    return [layer(x) for x in record()]


def calls_of_layers(name: str) -> Calls:
    make = partial(on_card, LAYERS[name])
    layer = make(learn_beta=True, learn_threshold=True)
    yield lambda: layer.unroll(record())
    layer = make(reset_mechanism="zero", spike_grad=surrogate.sigmoid())
    yield lambda: layer.unroll(record()[0], num_steps=STEPS, record_mem=False)
    yield lambda: layer.unroll(record(), lengths=lengths())
    yield lambda: layer.unroll(record(), reduce="sum")
    layer = make(init_hidden=True)
    yield lambda: step_by_step(layer)
    yield lambda: snnfast.reset(layer)
    if not name.startswith("R"):  # whose connections are on the card
        numbers_on_host = LAYERS[name]()
        yield lambda: numbers_on_host.unroll(record())
        yield lambda: step_by_step(numbers_on_host)


def convolutions(**of_norm: Any) -> Any:
    return snnfast.MultiStep(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, **of_norm), snnfast.Leaky(0.9), nn.MaxPool2d(2),
        snnfast.Residual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, **of_norm), snnfast.Leaky(0.9)),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 8), nn.BatchNorm1d(8, **of_norm),
        snnfast.Leaky(0.9),
    )  # fmt: skip


def loop() -> nn.Sequential:
    first, second = (snnfast.Leaky(0.9, init_hidden=True) for _ in range(2))
    return nn.Sequential(nn.Linear(8, 8), first, nn.Linear(8, 8), second)


def calls_of_networks() -> Calls:
    net = on_card(convolutions)
    yield lambda: net(images())
    yield lambda: net(images(), lengths=lengths())
    yield lambda: net(images()[0], num_steps=STEPS)
    net.batch_norm_over_time = True
    yield lambda: net(images())
    net.eval()
    yield lambda: net(images())
    for of_norm in ({"momentum": None}, {"track_running_stats": False}, {"affine": False}):
        other = on_card(convolutions, **of_norm)
        yield lambda other=other: other(images())
    held = on_card(lambda: snnfast.MultiStep.from_sequential(loop()))
    yield lambda: held(record())
    yield lambda: held(record()[0], num_steps=STEPS)
    yield lambda: snnfast.reset(held)


def calls_of_losses() -> Calls:
    for name in losses.__all__:
        if name == "l1_rate_sparsity":
            yield lambda: losses.l1_rate_sparsity()(record())
        elif isinstance(getattr(losses, name), type):
            measure = getattr(losses, name)()
            yield lambda measure=measure: measure(record(), labels())
            yield lambda measure=measure: measure(record(), labels(), lengths=lengths())
    for name in ("ce_rate_loss", "ce_count_loss", "mse_count_loss"):
        measure = getattr(losses, name)(population_code=True, num_classes=4)
        yield lambda measure=measure: measure(record(), labels())


def calls_of_spikingjelly() -> Calls:
    neuron, layer, m = spikingjelly.neuron, spikingjelly.layer, {"step_mode": "m"}
    for kind in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, partial(neuron.LIFNode, v_reset=None)):
        node, of_all = on_card(kind), on_card(kind, **m)
        yield lambda node=node: step_by_step(node)
        yield lambda of_all=of_all: of_all(record())
    net = on_card(
        lambda: nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, **m),
            layer.BatchNorm2d(4, **m),
            neuron.LIFNode(**m),
            layer.MaxPool2d(2, **m),
            layer.SeqToANNContainer(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            neuron.IFNode(**m),
            layer.AvgPool2d(2, **m),
            layer.Flatten(**m),
            layer.Dropout(0.5, **m),
            layer.Linear(16, 10, **m),
            neuron.ParametricLIFNode(**m),
            layer.VotingLayer(2, **m),
        )
    )
    for _ in range(2):  # the second call goes on from held states
        yield lambda: net(images())
    yield lambda: spikingjelly.functional.reset_net(net)


def calls_of_own_neurons() -> Calls:
    own = training_steps.adaptive
    for layer in (on_card(own), on_card(lambda: own(learn_beta=True, tau=torch.rand(8) + 2))):
        yield lambda layer=layer: layer.unroll(record())
        yield lambda layer=layer: layer.unroll(record()[0], num_steps=STEPS, record_mem=False)
        yield lambda layer=layer: layer.unroll(record(), lengths=lengths())


FORWARD: dict[str, Callable[[], Calls]] = {
    **{name: partial(calls_of_layers, name) for name in LAYERS}, "networks": calls_of_networks,
    "losses": calls_of_losses, "spikingjelly": calls_of_spikingjelly, "own neurons": calls_of_own_neurons,
}  # fmt: skip


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_pass_neither_copies_nor_waits(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values, for which there need be no card."""
    if backend == "fused" and not getattr(ops.extension, "cuda", False):
        pytest.skip("built without CUDA")
    monkeypatch.setattr(Engine, "_run", lambda *arguments: None)  # launches nothing, and needs no code
    monkeypatch.setattr(program_run, "takes_kernels", lambda x, shape: backend == "fused")
    gradients = torch.set_grad_enabled(torch.backends.cuda.is_built())  # PyTorch for the CPU aborts with them
    with FakeTensorMode(), gradients, snnfast.use_backend(backend):
        for call in FORWARD[name]():
            with Waits() as waits:
                call()
            assert waits.found == []


def backward(loss: Tensor) -> None:
    """``loss.backward()`` by the nodes of the graph, without PyTorch's engine, which wants a card for its streams."""
    root: Any = loss.grad_fn
    nodes, expected = [root], Counter()
    for node in nodes:  # which grows
        new = [n for n, _ in node.next_functions if n is not None]
        nodes += [n for n in dict.fromkeys(new) if n not in expected]
        expected.update(new)
    grads: dict[Any, list[Tensor | None]] = {node: [None] * len(node._input_metadata) for node in nodes}
    grads[root][0], ready = torch.ones_like(loss), [root]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given, edges = grads.pop(node), node.next_functions
            own = isinstance(node, torch.autograd.function.BackwardCFunction)
            if not own:
                for i, m in enumerate(node._input_metadata):
                    given[i] = torch.zeros(m.shape, dtype=m.dtype, device=m.device) if given[i] is None else given[i]
            found = node.apply(*given) if own else node(*given)
            found = found if isinstance(found, tuple) else (found,)
            if own:  # it has a result for each argument of its forward pass, and may have more
                found = tuple(itertools.compress(found, node.needs_input_grad))
                edges = [(n, i) for n, i in edges if n is not None]
            for (n, i), t in zip(edges, found, strict=True):
                if n is not None and t is not None:
                    grad = t.sum_to_size(n._input_metadata[i].shape).to(n._input_metadata[i].dtype)
                    before = grads[n][i]
                    grads[n][i] = grad if before is None else before + grad
                if n is not None:
                    expected[n] -= 1
                    ready += [n] * (expected[n] == 0)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("name", training_steps.NETWORKS)
def test_a_training_step_neither_copies_nor_waits(
    name: str, amp: bool, nothing_compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward and the optimizer, and the scaler of mixed precision."""
    if not (getattr(ops.extension, "cuda", False) and torch.backends.cuda.is_built()):
        pytest.skip("built without CUDA")
    monkeypatch.setattr(Engine, "_run", lambda *arguments: None)
    monkeypatch.setattr(program_run, "takes_kernels", lambda x, shape: True)
    monkeypatch.setattr(training_steps.adaptive._programs, "_found", {})  # codes of this mode, which no other test has
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with FakeTensorMode(), snnfast.use_backend("fused"):
        net, optimizer, step = training_steps.training(name, amp, backward)
        step(*training_steps.minibatch())
        with Waits() as waits:
            step(*training_steps.minibatch())
        assert waits.found == []
        assert all(p.grad is not None for p in net.parameters())
        assert set(optimizer.state) == set(net.parameters())


def test_a_backward_pass_by_the_nodes_is_that_of_the_engine() -> None:
    results = []
    for call in (backward, Tensor.backward):
        torch.manual_seed(0)
        net, x = convolutions(), torch.rand(STEPS, BATCH, 2, 8, 8)
        call(net(x)[0].square().mean())
        results.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("measure", [losses.accuracy_rate, losses.accuracy_temporal])
def test_an_accuracy_waits_once_for_its_number(measure: Any) -> None:
    with FakeTensorMode(), torch.no_grad(), Waits() as waits, pytest.raises(DataDependentOutputException):
        measure(record(), labels(), lengths=lengths())
    assert waits.found == ["aten._local_scalar_dense.default"]


def test_a_copy_or_a_wait_is_seen() -> None:
    """By the test before this one."""
    with FakeTensorMode(), torch.no_grad():
        x = torch.rand(3, device="cuda")
        for call in (
            lambda: torch.tensor([1.0, 2.0], device="cuda"), lambda: x.to("cpu"), lambda: x.copy_(torch.rand(3)),
            lambda: torch.tensor(2.0).to("cuda"), lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(),
            lambda: torch.equal(x, x),
        ):  # fmt: skip
            with Waits() as waits, contextlib.suppress(Exception):
                call()
            assert waits.found, inspect.getsource(call)
