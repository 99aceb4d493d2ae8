"""On CUDA the backward kernel itself sums the gradient of a parameter that is one number over all neurons."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator.build import set_chunked_limits, set_seed, take_launches
from helpers import FLOATS, HALVES, NEURONS, Case, assert_bits_equal, assert_close, fused, inputs, leaves
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import snnfast
from snnfast._core import ops
from snnfast._unroll.autograd import sum_to

CSRC = Path(__file__).parent.parent / "csrc"
ALWAYS, LIMITS = (0, 1 << 40), (256, 12288)
RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-14}  # of the sum of magnitudes

neurons = pytest.mark.parametrize("neuron", NEURONS)
emulated = pytest.mark.parametrize("device", [pytest.param("emulated", marks=pytest.mark.emulated)], indirect=True)


class Calls(TorchDispatchMode):
    """Names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def gradients(case: Case, tensors: dict[str, Tensor | None], per_neuron: bool) -> dict[str, Tensor]:
    """Of the parameters; ``per_neuron``: each has a value for each neuron, all alike."""
    given = leaves(tensors)
    names = case.kind.ops.parameters
    if per_neuron:
        wide = {n: given[n].detach().expand(case.shape).clone().requires_grad_() for n in names}  # type: ignore[union-attr]
        given = {**given, **wide}
    outputs = [t for t in fused(given, case).values() if t.requires_grad]
    weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64).view(t.shape).to(t) for t in outputs]
    found = torch.autograd.grad(outputs, [given[n] for n in names], weights)  # type: ignore[type-var]
    return dict(zip(names, found, strict=True))


def check(case: Case, device: torch.device, seed: int = 0) -> None:
    tensors = inputs(case, device, seed)
    found, each = gradients(case, tensors, False), gradients(case, tensors, True)
    for name, total in found.items():
        values = each[name].double().flatten().tolist()
        exact, magnitude = math.fsum(values), math.fsum(map(abs, values))
        assert total.shape == tensors[name].shape  # type: ignore[union-attr]
        assert_close(total, torch.full_like(total, exact), RELATIVE[case.acc], f"{case}: {name}", scale=magnitude)


@pytest.fixture
def chunked(device: torch.device) -> Iterator[torch.device]:
    set_chunked_limits(*ALWAYS)
    yield device
    set_chunked_limits(*LIMITS)


def cases(neuron: str) -> Iterator[Case]:
    dtypes = FLOATS + HALVES
    shapes = ((1,), (31,), (33,), (4, 32), (3, 427), (8, 1000))
    for i, shape in enumerate(shapes):
        for j, dtype in enumerate(dtypes):
            parameters = "one" if (i + j) % 2 else "scalar"
            record_mem, delay = i % 3 != 0, (i + j) % 4 != 3
            yield Case(neuron, "unroll", 5 + 14 * (i % 2), shape, dtype, "subtract", delay, record_mem, parameters)


@emulated
@neurons
def test_it_is_the_sum_of_the_gradients_of_all_neurons(neuron: str, device: torch.device) -> None:
    for i, case in enumerate(cases(neuron)):
        check(case, device, i)


@emulated
def test_where_warps_share_out_the_time(chunked: torch.device) -> None:
    for i, case in enumerate(cases("leaky")):
        if math.prod(case.shape) < 200:
            check(replace(case, steps=50), chunked, i)


@emulated
@neurons
def test_no_order_of_threads_or_blocks_changes_a_bit(neuron: str, device: torch.device) -> None:
    """Nor what an earlier call left in the memory in which the blocks count themselves."""
    for shape in ((37,), (3, 427)):
        for dtype in FLOATS + HALVES:
            case = Case(neuron, "unroll", 5, shape, dtype)
            tensors = inputs(case, device)
            first = gradients(case, tensors, False)
            for seed in range(1, 5):
                set_seed(seed)
                try:
                    for name, total in gradients(case, tensors, False).items():
                        assert_bits_equal(total, first[name], f"{case}: {name}")
                finally:
                    set_seed(0)


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


@emulated
def test_parameters_of_every_dtype(device: torch.device) -> None:
    for dtype in FLOATS + HALVES:
        x = torch.rand(9, 4, 40, device=device, requires_grad=True)
        beta = torch.tensor(0.75, dtype=dtype, device=device, requires_grad=True)
        same = beta.detach().float().requires_grad_()
        found, expected = (
            torch.autograd.grad(snnfast.functional.lif(x, beta=b)[0].square().sum(), b)[0] for b in (beta, same)
        )
        assert found.dtype == dtype
        assert_bits_equal(found, expected.to(dtype)) if dtype != torch.float64 else assert_close(
            found.float(), expected, 1e-6
        )


@emulated
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["static", "dynamic"])
def test_compiled_it_is_the_same(dynamic: bool, device: torch.device) -> None:
    for parameters in ("scalar", "one", "neuron"):
        torch._dynamo.reset()
        case = Case("leaky", "unroll", 9, (3, 40), parameters=parameters)
        compiled = torch.compile(
            lambda t, case=case: fused(t, case), fullgraph=True, backend="aot_eager", dynamic=dynamic
        )
        results = []
        for function in (lambda t, case=case: fused(t, case), compiled):
            given = leaves(inputs(case, device))
            outputs = list(function(given).values())
            wanted = [given[n] for n in case.kind.ops.parameters]
            results.append(torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs]))  # type: ignore[type-var]
        for a, b in zip(*results, strict=True):
            assert_bits_equal(b, a)


@emulated
def test_an_output_that_a_step_writes_to_is_of_each_neuron(device: torch.device) -> None:
    """Connected neurons add up what their steps write, and sum over the neurons at the end."""
    layer = snnfast.RLeaky(beta=0.9, linear_features=6, learn_beta=True).to(device)
    x = torch.rand(5, 3, 6, device=device)
    results = []
    for namespace in ("snnfast_emulated", "snnfast"):
        ops.use(namespace)
        spk, *_ = layer.unroll(x, record_mem=False)
        results.append(torch.autograd.grad(spk.square().sum(), layer.beta)[0])
    ops.use("snnfast_emulated")
    assert_close(results[0], results[1], 1e-6)


def test_what_the_sources_call_can_be_captured_in_a_graph() -> None:
    """A call launches kernels and clears a word of its own memory. It allocates nothing, and waits for nothing."""
    once = {"cudaFuncGetAttributes", "cudaDriverGetVersion", "cudaRuntimeGetVersion"}  # of each card, before any call
    found = {
        name for path in sorted(CSRC.glob("cuda/*.cu*")) for name in re.findall(r"\b(cuda[A-Z]\w*)\(", path.read_text())
    }
    asked = {"cudaGetDevice", "cudaDeviceGetAttribute", "cudaGetLastError", "cudaGetErrorString"}
    assert found == {"cudaMemsetAsync"} | asked | once


def test_a_number_of_another_device_costs_one_copy_and_of_the_same_none() -> None:
    """PyTorch wants the gradient of a number on the CPU there when ``backward`` returns, so the host waits for it."""
    total = torch.tensor(1.5)
    for device, names in (("cpu", []), ("meta", ["aten::_to_copy"])):
        with Calls() as calls:
            found = sum_to(total, torch.empty((), device=device))
        assert [name for name in calls.names if name != "aten::empty.memory_format"] == names
        assert found.device.type == device
